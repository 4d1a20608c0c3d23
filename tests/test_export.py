"""An export works without this project, and says what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import HF_MODULES_CACHE
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import load_file, save_file

import models
from data.jobs.sharing import LOCK
from eval.harness.exports import load_encoder
from models.backbone import Backbone
from models.carried_code import source_files
from models.noise_encoder import NoiseEncoder
from models.turboedit_pipeline import TurboEditPipeline
from tests.exported_runs import NEWEST, STEPS
from tests.processes import run as run_python
from tests.snippets import run_snippet
from train.export import export, read_run
from train.exports.proof import ExportError, networks
from train.method import Storage
from train.methods.lora import load_adapter
from train.methods.turboedit.task import build_encoder
from train.run.weights import load_trained

LOADER = """
import sys, torch
from diffusers import DiffusionPipeline
assert not any("inversion" in p for p in sys.path), sys.path
for folder, file in zip(sys.argv[1::2], sys.argv[2::2]):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
    inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
    edited = pipeline.edit(inversion, "a blue star", mask="auto")
    assert edited.images[0].size == (64, 64)
    torch.save([*inversion.noises, *inversion.reconstructions], file)
    print(type(pipeline).__module__)
"""


@pytest.fixture(scope="module")
def alone(turboedit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder alone."""
    out = tmp_path_factory.mktemp("exported") / "alone"
    export(turboedit_run, out, encoder_only=True)
    return out


Made = tuple[str, list[torch.Tensor]]
"""Module of a pipeline's class, and its inversion."""


@pytest.fixture(scope="module")
def strangers(turboedit_export: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """What a process that sees this project nowhere makes of the whole export and of the encoder alone."""
    folder = tmp_path_factory.mktemp("stranger")
    files = [folder / "whole.pt", folder / "alone.pt"]
    words = ["-c", LOADER, turboedit_export, files[0], alone, files[1]]
    done = run_python(*words, fresh=True, folder=folder, PYTHONPATH=None, HF_HOME=str(folder / "hf"))
    return [*zip(done.stdout.split()[-2:], map(torch.load, files), strict=True)]


def test_stock_diffusers_loads_it_offline_without_this_project(strangers: list[Made], turboedit_run: Path):
    origin, found = strangers[0]
    assert "diffusers_modules" in origin, "the class came from this clone and not from the folder"
    method, weights = read_run(turboedit_run)
    pipeline = method.export().build(weights, Storage("float16"))
    pipeline.set_progress_bar_config(disable=True)
    for module in networks(pipeline).values():
        module.float()
    expected = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
    for mine, theirs in zip([*expected.noises, *expected.reconstructions], found, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)


def test_the_encoder_alone_is_loaded_by_the_same_call_without_this_project(strangers: list[Made], alone: Path):
    origin, found = strangers[1]
    assert "diffusers_modules" in origin
    expected = load_encoder(alone).invert(torch.zeros(1, 3, 64, 64), "a red star")
    for mine, theirs in zip([*expected.noises, *expected.reconstructions], found, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def split(turboedit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """An export in bfloat16 of small files, not averaged, and the loads during which others had to wait."""
    held, out = [], tmp_path_factory.mktemp("split") / "out"

    def load(*words: Any, **options: Any) -> DiffusionPipeline:
        if options.get("trust_remote_code"):
            with pytest.raises(Timeout):
                FileLock(Path(HF_MODULES_CACHE) / LOCK).acquire(timeout=0)
            held.append(words)
        return found(*words, **options)

    found = DiffusionPipeline.from_pretrained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionPipeline, "from_pretrained", load)
        patch.setattr("train.exports.pipeline.MAX_FILE_SIZE", "200KB")
        export(turboedit_run, out, averaged=False, dtype="bfloat16")
    return out, held


def test_no_other_export_copies_code_meanwhile(split: tuple[Path, list]):
    assert split[1]


def test_readme_page_and_card_edit_a_photo_as_typed(
    turboedit_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    readme = Path("README.md").read_text(encoding="utf-8")
    card = (turboedit_export / "README.md").read_text(encoding="utf-8")
    page = Path("docs/pipeline.md").read_text(encoding="utf-8")
    for name in ("photo", "a", "b"):
        Image.new("RGBA", (80, 40), (255, 0, 0, 100)).save(tmp_path / f"{name}.jpg", "PNG")
    monkeypatch.chdir(tmp_path)
    documents = {card: ["edited.png"], page: ["edited.png"], readme: ["edited.png", "both.png"]}
    for document, pictures in documents.items():
        names = run_snippet(document, turboedit_export)
        assert [Image.open(picture).size for picture in pictures] == [(96, 48)] * len(pictures)
        (tmp_path / "edited.png").unlink()
    assert names["weak"].size == names["strong"].size == (96, 48)


def test_the_stock_sdxl_pipeline_accepts_the_folder(turboedit_export: Path):
    pipeline = StableDiffusionXLPipeline.from_pretrained(turboedit_export, trust_remote_code=True)
    assert pipeline.unet.config.in_channels == 4


def test_weights_are_the_averaged_ones_and_safetensors_only(turboedit_export: Path, turboedit_run: Path):
    stored = load_file(turboedit_export / "encoder" / "diffusion_pytorch_model.safetensors")
    averages = load_file(turboedit_run / "checkpoints" / NEWEST / "ema.safetensors")
    for name, weight in stored.items():
        assert torch.equal(weight, averages[f"unet.{name}"].half()), name
    weights = load_file(turboedit_run / "checkpoints" / NEWEST / "model.safetensors")
    assert any(not torch.equal(weights[name], averages[name]) for name in weights), "the average never moved"
    assert not [path for path in turboedit_export.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


def noises(encoder: NoiseEncoder, backbone: Backbone) -> torch.Tensor:
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.stack(encoder(x0, -x0, backbone.encode_text(["a star", "a cube"]), torch.tensor([999, 249])))


def adapted(lora_run: Path) -> tuple[NoiseEncoder, Backbone]:
    """F of the run with its adapters laid over G, as the training had it, with its averages."""
    _, weights = read_run(lora_run)
    backbone = Backbone.load(weights.config.generator.path)
    encoder = build_encoder(backbone.unet, backbone.schedule, weights.config.encoder, seed=0)
    load_trained(encoder, dict(weights.weights))
    return encoder, backbone


def test_a_lora_checkpoint_holds_adapters_and_two_convolutions_alone(lora_run: Path):
    names = load_file(lora_run / "checkpoints" / NEWEST / "model.safetensors")
    assert all(".lora_" in name or name.startswith(("unet.conv_in.", "unet.conv_out.")) for name in names)


def test_adapters_are_merged_into_a_stock_unet(lora_run: Path, tmp_path: Path):
    export(lora_run, tmp_path / "merged", dtype="float32")
    stored = load_file(tmp_path / "merged" / "encoder" / "diffusion_pytorch_model.safetensors")
    encoder, backbone = adapted(lora_run)
    names = [name for name in stored if "lora" in name or "base_layer" in name]
    assert not names, names
    stock = NoiseEncoder.from_generator(backbone.unet, backbone.schedule)
    stock.unet.load_state_dict(stored, strict=True)
    torch.testing.assert_close(noises(stock, backbone), noises(encoder, backbone), rtol=1e-4, atol=1e-5)
    assert load_encoder(tmp_path / "merged").encoder.config.in_channels == 8


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.long)])
def test_adapters_apart_are_small_and_come_back(
    lora_run: Path, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
):
    export(lora_run, tmp_path / "apart", dtype=dtype, lora="apart")
    assert {path.name for path in (tmp_path / "apart").iterdir()} == {
        "README.md",
        "pytorch_lora_weights.safetensors",
        "trained_in_full.safetensors",
    }
    encoder, backbone = adapted(lora_run)
    again = NoiseEncoder.from_generator(backbone.unet, backbone.schedule, shared=True)
    load_adapter(again.unet, tmp_path / "apart")
    exact = dict(rtol=0.0, atol=0.0) if dtype == "float32" else dict(rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(noises(again, backbone), noises(encoder, backbone), **exact)
    card = (tmp_path / "apart" / "README.md").read_text()
    assert "Adapters of rank 4" in card and f"step {STEPS}, stored in {dtype}" in card
    monkeypatch.chdir(Path(tiny_backbone).parent)
    typed = run_snippet(card, tmp_path / "apart")
    torch.testing.assert_close(noises(typed["encoder"], typed["backbone"]), noises(encoder, backbone), **exact)


def test_the_page_needs_a_pipeline(lora_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--lora apart writes adapters without a pipeline, which the page needs"):
        export(lora_run, tmp_path / "out", lora="apart", space=tmp_path / "space")
    assert not list(tmp_path.iterdir())


def test_a_full_fine_tune_has_no_adapters(turboedit_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has no adapters"):
        export(turboedit_run, tmp_path / "out", lora="apart")


def test_large_components_become_several_files(split: tuple[Path, list], turboedit_run: Path):
    encoder = split[0] / "encoder"
    files = sorted(encoder.glob("*.safetensors"))
    assert len(files) > 1 and (encoder / "diffusion_pytorch_model.safetensors.index.json").is_file()
    weights = load_file(turboedit_run / "checkpoints" / NEWEST / "model.safetensors")
    stored = {name: value for file in files for name, value in load_file(file).items()}
    assert all(torch.equal(stored[name.removeprefix("unet.")], value.bfloat16()) for name, value in weights.items())


@pytest.mark.long
def test_it_needs_no_deepspeed(turboedit_run: Path, tmp_path: Path):
    program = "import sys; sys.modules['deepspeed'] = None; from train.export import main; main()"
    run_python("-c", program, turboedit_run, tmp_path / "out", "--averaged=false", "--dtype=bfloat16", fresh=True)
    stored = load_file(tmp_path / "out" / "encoder" / "diffusion_pytorch_model.safetensors")
    weights = load_file(turboedit_run / "checkpoints" / NEWEST / "model.safetensors")
    assert all(torch.equal(stored[name.removeprefix("unet.")], value.bfloat16()) for name, value in weights.items())


def test_the_class_is_named_for_stock_loading(turboedit_export: Path):
    module, name = json.loads((turboedit_export / "model_index.json").read_text())["_class_name"]
    assert name == "TurboEditPipeline" and module.startswith("turboedit_pipeline_")
    assert (turboedit_export / f"{module}.py").is_file()


def test_every_sibling_that_the_pipeline_imports_is_exported():
    source = (Path(models.__path__[0]) / "turboedit_pipeline.py").read_text()
    imported = {line.split()[1][1:] for line in source.splitlines() if line.strip().startswith("from .")}
    found = source_files(TurboEditPipeline)
    assert {path.stem for path in found} == {*imported, "turboedit_pipeline"}
    assert {path.parent for path in found} == {Path(models.__path__[0])}


def test_a_difference_after_reloading_is_an_error(turboedit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = TurboEditPipeline.save_pretrained

    def save_and_damage(self: TurboEditPipeline, folder: Path, **options: object) -> None:
        save(self, folder, **options)
        path = Path(folder) / "encoder" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights["conv_out.bias"] += 1
        save_file(weights, path)

    monkeypatch.setattr(TurboEditPipeline, "save_pretrained", save_and_damage)
    with pytest.raises(ExportError, match="weights of encoder differ"):
        export(turboedit_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_outputs_of_the_same_weights_are_an_error(
    turboedit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = TurboEditPipeline.save_pretrained

    def save_and_mistake(self: TurboEditPipeline, folder: Path, **options: object) -> None:
        save(self, folder, **options)
        path = Path(folder) / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.0121}))

    monkeypatch.setattr(TurboEditPipeline, "save_pretrained", save_and_mistake)
    with pytest.raises(ExportError, match="outputs differ"):
        export(turboedit_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ValueError, match="not a run folder"):
        export(tmp_path, tmp_path / "out")


def test_existing_out_and_missing_checkpoint_are_clear_errors(turboedit_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="exists already"):
        export(turboedit_run, tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "config.yaml").write_text((turboedit_run / "config.yaml").read_text())
    with pytest.raises(ValueError, match="no checkpoint yet"):
        export(fresh, tmp_path / "out")


def test_command_line_has_no_traceback(tmp_path: Path):
    done = run_python("-m", "train.export", tmp_path / "none", tmp_path / "out", status=1)
    assert "not a run folder" in done.stderr and "Traceback" not in done.stderr
