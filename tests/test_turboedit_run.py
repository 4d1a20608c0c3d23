"""TurboEdit's training as its users run it: killed and resumed, and on two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data.caption import CaptionConfig, caption_folder
from data.encode import EncodeConfig, encode_shards
from data.scenes import write_scenes
from train.cli import parse
from train.launch import accumulation_steps
from train.turboedit import TurboEditConfig

STEPS = 8
CONFIGS = sorted(Path("configs/turboedit").glob("*.yaml"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """Latents of a few scenes, with their pictures, made by the two stages."""
    root = tmp_path_factory.mktemp("turboedit")
    write_scenes(root / "scenes", num=24)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    encode_shards(root / "captioned", root / "shards", EncodeConfig(backbone=str(tiny_backbone), keep_images=True))
    return root / "shards"


def command(folder: Path, shards: Path, backbone: str, *options: str) -> list[str]:
    words = {
        "run.folder": folder,
        "run.steps": STEPS,
        "run.global_batch": 8,
        "run.micro_batch": 2,
        "data.shards": shards,
        "data.workers": 0,
        "generator.path": backbone,
        "generator.dtype": "float32",
        "objective.own_share": 0.5,
        "optim.lr": 1e-3,
        "ema.decay": 0.9,
        "log.log_every": 3,
        "log.checkpoint_every": 2,
        "log.preview_every": 0,
    }
    return ["train.turboedit", *(f"--{name}={value}" for name, value in words.items()), *options]


def weights(folder: Path) -> list[bytes]:
    return [
        (folder / "checkpoints" / f"step-{STEPS:06d}" / f"{name}.safetensors").read_bytes() for name in ("model", "ema")
    ]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    options = command(folder, shards, tiny_backbone, "--log.preview_every=4", "--log.preview_samples=3")
    subprocess.run([sys.executable, "-m", *options], check=True, capture_output=True)
    return folder


def test_a_killed_training_ends_with_the_same_weights_and_log(
    undisturbed: Path, shards: Path, tiny_backbone: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = [sys.executable, "-m", *command(folder, shards, tiny_backbone)]
    process = subprocess.Popen(options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((folder / "checkpoints").glob("step-*")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((folder / "checkpoints").glob("step-*")), "never saved a checkpoint"
    assert not (folder / "checkpoints" / f"step-{STEPS:06d}").exists(), "finished before it could be killed"
    subprocess.run(options, check=True, capture_output=True)
    assert weights(folder) == weights(undisturbed)
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_two_processes_give_the_losses_of_one(
    undisturbed: Path, shards: Path, tiny_backbone: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command(folder, shards, tiny_backbone)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 process(es)" in done.stderr
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_previews_show_image_round_trip_and_steps(undisturbed: Path) -> None:
    pictures = sorted((undisturbed / "samples").glob("*.png"))
    assert [picture.stem for picture in pictures] == ["step-000000", "step-000004", "step-000008"]
    width, height = Image.open(pictures[-1]).size
    assert width > 6 * 128 and height > 3 * 128  # image, round trip and four steps; three samples


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse_and_divide(path: Path) -> None:
    config = parse(TurboEditConfig, ["--config", str(path)])
    assert config.optim.lr == float(yaml.safe_load(path.read_text())["optim"]["lr"])
    processes = 8 if "sdxl" in path.stem else 1
    assert accumulation_steps(config.run.global_batch, config.run.micro_batch, processes) == 1


def test_paper_config_differs_in_the_objective_only() -> None:
    ours, paper = (
        yaml.safe_load(Path(f"configs/turboedit/{name}.yaml").read_text()) for name in ("miniature", "paper_miniature")
    )
    paper["run"]["folder"] = ours["run"]["folder"]
    assert paper["objective"]["own_share"] == 0.0
    paper["objective"] = ours["objective"]
    assert paper == ours


def test_another_vae_is_refused_before_training(shards: Path, tmp_path: Path) -> None:
    options = command(tmp_path / "run", shards, "models/miniature/student")
    done = subprocess.run([sys.executable, "-m", *options], capture_output=True, text=True)
    assert done.returncode != 0 and "made by another VAE" in done.stderr
