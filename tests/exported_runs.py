"""Runs of a few real training steps on a tiny backbone, to be exported."""

from pathlib import Path

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.scenes import write_scenes
from train.turboedit import main as train

STEPS = 3
NEWEST = f"step-{STEPS:06d}"


def train_options(root: Path, backbone: str) -> list[str]:
    """Options of such a training but for its folder, on shards that are made below `root`."""
    write_scenes(root / "scenes", num=16)
    caption_folder(root / "scenes", root / "captioned", CaptionConfig(resolution=64))
    encode_shards(root / "captioned", root / "shards", EncodeConfig(backbone=backbone))
    return [
        *("--run.steps", str(STEPS), "--run.global_batch", "4"),
        *("--run.micro_batch", "2", "--data.shards", str(root / "shards"), "--data.workers", "0"),
        *("--generator.path", backbone, "--generator.dtype", "float32", "--optim.lr", "1e-3"),
        *("--log.checkpoint_every", "2", "--log.preview_every", "2", "--ema.decay", "0.9"),
    ]


def trained(run: Path, options: list[str], *more: str) -> Path:
    """The run folder, after its training."""
    train(["--run.folder", str(run), *options, *more])
    return run
