"""Export a TurboEdit run as a diffusers pipeline that works without this project.

    python -m train.export runs/NAME OUT

OUT holds safetensors, the pipeline's code and a model card; stock diffusers loads it with `trust_remote_code=True`. The
export reloads what it wrote and compares before it says done.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
from diffusers import DiffusionPipeline
from torch import nn

import models
from models.noise_encoder import NoiseEncoder
from models.schedule import NoiseSchedule
from models.turboedit_pipeline import TurboEditPipeline
from train.checkpoint import Checkpoints, load_checkpoint
from train.cli import parse
from train.turboedit import TurboEditConfig
from train.turboedit_card import model_card

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "text_encoder_2", "tokenizer_2")
CODE = ("attention", "backbone", "generator", "masks", "noise_encoder", "schedule", "text", "turboedit_pipeline")


class ExportError(Exception):
    """The run cannot be exported, or the export is not what the run holds."""


@dataclass(frozen=True)
class Trained:
    """A run's newest weights.

    Args:
        config: the run's; step: of the checkpoint; weights: state dict of the NoiseEncoder;
        averaged: whether they are the EMA.
    """

    config: TurboEditConfig
    step: int
    weights: dict[str, torch.Tensor]
    averaged: bool


def read_run(run: Path, averaged: bool = True) -> Trained:
    """The config and the newest checkpoint of a run folder; averaged weights where the run keeps them.

    Raises:
        ExportError: the folder is no run, or has no checkpoint yet.
    """
    if not (run / "config.yaml").is_file():
        raise ExportError(f"{run} is not a run folder: it has no config.yaml. Give the run.folder of a training")
    config = parse(TurboEditConfig, ["--config", str(run / "config.yaml")])
    newest = Checkpoints(run / "checkpoints", keep=1).newest()
    if newest is None:
        raise ExportError(f"{run} has no checkpoint yet; wait for log.checkpoint_every steps or the run's end")
    checkpoint = load_checkpoint(newest)
    use_average = averaged and checkpoint.ema is not None
    weights = checkpoint.ema if use_average and checkpoint.ema is not None else checkpoint.model
    return Trained(config, checkpoint.progress.step, weights, use_average)


def build_pipeline(trained: Trained) -> TurboEditPipeline:
    """The run's generator and encoder as a pipeline in float32 on the CPU."""
    generator = trained.config.generator
    stock = DiffusionPipeline.from_pretrained(generator.path, variant=generator.variant, torch_dtype=torch.float32)
    encoder = NoiseEncoder.from_generator(stock.unet, NoiseSchedule.from_scheduler(stock.scheduler))
    encoder.load_state_dict(trained.weights, strict=True)
    components = {name: stock.components.get(name) for name in COMPONENTS}
    return TurboEditPipeline(
        **components,
        encoder=encoder.unet.eval(),
        timesteps=" ".join(map(str, generator.timesteps)),
        attention_resolution=max(8, stock.unet.config.sample_size // 4),
    )


def export(
    run: Path, out: Path, dtype: Literal["float16", "bfloat16", "float32"] = "float16", averaged: bool = True
) -> None:
    """Export a TurboEdit run as a diffusers pipeline.

    Args:
        run: run folder of a training
        out: folder to make; it must not exist
        dtype: of the stored weights (the VAE keeps float32 where it would overflow)
        averaged: take the averaged (EMA) weights where the run has them

    Raises:
        ExportError: the run has nothing to export, OUT exists, or the reloaded pipeline differs from the run's.
    """
    if out.exists():
        raise ExportError(f"{out} exists already; remove it or give another OUT")
    trained = read_run(run, averaged)
    pipeline = build_pipeline(trained)
    exact = outputs(pipeline)
    vae_dtype = torch.float32 if pipeline.vae.config.force_upcast else DTYPES[dtype]
    for name, module in networks(pipeline).items():
        module.to(vae_dtype if name == "vae" else DTYPES[dtype])
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    add_code(partial)
    forget_paths(partial)
    for module in networks(pipeline).values():
        module.float()
    stored = outputs(pipeline)
    compare(stored, partial)
    rounding = (stored - exact).abs().max().item()
    (partial / "README.md").write_text(model_card(run, trained, pipeline, dtype, rounding))
    partial.rename(out)
    logger.info("exported step %d of %s to %s: reloaded and equal", trained.step, run, out)
    logger.info("storing the weights in %s changes noises and reconstructions by at most %.2g", dtype, rounding)


def networks(pipeline: TurboEditPipeline) -> dict[str, nn.Module]:
    """The pipeline's networks by component."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def forget_paths(folder: Path) -> None:
    """Take out of a saved pipeline's configs where its parts were loaded from: a path of this machine."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def add_code(folder: Path) -> None:
    """Put the pipeline's source files beside the weights and name its class in model_index.json."""
    for name in CODE:
        shutil.copy(Path(models.__path__[0]) / f"{name}.py", folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["turboedit_pipeline", "TurboEditPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def outputs(pipeline: Any) -> torch.Tensor:
    """Noises and reconstructions of a random picture, as one tensor."""
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.backbone.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = pipeline.invert(image, "a picture")
    return torch.stack([*inversion.noises, *inversion.reconstructions])


def compare(expected: torch.Tensor, folder: Path) -> None:
    """Reload `folder` as its users will, with the code that lies in it, and compare its `outputs` in float32.

    Raises:
        ExportError: there is a difference at all.
    """
    reloaded = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=True)
    difference = (outputs(reloaded) - expected).abs().max().item()
    if difference != 0.0:
        raise ExportError(
            f"the reloaded pipeline differs from the stored weights by {difference:g}; the export is left at {folder}"
        )


def main() -> None:
    """Command line entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        jsonargparse.auto_cli(export)
    except ExportError as error:
        raise SystemExit(f"train.export: {error}") from error


if __name__ == "__main__":
    main()
