"""Short real TurboEdit trainings as subprocesses: shards of a few scenes, the command, what it has logged."""

import json
from pathlib import Path

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.scenes import write_scenes

STEPS = 8


def write_shards(root: Path, backbone: str) -> Path:
    """Latents of a few scenes, with their pictures, made by the two stages; returns their folder."""
    write_scenes(root / "scenes", num=24)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    encode_shards(root / "captioned", root / "shards", EncodeConfig(backbone=backbone, keep_images=True))
    return root / "shards"


def command(folder: Path, shards: Path, backbone: str, *options: str) -> list[str]:
    """Module and options; later options win."""
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


def losses(folder: Path) -> list[float]:
    """Of each line of a run's metrics."""
    return [line["loss"] for line in _lines(folder) if "loss" in line]


def heldout_figures(folder: Path) -> list[dict[str, float]]:
    """Lines of a run's metrics that are of held-out samples."""
    return [line for line in _lines(folder) if "valid/psnr_1" in line]


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
