"""A stand-in for an Apple machine: features of other systems are hidden, and the meta device plays MPS.

python -m tests.apple FOLDER BACKBONE WORKERS

imports every module, runs real stages and a real training without those features, and then the parts that compute on a
device on one that has no float64. There tensors have no values: what is read from them is zeros, or true.
"""

import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import precision

DEVICE = torch.device("meta")


HIDDEN = {os: ("preadv", "sched_getaffinity", "posix_fadvise", "pidfd_open"), signal: ("SIGUSR1", "SIGUSR2")}
FOREIGN = ("fcntl", "deepspeed", "bitsandbytes")
LINUX_ONLY = ("train.run.zero",)
"""Imported by launches with DeepSpeed alone."""


def hide() -> None:
    """Take away what an Apple machine, or a Python on it, may not have."""
    for module, names in HIDDEN.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.modules |= dict.fromkeys(FOREIGN)


def import_everything() -> None:
    for package in ("data", "eval", "models", "train"):
        for found in pkgutil.walk_packages([package], f"{package}."):
            if found.name not in LINUX_ONLY:
                importlib.import_module(found.name)


def run_stages(folder: Path, backbone: str, workers: int) -> None:
    """Pictures, captions, latents and a training whose workers are spawned, as on macOS."""
    from data.captioning.config import CaptionConfig
    from data.captioning.stage import caption_folder
    from data.encode import encode_shards
    from data.scenes import write_scenes
    from data.shards.encode_config import EncodeConfig
    from tests.tiny_training import tiny_config, train, write_latents

    write_scenes(folder / "scenes", 4)
    caption_folder(folder / "scenes", folder / "captioned", CaptionConfig(backbone=backbone, resolution=64))
    manifest = encode_shards(folder / "captioned", folder / "latents", EncodeConfig(backbone, device="cpu"))
    assert manifest["count"] == 4
    shards = write_latents(folder / "shards")
    options = ("--run.steps=4", f"--data.workers={workers}", "--log.log_every=2", "--run.device=cpu")
    assert train(tiny_config(shards, folder / "run", *options)).step == 4


class SecondDevice(TorchDispatchMode):
    """Lets the meta device be one without float64, whose tensors come to the host as zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten, source = torch.ops.aten, args[0] if args else None
        if func is aten._to_copy.default and source.is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if func is aten._local_scalar_dense.default and source.is_meta:
            return 1
        if func is aten.copy_.default and args[1].is_meta and not source.is_meta:
            return source.zero_()
        result = func(*args, **kwargs)
        for found in tree_leaves(result):
            if isinstance(found, torch.Tensor) and found.is_meta and found.dtype == torch.float64:
                raise TypeError(f"{func} makes float64 on a device that has none")
        return result


def train_on_the_second_device(folder: Path, backbone: str) -> None:
    """Steps of the engine with everything on it, a preview and a checkpoint."""
    from data.jobs.command import parse
    from data.shards.dataset import ShardDataset
    from train.engine import fit
    from train.methods.turboedit.config import TurboEditConfig
    from train.methods.turboedit.task import TurboEditTask
    from train.rng import StepRandom
    from train.run.launch import Launch

    # What the meta device cannot play.
    enabled = torch.is_autocast_enabled
    Launch.autocast = lambda self: nullcontext()
    torch.is_autocast_enabled = lambda kind: kind != "meta" and enabled(kind)
    StepRandom._generator = lambda self, name, device, own=StepRandom._generator: own(self, name, "cpu")
    torch.randn = lambda *shape, own=torch.randn, device=None, **options: own(*shape, **options).to(device)

    words = (f"--data.shards={folder / 'latents'}", f"--run.folder={folder / 'second'}", f"--generator.path={backbone}")
    options = ("--run.steps=1", "--run.global_batch=2", "--run.micro_batch=2", "--log.preview_samples=1")
    config = parse(
        TurboEditConfig,
        [*words, *options, "--generator.dtype=float32", "--objective.own_share=0.5", "--data.workers=0"],
    )
    launch = Launch(config.run)
    launch.device = launch.accelerator.state.device = DEVICE
    task = TurboEditTask(config, DEVICE)
    assert fit(task, ShardDataset(folder / "latents", task.fields), config, launch).step == 1


def edit_and_measure_on_the_second_device(backbone: str) -> None:
    """An inversion and an edit with a mask, steps of DDIM, and the figures of pictures and noises."""
    from diffusers import DDIMScheduler

    from eval.metrics.clip import resize_floats
    from eval.metrics.networks import MetricModels
    from eval.metrics.pixels import psnr, ssim
    from eval.pie.metrics import PieMetrics
    from eval.reconstructions.noise import noise_health
    from models.ddim import Ddim
    from models.schedule import NoiseSchedule
    from tests.tiny_editing import tiny_pipeline

    pipeline = tiny_pipeline(backbone).to(DEVICE)
    inversion = pipeline.invert(Image.new("RGB", (64, 64)), "a red cat")
    pipeline.edit(inversion, "a blue cat", strength=0.7, mask="auto")

    latents, pictures = torch.zeros(2, 4, 8, 8, device=DEVICE), torch.zeros(2, 3, 64, 64, device=DEVICE)
    ddim = Ddim(NoiseSchedule.from_scheduler(DDIMScheduler()), 4)
    ddim.next_latent(latents, latents, torch.zeros(2, dtype=torch.long, device=DEVICE))
    noise_health(latents)
    for figure in (psnr, ssim):
        figure(pictures, pictures)
    resize_floats(pictures, (32, 32))
    metrics = PieMetrics(MetricModels(device=DEVICE))
    levels, masks = pictures.to(torch.uint8), torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    metrics.measure(metrics.sources(levels, masks, ["a", "b"], ["c", "d"]), levels)


def main(folder: Path, backbone: str, workers: int) -> None:
    hide()
    multiprocessing.set_start_method("spawn", force=True)
    import_everything()
    precision.WITHOUT_FLOAT64 += ("meta",)
    run_stages(folder, backbone, workers)
    with SecondDevice():
        train_on_the_second_device(folder, backbone)
        edit_and_measure_on_the_second_device(backbone)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
