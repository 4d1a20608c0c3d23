"""Memory of an export beside what it writes."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from data.jobs.command import to_yaml
from models.schedule import NoiseSchedule
from scripts.bench.random_backbones import SDXL, SdxlSize
from scripts.bench.results import result
from scripts.bench.turbo_folder import VARIANT, write_turbo_folder
from train.methods.config import LoraConfig
from train.methods.turboedit.config import EncoderConfig, GeneratorConfig, TurboEditConfig
from train.methods.turboedit.task import build_encoder
from train.run.checkpoint import MODEL, Checkpoints, RunProgress
from train.run.config import DataConfig, RunConfig
from train.run.weights import trained_state

PROGRAM = """
import json, time
from pathlib import Path
import train.export, train.exports.pipeline, train.methods.turboedit.export

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

libraries, started = kilobytes("VmRSS"), time.perf_counter()
train.export.main()
seconds = time.perf_counter() - started
print(json.dumps({"memory": kilobytes("VmHWM") - libraries, "seconds": seconds}))
"""
"""Runs an export and prints its highest resident memory in KiB, pages of mapped files included, less that of the
imported libraries. VmHWM begins with the program; ru_maxrss would begin with the memory of the process that started
it."""


def measure_export(
    widths: tuple[int, int, int] | None, rank: int, dtype: Literal["float16", "bfloat16", "float32"], *options: str
) -> list[dict[str, Any]]:
    """Measure the memory of an export in a process of its own."""
    size = SDXL if widths is None else reduced(widths)
    with tempfile.TemporaryDirectory() as folder:
        base, run, out = (Path(folder, name) for name in ("base", "run", "out"))
        write_turbo_folder(base, size)
        write_run(run, base, rank)
        found = run_export(str(run), str(out), f"--dtype={dtype}", *options)
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e9
    print(f"{written:.2f} GB written in {dtype} and checked in {found['seconds']:.0f} s")
    return [result("export_peak_memory", 1024 * found["memory"] / 1e9, "GB", written)]


def reduced(widths: tuple[int, int, int]) -> SdxlSize:
    """SDXL with other widths of its UNet and small parts around it, for pictures of 128 pixels."""
    heads = (widths[0] // 64, widths[1] // 64, widths[2] // 64)
    return SdxlSize(16, widths, heads, ((64, 1), (128, 2)), (32, 32, 64, 64))


def write_run(folder: Path, base: Path, rank: int) -> None:
    """A run folder with one checkpoint as a training leaves it, its weights random, of an encoder of one timestep.

    More timesteps take more time and the same memory.

    Args:
        folder: Folder to make.
        base: Folder of the frozen model.
        rank: Rank of the adapters; 0 trains all weights.
    """
    config = TurboEditConfig(
        run=RunConfig(str(folder), mixed_precision="bf16"),
        data=DataConfig(str(folder / "no_shards")),
        generator=GeneratorConfig(str(base), variant=VARIANT, timesteps=(999,)),
        encoder=EncoderConfig(lora=LoraConfig(rank)),
    )
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler.from_pretrained(base, subfolder="scheduler"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base, subfolder="unet"))
        encoder = build_encoder(unet.requires_grad_(False), schedule, config.encoder, seed=0)
    draw = torch.Generator().manual_seed(0)

    def weights() -> dict[str, torch.Tensor]:
        shapes = {name: weight.shape for name, weight in trained_state(encoder).items()}
        return {name: 0.01 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}

    Checkpoints(folder / "checkpoints", keep=1).save(RunProgress(1, 1), {MODEL: weights})
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')


def run_export(*options: str) -> dict[str, float]:
    """Highest memory in KiB and seconds of an export in a Python process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, *options]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
