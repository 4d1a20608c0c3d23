"""Amortised StyleDiffusion as its users run it: shards with pivots, training, resume, export, fits; all tiny."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from jsonargparse import ArgumentParser
from PIL import Image
from safetensors.torch import load_file

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.command import parse
from data.scenes import write_scenes
from data.shards.dataset import ShardDataset, largest_size
from eval.editors.catalogue import ON_MANY_STEPS
from eval.many_step import compare_many_step
from models.attention import attention_layers
from models.carried_code import source_files
from models.ddim import Ddim
from models.options import FitSchedule, StyleObjective
from models.stylediffusion import GuidedStep
from models.stylediffusion_pipeline import StyleDiffusionPipeline
from tests.processes import finish, start_ranks
from tests.processes import run as run_python
from tests.snippets import run_snippet
from train.export import export, read_run
from train.exports.example import scene_example
from train.method import Storage
from train.methods.initial_weights import initial_weights
from train.methods.stylediffusion import METHOD
from train.methods.stylediffusion.config import ImageFitsConfig, StyleDiffusionConfig
from train.methods.stylediffusion.drift import measure_drift
from train.methods.stylediffusion.export import trial
from train.methods.stylediffusion.fits import read_fit
from train.methods.stylediffusion.trained import open_mapper
from train.plan import main as plan
from train.stylediffusion import main as train
from train.stylediffusion_drift import measure_mappers
from train.stylediffusion_fit import main as fit

STEPS = 4
CLIP = "models/miniature/clip"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_sd_backbone: str) -> Path:
    root = tmp_path_factory.mktemp("style")
    write_scenes(root / "scenes", num=12)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    wanted = EncodeConfig(backbone=tiny_sd_backbone, pivots=True, pivot_steps=STEPS, clip=CLIP, keep_images=True)
    encode_shards(root / "captioned", root / "pivots", wanted)
    return root / "pivots"


@pytest.fixture(scope="module")
def words(shards: Path, tiny_sd_backbone: str) -> list[str]:
    return [
        *("--run.steps", "4", "--run.global_batch", "4", "--run.micro_batch", "2", "--data.shards", str(shards)),
        *("--data.workers", "0", "--backbone.path", tiny_sd_backbone, "--backbone.dtype", "float32"),
        *("--backbone.num_steps", str(STEPS)),
        *("--mapper.clip", CLIP, "--mapper.width", "8", "--mapper.depth", "1", "--mapper.heads", "2"),
        *("--objective.guidance", "3", "--objective.attention_side", "8", "--optim.lr", "1e-2"),
        *("--log.checkpoint_every", "2", "--log.preview_every", "4", "--log.log_every", "1", "--ema.decay", "0.9"),
    ]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "style"
    train(["--run.folder", str(folder), *words])
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to which the run is exported; a test that changes it takes a copy."""
    out = tmp_path_factory.mktemp("exported") / "out"
    export(run, out)
    return out


@pytest.fixture(scope="module")
def in_float32(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that rounds nothing."""
    out = tmp_path_factory.mktemp("in_float32") / "out"
    export(run, out, dtype="float32")
    return out


@pytest.mark.parametrize("name", ["miniature", "sd15"])
def test_configs_of_trainings_are_read(name: str):
    config = parse(StyleDiffusionConfig, ["--config", f"configs/stylediffusion/{name}.yaml"])
    assert config.objective.attention_side == (8 if name == "miniature" else 16)


def test_config_of_the_fits_is_read():
    config = parse(ImageFitsConfig, ["--config", "configs/stylediffusion/fit_miniature.yaml"])
    assert config.schedule == FitSchedule()


@pytest.mark.parametrize("name", ["comparison", "ablation"])
def test_configs_of_comparisons_are_read(name: str):
    parser = ArgumentParser()
    parser.add_function_arguments(compare_many_step)
    options = parser.parse_path(f"configs/stylediffusion/{name}_miniature.yaml")
    assert options.guidance == 3.0 and set(options.editors or ()) <= {known.name for known in ON_MANY_STEPS}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_logs_both_terms_and_draws_previews(run: Path):
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["rec"] > 0 for row in rows) and rows[0]["attention"] < 1e-9 < rows[-1]["attention"]
    assert any(name.startswith("step_error/") for name in rows[-1])
    assert list((run / "samples").iterdir())


def test_whole_inversions_of_held_out_pictures_are_logged(shards: Path, words: list[str], tmp_path: Path):
    folder = tmp_path / "held_out"
    looking = ("--data.validation", str(shards), "--log.validate_every", "4", "--log.validation_samples", "12")
    train(["--run.folder", str(folder), *words, *looking])
    found = [row for row in metrics(folder) if "valid/rec" in row]
    assert [row["step"] for row in found] == [0, 4]
    trained, backbone = open_mapper(str(folder), torch.device("cpu"))
    dataset = ShardDataset(shards, ("pivots", "clip", "caption"))
    ddim = Ddim(backbone.schedule, STEPS, trained.steps_offset)
    step, expected = GuidedStep(backbone, ddim, StyleObjective(guidance=3.0, attention_side=8)), []
    for sample in (dataset[number] for number in range(12)):
        batch = {name: torch.as_tensor(sample[name])[None].float() for name in ("pivots", "clip")}
        expected.append(measure_drift(step, trained.mapper, {**batch, "caption": [sample["caption"]]}))
    for name in ("psnr_to_vae", "first_error", "last_error", "growth"):
        mean = torch.cat([drift.figures[name] for drift in expected]).mean().item()
        assert found[-1][f"valid/{name}"] == pytest.approx(mean, rel=1e-3), name


def test_card_and_page_edit_a_photo_as_typed(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = Path("docs/stylediffusion.md").read_text(encoding="utf-8")
    Image.new("RGBA", (80, 40), (255, 0, 0, 100)).save(tmp_path / "photo.jpg", "PNG")
    Image.new("L", (40, 80)).save(tmp_path / "house.jpg")
    monkeypatch.chdir(tmp_path)
    for document in ((exported / "README.md").read_text(encoding="utf-8"), page):
        run_snippet(document, exported)
    for name, size in {"edited": (96, 48), "red": (96, 48), "styled": (48, 96)}.items():
        assert Image.open(tmp_path / f"{name}.png").size == size  # the photograph's shape


def test_a_stopped_training_goes_on_exactly(run: Path, words: list[str], tmp_path: Path):
    folder = tmp_path / "stopped"
    train(["--run.folder", str(folder), *words, "--run.steps", "2"])
    train(["--run.folder", str(folder), *words])
    whole, resumed = (load_file(x / "checkpoints" / "step-000004" / "model.safetensors") for x in (run, folder))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_mapper_begins_with_another_of_its_form(run: Path, in_float32: Path, words: list[str], tmp_path: Path):
    newest = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "ema.safetensors")

    def config(source: Path, *more: str) -> StyleDiffusionConfig:
        options = ["--run.folder", str(tmp_path / "run"), *words, f"--mapper.init_from={source}", *more]
        return parse(StyleDiffusionConfig, options)

    for source in (run, in_float32):
        initial = initial_weights(METHOD, config(source))
        assert initial is not None and set(initial.weights) == set(newest)
        task, _ = METHOD.load(config(source), torch.device("cpu"))
        initial.give(task.trainable)
        assert all(torch.equal(weight, newest[name]) for name, weight in task.trainable.state_dict().items())
        with pytest.raises(ValueError, match=r"has mapper.heads 2, and this run 4: set mapper.heads as there"):
            initial_weights(METHOD, config(source, "--mapper.heads=4"))


def test_two_processes_train_as_one(run: Path, words: list[str], tmp_path: Path):
    finish(start_ranks(2, "-m", "train.stylediffusion", "--run.folder", tmp_path / "two", *words))
    for alone, both in zip(metrics(run), metrics(tmp_path / "two"), strict=True):
        assert both["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_other_steps_than_the_pivots_are_refused(words: list[str], tmp_path: Path):
    with pytest.raises(SystemExit, match="steps-offset"):
        train(["--run.folder", str(tmp_path / "x"), *words, "--backbone.steps_offset", "0"])


LOADER = """
import sys, torch
from diffusers import DiffusionPipeline
from jsonargparse import ArgumentParser
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True, torch_dtype=torch.float32)
inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star", refine=2)
assert pipeline.edit(inversion, "a blue star")[0].size == (64, 64)
assert pipeline.reconstruct(inversion)[0].size == (64, 64)
print(type(pipeline).__module__, type(pipeline.mapper).__module__)
"""


def test_export_works_without_this_project(run: Path, exported: Path, tmp_path: Path):
    done = run_python(
        *("-c", LOADER, exported), fresh=True, folder=tmp_path, PYTHONPATH=None, HF_HOME=str(tmp_path / "hf")
    )
    assert done.stdout.count("diffusers_modules") == 2, done.stdout
    card = (exported / "README.md").read_text()
    assert "step 4" in card and "12 samples" in card and "attention_side" in card
    averages = load_file(run / "checkpoints" / "step-000004" / "ema.safetensors")
    stored = load_file(exported / "mapper" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], averages[name].half()) for name in stored)


def test_drift_of_a_run_is_that_of_its_export(run: Path, in_float32: Path, tmp_path: Path):
    of_run, of_export = measure_mappers((str(run), str(in_float32)), num=3, batch=2)
    assert (of_run["num_steps"], of_run["guidance"], of_run["num"]) == (STEPS, 3.0, 3)
    for line in ("mapped", "ddim"):
        assert of_run[line]["errors"] == pytest.approx(of_export[line]["errors"], rel=1e-3)
        for name in ("psnr_to_vae", "first_error", "last_error", "growth"):
            assert of_run[line][name] == pytest.approx(of_export[line][name], rel=1e-3) and of_run[line][name]["n"] == 3
        assert len(of_run[line]["errors"]) == STEPS
    assert of_run["mapped"] != of_run["ddim"] and of_run["gain"]["mean"] == 0
    differences = map(float.__sub__, *(one["mapped"]["psnr_by_image"] for one in (of_export, of_run)))
    assert of_export["gain"]["mean"] == pytest.approx(sum(differences) / 3, abs=1e-9)
    [other] = measure_mappers((str(run),), num=1, num_steps=2, guidance=1.0)
    assert (other["num_steps"], other["guidance"], len(other["mapped"]["errors"])) == (2, 1.0, 2)
    with pytest.raises(ValueError, match="is not an exported encoder"):
        measure_mappers((str(tmp_path),), num=1)


def test_a_space_is_refused_before_the_export_begins(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="stylediffusion, whose exports the page does not open: leave out --space"):
        export(run, tmp_path / "out", space=tmp_path / "space")
    assert not list(tmp_path.iterdir())


def test_export_does_not_need_the_shards(run: Path, shards: Path, tmp_path: Path):
    moved = shards.rename(tmp_path / "elsewhere")
    try:
        method, trained = read_run(run)
        assert method.export().build(trained, Storage("float32")).config.num_steps == STEPS
    finally:
        moved.rename(shards)


def test_the_pipeline_names_all_the_code_that_is_exported():
    import models

    source = (Path(models.__path__[0]) / "stylediffusion_pipeline.py").read_text()
    imported = {line.split()[1][1:] for line in source.splitlines() if line.startswith("from .")}
    found = source_files(StyleDiffusionPipeline)
    assert {path.stem for path in found} == {*imported, "stylediffusion_pipeline"}


def test_refinement_adds_to_the_network(run: Path):
    method, trained = read_run(run)
    pipeline = method.export().build(trained, Storage("float32"))
    assert isinstance(pipeline, StyleDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, refined = (pipeline.invert(image, "a red star", refine=n).trajectory for n in (0, 5))
    assert torch.equal(plain.start, refined.start)
    assert not torch.equal(plain.values[0].shift, refined.values[0].shift)
    assert torch.equal(*(trial(pipeline, scene_example()).outputs for _ in range(2)))
    with pytest.raises(ValueError, match="2 prompts for 1 images"):
        pipeline.invert(image, ["a", "b"])
    assert isinstance(pipeline, DiffusionPipeline)


def fit_words(shards: Path, backbone: str, out: Path) -> list[str]:
    return [
        *("--shards", str(shards), "--out", str(out), "--num", "4", "--batch", "2", "--backbone.path", backbone),
        *(
            "--backbone.num_steps",
            str(STEPS),
            "--backbone.dtype",
            "float32",
            "--objective.guidance",
            "3",
            "--objective.attention_side",
            "8",
        ),
        *("--schedule.iterations", "3"),
    ]


@pytest.fixture(scope="module")
def fits(shards: Path, tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of fits of four images; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("fitted") / "fits"
    fit(fit_words(shards, tiny_sd_backbone, folder))
    return folder


def test_fits_are_written_image_by_image_and_resumed(fits: Path, shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    shutil.copytree(fits, tmp_path / "fits")
    summary = json.loads((tmp_path / "fits" / "summary.json").read_text())
    assert summary["psnr_to_vae"]["n"] == 4 and summary["seconds"]["mean"] > 0
    first, second = (tmp_path / "fits" / f"fit-{name}.safetensors" for name in ("000000-000002", "000002-000004"))
    assert len(load_file(first)) == 4 and next(iter(load_file(first).values())).shape == (STEPS, 77, 16)
    kept = first.stat().st_mtime_ns
    expected = load_file(second)
    second.unlink()
    second.with_suffix(".json").unlink()
    fit(fit_words(shards, tiny_sd_backbone, tmp_path / "fits"))
    assert first.stat().st_mtime_ns == kept
    again = load_file(second)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_fits_by_two_ranks_are_those_of_one(fits: Path, shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    finish(start_ranks(2, "-m", "train.stylediffusion_fit", *fit_words(shards, tiny_sd_backbone, tmp_path / "two")))
    for name in ("fit-000000-000002", "fit-000002-000004"):
        one, two = (load_file(x / f"{name}.safetensors") for x in (fits, tmp_path / "two"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_more_images_than_before_are_all_fitted(shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    words = fit_words(shards, tiny_sd_backbone, tmp_path / "fits")
    for num in ("3", "4"):
        fit([*words, "--num", num])
    assert json.loads((tmp_path / "fits" / "summary.json").read_text())["psnr_to_vae"]["n"] == 4


def test_an_image_that_cannot_be_read_is_left_out(shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    key = ShardDataset(str(copy), ("clip",)).key(1)
    [tar] = copy.glob("*.tar")
    content = tar.read_bytes()
    at = content.index(f"{key}.pivots.npy".encode()) + 512  # the member's data
    tar.write_bytes(content[:at] + b"x" * 64 + content[at + 64 :])
    fit(fit_words(copy, tiny_sd_backbone, tmp_path / "fits"))
    summary = json.loads((tmp_path / "fits" / "summary.json").read_text())
    assert list(summary["unreadable"]) == [key] and summary["psnr_to_vae"]["n"] == 3


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory, tiny_sd_backbone: str) -> Path:
    """Shards of seven pictures of three shapes, one after another."""
    root = tmp_path_factory.mktemp("shaped")
    (root / "pictures").mkdir()
    for number, size in enumerate([(64, 64), (90, 60), (64, 64), (60, 90), (90, 60), (64, 64), (90, 60)]):
        Image.effect_noise(size, 60).convert("RGB").save(root / "pictures" / f"{number}.png")
        (root / "pictures" / f"{number}.txt").write_text(f"picture {number}")
    caption_folder(root / "pictures", root / "captioned", CaptionConfig(resolution=64, shapes="buckets"))
    wanted = EncodeConfig(backbone=tiny_sd_backbone, pivots=True, pivot_steps=STEPS, clip=CLIP)
    encode_shards(root / "captioned", root / "pivots", wanted)
    return root / "pivots"


def test_pictures_of_several_shapes_are_all_fitted_and_resumed(shaped: Path, tiny_sd_backbone: str, tmp_path: Path):
    words = [*fit_words(shaped, tiny_sd_backbone, tmp_path / "fits"), "--num", "7"]
    fit(words)
    names = {"fit-000000-000003", "fit-000005-000006", "fit-000001-000005", "fit-000006-000007", "fit-000003-000004"}
    files = {path.stem: path for path in (tmp_path / "fits").glob("fit-*.safetensors")}
    assert set(files) == names
    dataset = ShardDataset(str(shaped), ("pivots",))
    for index in range(7):
        assert len(read_fit(tmp_path / "fits", dataset.key(index))) == STEPS
    assert json.loads((tmp_path / "fits" / "summary.json").read_text())["psnr_to_vae"]["n"] == 7
    expected, times = load_file(files["fit-000001-000005"]), {n: p.stat().st_mtime_ns for n, p in files.items()}
    files["fit-000001-000005"].unlink()
    files["fit-000001-000005"].with_suffix(".json").unlink()
    fit(words)
    again = load_file(files["fit-000001-000005"])
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    assert all(files[name].stat().st_mtime_ns == times[name] for name in names - {"fit-000001-000005"})


def test_a_plan_is_of_the_largest_shape(shaped: Path, words: list[str], tmp_path: Path):
    sides = {}
    for name, place in {"shapes": str(shaped), "squares": "nowhere"}.items():
        config = parse(StyleDiffusionConfig, ["--run.folder", str(tmp_path / "run"), *words, "--data.shards", place])
        sides[name] = METHOD.plan().task(config).batch(2)["pivots"].shape[-2:]
    width, height = largest_size(str(shaped)) or (0, 0)
    assert sides == {"shapes": (height // 4, width // 4), "squares": (16, 16)} and width * height > 64 * 64


@pytest.mark.long
def test_a_plan_counts_the_largest_shape(shaped: Path, words: list[str], tmp_path: Path):
    found = {}
    for name, place in {"shapes": str(shaped), "squares": "nowhere"}.items():
        options = [f"--run.folder={tmp_path / 'run'}", *words, "--data.shards", place, f"--json={tmp_path / name}"]
        plan(
            [
                "--config=configs/stylediffusion/miniature.yaml",
                *options,
                "--gpus=1",
                "--gpu_memory=80",
                "--preset=one_gpu",
            ]
        )
        found[name] = json.loads((tmp_path / name).read_text())["footprint"]["saved"]
    assert found["shapes"] > 1.02 * found["squares"]


@pytest.mark.parametrize("option", [("--backbone.steps_offset", "0"), ("--backbone.num_steps", "5")])
def test_fits_refuse_pivots_of_other_steps(
    shards: Path, tiny_sd_backbone: str, tmp_path: Path, option: tuple[str, str]
):
    words = fit_words(shards, tiny_sd_backbone, tmp_path / "fits")
    with pytest.raises(SystemExit, match="steps-offset"):
        fit([*words, *option])


def test_a_fit_is_what_a_pipeline_inverts_with(run: Path, fits: Path, shards: Path):
    key = ShardDataset(str(shards), ("clip",)).key(2)
    values = read_fit(fits, key)
    stored = load_file(fits / "fit-000002-000004.safetensors")
    assert torch.equal(values[1].shift, stored[f"{key}.shift"][1:2].float())
    method, trained = read_run(run)
    pipeline = method.export().build(trained, Storage("float32"))
    image = torch.zeros(1, 3, 64, 64)
    assert pipeline.invert(image, "a red star", values=values).trajectory.values == values
    with pytest.raises(ValueError, match="values of 3 steps are given; the pipeline takes 4"):
        pipeline.invert(image, "a red star", values=values[:3])
    with pytest.raises(ValueError, match="holds no fit of 'nothing'"):
        read_fit(fits, "nothing")


@pytest.mark.parametrize("option", ["--backbone.dtype=bfloat16", "--backbone.gradient_checkpointing=true"])
def test_cheaper_trainings_have_nearly_equal_losses(run: Path, words: list[str], tmp_path: Path, option: str):
    train(["--run.folder", str(tmp_path / "run"), *words, option])
    tolerance = 1e-5 if "checkpointing" in option else 0.1
    for row, expected in zip(metrics(tmp_path / "run"), metrics(run), strict=True):
        assert row["rec"] == pytest.approx(expected["rec"], rel=tolerance)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=3 * tolerance)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float16", "bf16"), ("bfloat16", "fp16"), ("float16", "no"), ("float16", "fp16")]
)
def test_frozen_networks_keep_their_dtype_under_any_precision(
    words: list[str], tmp_path: Path, dtype: str, precision: str
):
    mixed = [f"--backbone.dtype={dtype}", f"--run.mixed_precision={precision}"]
    train(["--run.folder", str(tmp_path / "run"), *words, "--run.steps=1", "--log.preview_every=1", *mixed])
    assert metrics(tmp_path / "run")[0]["rec"] > 0 and list((tmp_path / "run" / "samples").iterdir())


def test_where_the_embeddings_go_is_exported(words: list[str], tmp_path: Path):
    folder = tmp_path / "run"
    train(
        [
            "--run.folder",
            str(folder),
            *words,
            "--run.steps",
            "1",
            "--objective.into",
            "both",
            "--objective.attention_blocks",
            "[up]",
        ]
    )
    method, trained = read_run(folder)
    pipeline = method.export().build(trained, Storage("float32"))
    assert pipeline.config.into == "both" and list(pipeline.config.attention_blocks) == ["up"]
    assert pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star", refine=1).trajectory.into == "both"


def test_maps_that_no_layer_has_are_refused(words: list[str], tmp_path: Path):
    with pytest.raises(SystemExit, match=r"no cross-attention maps of 16 x 16; set objective\.attention_side"):
        train(["--run.folder", str(tmp_path / "run"), *words, "--objective.attention_side", "16"])


def test_two_text_encoders_are_refused(words: list[str], tiny_backbone: str, tmp_path: Path):
    with pytest.raises(SystemExit, match="two text encoders"):
        train(["--run.folder", str(tmp_path / "run"), *words, "--backbone.path", tiny_backbone])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_refinement_of_a_half_precision_pipeline(run: Path, dtype: torch.dtype):
    method, trained = read_run(run)
    pipeline = method.export().build(trained, Storage("float32")).to(dtype)
    inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star", refine=2)
    assert pipeline.reconstruct(inversion)[0].size == (64, 64)


def test_an_edit_takes_weights_and_a_local_blend(run: Path):
    method, trained = read_run(run)
    pipeline = method.export().build(trained, Storage("float32"))
    for name, layer in attention_layers(pipeline.unet).items():  # so that attention is somewhere and not everywhere
        if "attn2" in name:
            layer.to_q.weight.data *= 1000
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = pipeline.invert(image, "a red star")

    def edited(**options: object) -> np.ndarray:
        return np.asarray(pipeline.edit(inversion, "a blue star", **options)[0]).astype(int)

    plain, kept = edited(), np.asarray(pipeline.reconstruct(inversion)[0]).astype(int)
    assert np.abs(edited(weights={"blue": 5.0}) - plain).max() > 0
    blended = edited(blend=["red", "blue"])
    assert np.abs(blended - plain).max() > 0
    assert np.abs(blended - kept).mean() < np.abs(plain - kept).mean()
    with pytest.raises(ValueError, match="blend names green, which neither 'a red star' nor 'a blue star' has"):
        edited(blend=["green"])
    with pytest.raises(ValueError, match="'green' is not in the prompt"):
        edited(weights={"green": 2.0})


def test_style_goes_to_other_pictures(run: Path):
    method, trained = read_run(run)
    pipeline = method.export().build(trained, Storage("float32"))
    style, content = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = pipeline.invert(style, "a red star")
    few, many = (np.asarray(pipeline.transfer_style(inversion, content, "a house", share=x)[0]) for x in (0.0, 1.0))
    assert few.shape == (64, 64, 3) and (few != many).any()
    with pytest.raises(ValueError, match="2 content images for 1 style images"):
        pipeline.transfer_style(inversion, torch.cat([content, content]), "a house")


def test_fits_of_another_config_are_refused(fits: Path, shards: Path, tiny_sd_backbone: str):
    words = fit_words(shards, tiny_sd_backbone, fits)
    with pytest.raises(SystemExit, match="made with other settings"):
        fit([*words, "--schedule.lr", "0.1"])
