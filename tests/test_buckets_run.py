"""TurboEdit on pictures of several shapes, as its users run it: training, resume, two ranks, plan, export, edits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.command import parse
from data.shards.dataset import largest_size
from eval.harness.exports import load_encoder
from models.shapes import Cutout
from tests.processes import finish, start_ranks
from train.export import export, read_run
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.plan import PLAN
from train.methods.turboedit.task import TurboEditTask
from train.plan import main as plan
from train.turboedit import main as train

SHAPES = [(90, 60), (60, 90), (64, 64), (130, 70)]
STEPS = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    draw = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for number in range(24):
        width, height = SHAPES[number % len(SHAPES)]
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(
            root / "pictures" / f"{number:02d}.png"
        )
        (root / "pictures" / f"{number:02d}.txt").write_text(f"picture {number}")
    caption_folder(root / "pictures", root / "captioned", CaptionConfig(resolution=64, shapes="buckets", unit_size=8))
    encode_shards(
        root / "captioned", root / "latents", EncodeConfig(backbone=tiny_backbone, keep_images=True, prompts=True)
    )
    return root / "latents"


@pytest.fixture(scope="module")
def words(shards: Path, tiny_backbone: str) -> list[str]:
    return [
        *(f"--run.steps={STEPS}", "--run.global_batch=4", "--run.micro_batch=2", f"--data.shards={shards}"),
        *("--data.workers=0", f"--generator.path={tiny_backbone}", "--generator.dtype=float32", "--optim.lr=1e-3"),
        *("--log.log_every=1", "--log.checkpoint_every=2", "--log.preview_every=3", "--objective.own_share=0.5"),
    ]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train([f"--run.folder={folder}", *words])
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{STEPS:06d}" / "model.safetensors")


def test_a_stopped_training_goes_on_exactly(run: Path, words: list[str], tmp_path: Path):
    for steps in (2, STEPS):
        train([f"--run.folder={tmp_path / 'run'}", *words, f"--run.steps={steps}"])
    whole, resumed = weights(run), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert list((run / "samples").iterdir())


def test_two_processes_train_as_one(run: Path, words: list[str], tmp_path: Path):
    finish(start_ranks(2, "-m", "train.turboedit", f"--run.folder={tmp_path / 'two'}", *words))
    whole, halves = weights(run), weights(tmp_path / "two")
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-4, atol=1e-5)


def test_cached_prompts_train_alike(run: Path, words: list[str], tmp_path: Path):
    train([f"--run.folder={tmp_path / 'run'}", *words, "--generator.cached_prompts=true", "--run.steps=2"])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(expected[:2], rel=1e-2)  # embeddings are stored in float16


@pytest.mark.parametrize("conditioning", ["original", "uncropped"])
def test_sdxl_is_told_the_photographs_size_and_crop(words: list[str], tmp_path: Path, conditioning: str):
    told = f"--generator.size_conditioning={conditioning}"
    task = TurboEditTask(parse(TurboEditConfig, [f"--run.folder={tmp_path}", *words, told]), "cpu")
    info = {"original_size": [130, 70], "crop": [7, 0, 116, 70]}
    batch = {"latent": torch.zeros(2, 4, 12, 20), "caption": ["a", "b"], "info": [info, info]}
    prompt = task._prompt(batch, task._sizes(batch))
    expected = (70, 130, 0, round(7 * 80 / 116), 48, 80) if conditioning == "original" else (48, 80, 0, 0, 48, 80)
    assert prompt.time_ids.tolist() == [list(expected)] * 2
    assert ("info" in task.fields) == (conditioning == "original")


def test_an_export_edits_in_the_pictures_own_shape(run: Path, tmp_path: Path):
    export(run, tmp_path / "out")
    pipeline = load_encoder(tmp_path / "out")
    assert pipeline.config.size_conditioning == "original"
    photo = Image.effect_noise((260, 140), 60).convert("RGB")
    inversion = pipeline.invert(photo, "picture 3")
    height, width = pipeline.preprocess(photo).shape[-2:]
    assert (height, width) != (64, 64) and width > height
    left, top, kept_width, kept_height = 0, 0, 260, 140
    assert inversion.prompt.time_ids[0, :2].tolist() == [140, 260]
    assert inversion.prompt.time_ids[0, 4:].tolist() == [height, width]
    edited = pipeline.edit(inversion, "picture 4", mask="auto").images[0]
    assert edited.size == (width, height)
    assert Cutout((140, 260), (left, top, kept_width, kept_height), (height, width)).conditioning.crop == (0, 0)


def test_a_run_of_before_the_option_is_uncropped(words: list[str], tmp_path: Path):
    folder = tmp_path / "run"
    options = [f"--run.folder={folder}", *words, "--generator.size_conditioning=uncropped", "--run.steps=1"]
    train(options)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["generator"]["size_conditioning"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert read_run(folder)[1].config.generator.size_conditioning == "uncropped"
    with pytest.raises(SystemExit, match=r"generator\.size_conditioning: 'uncropped' -> 'original'"):
        train([f"--run.folder={folder}", *words, "--run.steps=2"])
    train([*options, "--run.steps=2"])


def test_a_plan_is_of_the_largest_shape(words: list[str], tmp_path: Path):
    assert largest_size(words_of(words)["data.shards"]) == (96, 48)
    for place, sides in ([], (12, 24)), (["--data.shards=nowhere"], (16, 16)):
        config = parse(TurboEditConfig, [f"--run.folder={tmp_path / 'run'}", *words, *place])
        assert PLAN.task(config).batch(2)["latent"].shape[-2:] == sides


@pytest.mark.long
def test_a_plan_counts_the_largest_shape(words: list[str], tmp_path: Path):
    found = {}
    for name, more in {"shapes": [], "squares": ["--data.shards=nowhere"]}.items():
        options = [f"--run.folder={tmp_path / 'run'}", *words, *more, f"--json={tmp_path / name}"]
        plan(["--config=configs/turboedit/miniature.yaml", *options, "--gpus=1", "--gpu_memory=80", "--preset=one_gpu"])
        found[name] = json.loads((tmp_path / name).read_text())["footprint"]["saved"]
    assert largest_size(words_of(words)["data.shards"]) == (96, 48)
    assert found["shapes"] / found["squares"] == pytest.approx(48 * 96 / 64**2, rel=0.03)


def words_of(words: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in words)
