"""`python -m train.plan` as its users run it, and the arithmetic behind it by hand."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.command import parse
from data.scenes import write_scenes
from scripts.bench.random_backbones import write_sdxl_configs
from tests.processes import run
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.planning.budget import Budget, Machine, PresetFit
from train.planning.memory import PRESETS, ZERO_BUCKET, ZERO_LIVE, Memory, TrainedParameters, memory
from train.planning.meta_models import MetaModels
from train.run.config import with_option

CONFIG = "configs/turboedit/miniature.yaml"
SAMPLES = 40


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    root = tmp_path_factory.mktemp("plan")
    write_scenes(root / "scenes", num=SAMPLES)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    encode_shards(root / "captioned", root / "shards", EncodeConfig(backbone=tiny_backbone))
    return root / "shards"


def plan(*options: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "train.plan", *options, status=status)


def of(name: str, trained: TrainedParameters, gpus: int, **others: float) -> Memory:
    return memory(PRESETS[name], gpus, 8, trained, others)


def test_memory_by_hand():
    """A billion parameters in bf16 with an average: GB are bytes a parameter."""
    trained = TrainedParameters(10**9, bf16=True)
    one = of("one_gpu", trained, 1, activations=3e9)
    assert one.gpu == {
        "weights": 4e9, "gradients": 4e9, "optimizer": 8e9, "average": 4e9, "buffers": 0, "activations": 3e9
    }  # fmt: skip
    assert (one.total, one.host) == (23e9, 0)
    assert of("ddp", trained, 8).total == 20e9
    assert of("zero1", trained, 8).total == 2e9 + 2e9 + (4 + 4 + 8 + 4) / 8 * 1e9 + 0.4e9
    assert of("zero2", trained, 8).total == 2e9 + (2 + 4 + 4 + 8 + 4) / 8 * 1e9 + 0.4e9
    assert of("zero3", trained, 8).total == (2 + 2 + 4 + 4 + 8 + 4) / 8 * 1e9 + 0.4e9 + 1e9
    offloaded = of("zero2_offload", trained, 8)
    assert (offloaded.total, offloaded.host) == (2e9 + 0.4e9, 20e9)
    offloaded = of("zero3_offload", trained, 8)
    assert (offloaded.total, offloaded.host) == (0.4e9 + 1e9, 22e9)


def test_buffers_are_those_of_deepspeeds_files():
    for path in Path("configs/deepspeed").glob("*.json"):
        settings = json.loads(path.read_text())["zero_optimization"]
        assert settings["overlap_comm"] and 2 * settings["reduce_bucket_size"] == ZERO_BUCKET
        assert settings["stage"] < 3 or settings["stage3_max_live_parameters"] == ZERO_LIVE
    assert set(PRESETS) | {"cpu"} == {path.stem for path in Path("configs/accelerate").glob("*.yaml")}


def test_memory_follows_what_is_trained():
    assert of("ddp", TrainedParameters(10**9, bf16=True, adam=2), 8).total == 14e9
    assert of("ddp", TrainedParameters(10**9, bf16=True, average="none"), 8).total == 16e9
    on_host = of("ddp", TrainedParameters(10**9, bf16=True, average="cpu"), 8)
    assert (on_host.total, on_host.host) == (16e9, 32e9)  # every process has its own
    assert of("zero1", TrainedParameters(10**9, bf16=False), 8).gpu["weights"] == 4e9
    assert of("zero1", TrainedParameters(10**6, bf16=True), 8).gpu["buffers"] == 2e6


def verdicts(*words: str) -> dict[str, PresetFit]:
    config = parse(TurboEditConfig, ["--config", CONFIG, *words])
    return {verdict.preset: verdict for verdict in Budget(METHOD, Machine(1, 1, 80)).judge(config)}


@pytest.mark.long
def test_options_change_what_is_held(tiny_backbone: str):
    path = f"--generator.path={tiny_backbone}"
    plain, eight_bit = verdicts(path), verdicts(path, "--optim.kind=adamw8bit")
    on_cpu, lora = verdicts(path, "--ema.device=cpu"), verdicts(path, "--encoder.lora.rank=2")
    parts = {
        name: found["one_gpu"].memory for name, found in zip("pecl", (plain, eight_bit, on_cpu, lora), strict=True)
    }
    assert all(part is not None for part in parts.values())
    assert parts["e"].gpu["optimizer"] == parts["p"].gpu["optimizer"] / 4
    assert parts["c"].gpu["average"] == 0 and parts["c"].host == parts["p"].gpu["average"]
    assert parts["l"].gpu["weights"] < 0.2 * parts["p"].gpu["weights"] and parts["l"].gpu["G"] == parts["p"].gpu["G"]
    assert "adamw8bit" in eight_bit["zero2"].refusal and "LoRA" in lora["zero3"].refusal
    assert not plain["zero3"].refusal


CARDS = sorted(Path("configs/turboedit").glob("sdxl_*gb.yaml"))


@pytest.mark.long
@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_cards_config_fits_the_card_of_its_name(path: Path, tmp_path: Path):
    gigabytes = float(path.stem.removeprefix("sdxl_").removesuffix("gb"))
    model = write_sdxl_configs(tmp_path / "sdxl")
    config = parse(TurboEditConfig, ["--config", str(path), f"--generator.path={model}"])
    found = Budget(METHOD, Machine(1, 1, gigabytes)).alone(config)
    assert found.fits and found.excess_gb < -0.05 * gigabytes
    assert found.memory is not None
    said = re.search(r"([\d.]+) GB by train\.plan", path.read_text().split("run:")[0])
    assert said is not None and float(said[1]) == pytest.approx(found.memory.total / 1e9, abs=0.1)


def test_a_plan_of_real_shards(shards: Path, tiny_backbone: str, tmp_path: Path):
    words = [f"--config={CONFIG}", f"--data.shards={shards}", f"--generator.path={tiny_backbone}"]
    small = [
        "--run.global_batch=32",
        "--run.micro_batch=4",
        "--run.steps=100",
        "--log.checkpoint_every=10",
        "--log.keep_every=50",
        "--data.workers=2",
    ]
    done = plan(*words, *small, "--gpu-memory=16", "--measure=1", f"--json={tmp_path / 'plan.json'}")
    assert done.stdout.splitlines()[-1].startswith("yes: one_gpu, ddp, zero1")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["shards"]["samples"] == SAMPLES and found["shards"]["problems"] == []
    assert found["shards"]["fingerprints"] == f"those of {tiny_backbone}"
    assert found["measured"]["counted"] == found["measured"]["real"]
    assert found["measured"]["seconds"] > 0
    verdicts = {verdict["preset"]: verdict for verdict in found["verdicts"]}
    assert {name for name, verdict in verdicts.items() if not verdict["refusal"]} == set(PRESETS) - {"multi_node"}
    assert "micro batches that do: 2" in verdicts["multi_node"]["refusal"]
    assert (verdicts["one_gpu"]["accumulation"], verdicts["ddp"]["accumulation"]) == (8, 1)
    flop = sum(found["executed"].values())
    assert found["seconds_per_step"]["ddp"] == pytest.approx(32 * flop / (8 * 60e12 * 0.4))
    for words in ("80.0 epochs of 40 (1 steps)", "8 x 2 = 16", "with 3 kept", "warm-up over 60 steps (1,920 samples)"):
        assert words in done.stdout


@pytest.mark.long
def test_latents_of_another_vae_are_a_no(shards: Path, tiny_sd_backbone: str):
    done = plan(f"--config={CONFIG}", f"--data.shards={shards}", f"--generator.path={tiny_sd_backbone}", status=1)
    assert done.stdout.splitlines()[-1].startswith("no: the shards are not ready: the latents were made by another VAE")


@pytest.mark.long
def test_a_no_names_the_option_that_makes_it_fit(tiny_backbone: str):
    words = [f"--generator.path={tiny_backbone}", "--data.shards=none", "--ema.decay=0"]
    config = parse(TurboEditConfig, ["--config", CONFIG, *words])
    needed = Budget(METHOD, Machine(1, 1, 80)).judge(config)[0]
    assert needed.memory is not None
    less = with_option(config, "encoder.gradient_checkpointing", True)
    enough = Budget(METHOD, Machine(1, 1, 80)).judge(less)[0]
    assert enough.memory is not None and enough.memory.total < needed.memory.total
    between = (needed.memory.total + enough.memory.total) / 2e9 + 2
    done = plan(f"--config={CONFIG}", *words, f"--gpu-memory={between}", "--gpus=1", "--preset=one_gpu", status=1)
    assert "shards: none at none on this machine" in done.stdout
    assert done.stdout.splitlines()[-1] == "no: what fits: one_gpu with --encoder.gradient_checkpointing true"
    verdicts = Budget(METHOD, Machine(1, 1, 2.0)).judge(config)
    assert not any(verdict.fits or verdict.option_that_fits for verdict in verdicts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "name the config of a training"),
        (["--config=missing.yaml"], "cannot read --config missing.yaml"),
        (["--config=configs/caption/llava.yaml"], "none of ['generator', 'mapper', 'unet']"),
        ([f"--config={CONFIG}", "--mfu=40"], "between 0 and 1"),
        ([f"--config={CONFIG}", "--generator.path=models/miniature/clip"], "cannot read the config files of"),
        ([f"--config={CONFIG}", "--data.shards=none", "--measure=1"], "no folder of shards at none"),
    ],
)
def test_bad_input_is_an_error_that_teaches(options: list[str], words: str):
    done = plan(*options, status=None)
    assert done.returncode in (1, 2)
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_backbone_needs_its_config_files_alone(tmp_path: Path):
    backbone = MetaModels().backbone(str(write_sdxl_configs(tmp_path / "sdxl")), torch.bfloat16)
    assert sum(p.numel() for p in backbone.unet.parameters()) == pytest.approx(2.567e9, rel=1e-3)
    assert backbone.encode_text(["anything"] * 2).embeds.shape == (2, 77, 2048)
