"""Memory of an export beside the exported pipeline itself."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn

from data.jobs.command import to_yaml
from models.noise_encoder import NoiseEncoder
from models.schedule import NoiseSchedule
from scripts.bench.random_backbones import SdxlSize, sdxl_generator
from scripts.bench.results import result
from scripts.miniature import parts
from train.methods.turboedit.config import GeneratorConfig, TurboEditConfig
from train.run.checkpoint import EMA, MODEL, Checkpoints, RunProgress
from train.run.config import DataConfig, RunConfig

# VmHWM begins with the program; ru_maxrss would begin with the memory of the process that started it.
REPORT = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
IMPORT_ONLY = f"import train.export; {REPORT}"
EXPORT = f"import train.export; train.export.main(); {REPORT}"


def measure_export(
    widths: tuple[int, int, int], dtype: Literal["float16", "bfloat16", "float32"]
) -> list[dict[str, Any]]:
    """Measure the memory of an export."""
    with tempfile.TemporaryDirectory() as folder:
        backbone, run = Path(folder, "backbone"), Path(folder, "run")
        pipeline = random_pipeline(widths)
        pipeline.save_pretrained(backbone)
        size = 4 * (_count(pipeline) + _count(write_run(run, backbone, pipeline.unet)))
        del pipeline
        base = _peak(IMPORT_ONLY)
        peak = _peak(EXPORT, str(run), str(Path(folder, "out")), f"--dtype={dtype}") - base
    print(f"widths {widths}: pipeline with encoder {size / 1e9:.2f} GB in float32, stored in {dtype}")
    return [result("export_peak_memory", peak / 1e9, "GB", size / 1e9)]


def random_pipeline(widths: tuple[int, int, int]) -> StableDiffusionXLPipeline:
    """SDXL with other widths of its UNet and small parts around it, for pictures of 128 pixels."""
    heads = (widths[0] // 64, widths[1] // 64, widths[2] // 64)
    size = SdxlSize(16, widths, heads, ((64, 1), (128, 2)), (32, 32, 64, 64))
    backbone = sdxl_generator("cpu", torch.float32, size, complete=True).backbone
    assert backbone.text is not None
    tokenizers, encoders = backbone.text.tokenizers, backbone.text.encoders
    return StableDiffusionXLPipeline(
        vae=backbone.vae,
        unet=backbone.unet,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=parts.student_scheduler(),
    )


def write_run(folder: Path, backbone: Path, unet: UNet2DConditionModel) -> NoiseEncoder:
    """A run folder with one checkpoint of an encoder that has learned nothing; returns the encoder."""
    config = TurboEditConfig(
        run=RunConfig(str(folder)),
        data=DataConfig(str(folder / "no_shards")),
        generator=GeneratorConfig(str(backbone), dtype="float32"),
    )
    encoder = NoiseEncoder.from_generator(unet, NoiseSchedule.from_scheduler(parts.student_scheduler()))
    Checkpoints(folder / "checkpoints", keep=1).save(
        RunProgress(1, 1), {MODEL: encoder.state_dict, EMA: encoder.state_dict}
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    return encoder


def _count(model: DiffusionPipeline | nn.Module) -> int:
    modules = model.components.values() if isinstance(model, DiffusionPipeline) else [model]
    return sum(p.numel() for module in modules if isinstance(module, nn.Module) for p in module.parameters())


def _peak(program: str, *options: str) -> int:
    """Highest resident memory in bytes of a Python process, which prints it in KiB at its end."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, *options]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return 1024 * int(done.stdout.split()[-1])
