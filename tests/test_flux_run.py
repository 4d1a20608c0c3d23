"""The FLUX families the whole way: encode, train, plan, export, invert, edit and evaluate on tiny random pipelines."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.command import parse
from data.scenes import write_scenes
from eval.edit import edit_pictures
from eval.harness.exports import load_encoder
from eval.photo_edits.options import PhotoEditOptions
from eval.reconstruction import evaluate_reconstruction
from tests.conftest import save
from tests.exported_runs import STEPS, trained
from tests.tiny_flux import save_tiny_flux, save_tiny_flux2
from tests.turboedit_runs import losses
from train.export import export
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.plan import make_plan
from train.planning.options import PlanOptions

SIGMAS = "[1.0,0.75,0.5,0.25]"


@pytest.fixture(scope="module", params=["flux", "flux2"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pipeline of a family, scenes, and their shards with latents and prompts."""
    root = tmp_path_factory.mktemp(request.param)
    write = {"flux": save_tiny_flux, "flux2": save_tiny_flux2}[request.param]
    (root / "base").mkdir()
    save(write, root / "base", seed=0)
    write_scenes(root / "scenes", num=16)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    config = EncodeConfig(backbone=str(root / "base"), prompts=True, keep_images=True)
    encode_shards(root / "captioned", root / "shards", config)
    return root


def options(place: Path) -> list[str]:
    return [
        *("--run.steps", str(STEPS), "--run.global_batch", "4", "--run.micro_batch", "2", "--data.workers", "0"),
        *("--data.shards", str(place / "shards"), "--generator.path", str(place / "base")),
        *("--generator.dtype", "float32", "--generator.timesteps", SIGMAS, "--objective.own_share", "0.5"),
        *("--optim.lr", "1e-3", "--log.checkpoint_every", "2", "--log.preview_every", "2", "--log.log_every", "1"),
    ]


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A training that encodes its captions itself."""
    return trained(place / "run", options(place))


@pytest.fixture(scope="module")
def exported(place: Path, run: Path) -> Path:
    export(run, place / "export")
    return place / "export"


def test_cached_prompts_train_as_those_that_are_encoded_in_each_step(place: Path, run: Path):
    cached = trained(place / "cached", options(place), "--generator.cached_prompts", "true")
    assert losses(cached) == pytest.approx(losses(run), rel=1e-2)
    assert all(loss < 100 for loss in losses(run))


def test_adapters_over_the_first_blocks_in_8_bits_train_and_are_exported(place: Path):
    words = ["--encoder.lora.rank", "2", "--encoder.blocks", "[1,1]", "--generator.quantize", "int8"]
    run = trained(place / "lora", options(place), *words, "--encoder.gradient_checkpointing", "true")
    export(run, place / "merged")
    pipeline = load_encoder(place / "merged")
    assert pipeline.encoder.config.num_layers == pipeline.encoder.config.num_single_layers == 1
    export(run, place / "adapter", lora="apart")


def test_the_plan_counts_work_memory_and_what_cached_text_costs(place: Path):
    words = [*options(place), "--run.folder", "none", "--generator.cached_prompts", "true"]
    plan = make_plan(METHOD, parse(TurboEditConfig, words), PlanOptions())
    assert plan.trained > 0 and plan.frozen["G"] > 0 and plan.frozen["VAE"] > 0
    assert plan.model.total > 0 and plan.footprint.saved > 0
    assert plan.shards is not None and not plan.shards.problems


def test_the_export_inverts_and_edits_by_prompts_and_strengths(exported: Path):
    pipeline = load_encoder(exported)
    assert pipeline.timesteps == (1.0, 0.75, 0.5, 0.25) and pipeline.step_counts == (1, 2, 4)
    inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
    made = pipeline.edit(inversion, ["a blue star"] * 2, strength=[0.5, 1.0], mask="auto")
    assert len(made.images) == 2 and made.images[0].size == (64, 64)
    kept = pipeline.edit(inversion, "a red star", outside="reconstruction", output_type="latent").images
    torch.testing.assert_close(kept, inversion.reconstructions[-1], rtol=1e-4, atol=1e-4)


def test_what_reads_attention_says_that_it_needs_a_unet(exported: Path):
    pipeline = load_encoder(exported)
    inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
    with pytest.raises(ValueError, match="no UNet"):
        pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star", attention=True)
    for wish in ({"mask": "attention"}, {"frozen_steps": 1}):
        with pytest.raises(ValueError, match="no UNet"):
            pipeline.edit(inversion, "a blue star", **wish)


def test_the_evaluations_take_the_export(place: Path, exported: Path):
    found = evaluate_reconstruction(
        str(exported), place / "captioned", place / "report", num=2, editors=("turboedit", "ddim"), device="cpu"
    )
    rows = {(row["editor"], row["steps"]) for row in found["table"]}
    assert {("turboedit", 4), ("ddim", 4), ("vae", None)} <= rows


def test_eval_edit_takes_the_export(place: Path, exported: Path):
    (picture,) = sorted((place / "scenes").rglob("*.png"))[:1]
    wish: dict[str, Any] = {"image": (str(picture),), "prompt": ("a red star",), "target": ("a blue star",)}
    edit_pictures(PhotoEditOptions(encoder=str(exported), out=place / "edited", device="cpu", mask="auto", **wish))
    (record,) = [json.loads(path.read_text()) for path in (place / "edited").glob("*.json")]
    assert record["inversion"]["nfe"] == 8
