"""Z-Image and SANA-Sprint the whole way: encode, plan, train, export, invert, edit and evaluate on tiny pipelines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.command import parse
from data.scenes import write_scenes
from data.shards.dataset import ShardDataset
from eval.edit import edit_pictures
from eval.harness.exports import load_encoder
from eval.photo_edits.options import PhotoEditOptions
from eval.reconstruction import evaluate_reconstruction
from tests.conftest import save
from tests.exported_runs import STEPS, trained
from tests.tiny_sana import save_tiny_sana, write_sana_configs
from tests.tiny_z_image import save_tiny_z_image, write_z_image_configs
from tests.turboedit_runs import losses
from train.export import export
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.planning.budget import Budget, Machine

TIMESTEPS = {"z_image": (1.0, 0.9, 0.75, 0.5), "sana": (1.5708, 1.1781, 0.7854, 0.3927)}


@pytest.fixture(scope="module", params=["z_image", "sana"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def place(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the family's tiny pipeline, scenes, and their shards with latents and prompts."""
    root = tmp_path_factory.mktemp(family)
    (root / "base").mkdir()
    save({"z_image": save_tiny_z_image, "sana": save_tiny_sana}[family], root / "base", seed=0)
    write_scenes(root / "scenes", num=16)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    encode_shards(root / "captioned", root / "shards", EncodeConfig(backbone=str(root / "base"), prompts=True))
    return root


@pytest.fixture(scope="module")
def options(family: str, place: Path) -> list[str]:
    timesteps = ",".join(map(str, TIMESTEPS[family]))
    return [
        *("--run.steps", str(STEPS), "--run.global_batch", "4", "--run.micro_batch", "2", "--data.workers", "0"),
        *("--data.shards", str(place / "shards"), "--generator.path", str(place / "base")),
        *("--generator.dtype", "float32", "--generator.timesteps", f"[{timesteps}]", "--objective.own_share", "0.5"),
        *("--optim.lr", "1e-3", "--log.checkpoint_every", "2", "--log.preview_every", "2", "--log.log_every", "1"),
    ]


@pytest.fixture(scope="module")
def run(place: Path, options: list[str]) -> Path:
    """A training that encodes its captions itself."""
    return trained(place / "run", options)


@pytest.fixture(scope="module")
def exported(place: Path, run: Path) -> Path:
    export(run, place / "export")
    return place / "export"


def test_cached_prompts_train_as_those_that_are_encoded_in_each_step(place: Path, options: list[str], run: Path):
    sample = ShardDataset(place / "shards", ("prompt", "mask"))[0]
    assert 0 < sample["mask"].sum() < len(sample["mask"]) == len(sample["prompt"])
    cached = trained(place / "cached", options, "--generator.cached_prompts", "true")
    assert losses(cached) == pytest.approx(losses(run), rel=1e-2)


def test_adapters_train_and_are_exported(place: Path, options: list[str]):
    words = ["--encoder.lora.rank", "2", "--generator.quantize", "int8", "--encoder.gradient_checkpointing", "true"]
    run = trained(place / "lora", options, *words)
    export(run, place / "merged")
    export(run, place / "adapter", lora="apart")


@torch.no_grad()
def test_the_export_inverts_and_edits(family: str, exported: Path):
    pipeline = load_encoder(exported)
    assert pipeline.timesteps == TIMESTEPS[family]
    inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
    made = pipeline.edit(inversion, ["a blue star on sand"] * 2, strength=[0.5, 1.0], mask="auto")
    assert len(made.images) == 2 and made.images[0].size == (64, 64)
    kept = pipeline.edit(inversion, "a red star", outside="reconstruction", output_type="latent").images
    torch.testing.assert_close(kept, inversion.reconstructions[-1], rtol=1e-4, atol=1e-4)


def test_the_evaluations_take_the_export(place: Path, exported: Path):
    found = evaluate_reconstruction(
        str(exported), place / "captioned", place / "report", num=2, editors=("turboedit",), device="cpu"
    )
    assert {("turboedit", 4), ("vae", None)} <= {(row["editor"], row["steps"]) for row in found["table"]}
    (picture, *_) = sorted((place / "scenes").rglob("*.png"))
    wish: dict[str, Any] = {"image": (str(picture),), "prompt": ("a red star",), "target": ("a blue star",)}
    edit_pictures(PhotoEditOptions(encoder=str(exported), out=place / "edited", device="cpu", mask="auto", **wish))
    (record,) = [json.loads(path.read_text()) for path in (place / "edited").glob("*.json")]
    assert record["inversion"]["nfe"] == 8


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "write", "gigabytes"),
    [("z_image_turbo", write_z_image_configs, 80.0), ("sana_sprint", write_sana_configs, 24.0)],
)
def test_a_recipe_is_planned_at_its_true_size(recipe: str, write: Any, gigabytes: float, tmp_path: Path):
    words = ["--config", f"configs/turboedit/{recipe}.yaml", f"--generator.path={write(tmp_path)}"]
    found = Budget(METHOD, Machine(1, 1, gigabytes)).alone(parse(TurboEditConfig, words))
    assert found.fits, found
