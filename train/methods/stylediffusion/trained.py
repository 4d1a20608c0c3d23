"""Mappers of finished runs and of exports, and their whole inversions of captioned images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.jobs.command import read_config
from eval.harness.captioned import CaptionedImage, batches_of_one_shape, stacked
from eval.harness.exports import ExportedMapper, export_folder, load_mapper
from eval.metrics.pixels import Estimate
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots
from models.options import StyleObjective
from models.stylediffusion import GuidedStep
from train.exports.weights import trained_weights
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.stylediffusion.drift import Drift, measure_drift
from train.methods.stylediffusion.task import build_mapper
from train.task import Batch

logger = logging.getLogger(__name__)


def open_mapper(name: str, device: torch.device) -> tuple[ExportedMapper, Backbone]:
    """A mapper with its backbone, both in float32: averaged weights of a run's newest checkpoint, or an export's.

    Raises:
        ValueError: `name` is a run of another method, without a checkpoint, or no export.
    """
    path = Path(name) / "config.yaml"
    if not path.is_file():
        return load_mapper(name, device), Backbone.load(str(export_folder(name)), device=device)
    config = read_config(StyleDiffusionConfig, path)
    trained = trained_weights(Path(name), config)
    backbone = Backbone.load(config.backbone.path, device=device, variant=config.backbone.variant)
    tokens = ImageTokens.load(config.mapper.clip, device)
    text = backbone.encode_text([""]).embeds.shape[1:]
    mapper = build_mapper(config.mapper, tokens.shape, (text[0], text[1]))
    mapper.load_state_dict(dict(trained.weights), strict=True)
    logger.info("%s: step %d%s", name, trained.step, ", averaged" if trained.averaged else "")
    return ExportedMapper(
        mapper.to(device).eval().requires_grad_(False),
        tokens,
        config.backbone.num_steps,
        config.backbone.steps_offset,
        config.objective.guidance,
        config.objective.into,
    ), backbone


def drift_figures(
    trained: ExportedMapper,
    backbone: Backbone,
    images: Sequence[CaptionedImage],
    num_steps: int,
    guidance: float,
    batch: int,
) -> dict[str, Any]:
    """Means over whole inversions at a number of steps and a guidance, of the mapper and of DDIM by the text alone."""
    ddim = Ddim(backbone.schedule, num_steps, trained.steps_offset)
    objective = StyleObjective(guidance=guidance, attention_weight=0.0, into=trained.into)
    step = GuidedStep(backbone, ddim, objective)
    found: dict[str, list[Drift]] = {"mapped": [], "ddim": []}
    for part in batches_of_one_shape(images, batch):
        samples = _encoded(trained, step, part)
        found["mapped"].append(measure_drift(step, trained.mapper, samples))
        found["ddim"].append(measure_drift(step, None, samples))
    figures = {name: _means(drifts) for name, drifts in found.items()}
    return {"num_steps": num_steps, "guidance": guidance, "num": len(images), **figures}


@torch.no_grad()
def _encoded(trained: ExportedMapper, step: GuidedStep, part: Sequence[CaptionedImage]) -> Batch:
    """Pivots and image tokens of images, as data.encode stores them."""
    backbone, captions = step.backbone, [image.caption for image in part]
    pictures = stacked(part).to(backbone.unet.device)
    latent = backbone.encode_image(pictures)
    pivots = ddim_pivots(backbone, step.ddim, latent, backbone.encode_text(captions, backbone.size_of(latent)))
    return {"pivots": pivots.transpose(0, 1), "clip": trained.tokens(pictures), "caption": captions}


def gain(figures: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Mean difference in dB of one mapper's reconstructions to those of another one of the same images."""
    pairs = zip(figures["mapped"]["psnr_by_image"], first["mapped"]["psnr_by_image"], strict=True)
    return Estimate.of(own - other for own, other in pairs).to_dict()


def _means(drifts: Sequence[Drift]) -> dict[str, Any]:
    """The figures with their errors over all images, PSNR by image, and the latent's mean error after each step."""
    every = [drift.figures for drift in drifts]
    values = {name: torch.cat([one[name] for one in every]).tolist() for name in every[0]}
    means: dict[str, Any] = {name: Estimate.of(of_images).to_dict() for name, of_images in values.items()}
    errors = torch.cat([drift.errors for drift in drifts], dim=1).mean(1)
    return means | {"errors": errors.tolist(), "psnr_by_image": values["psnr_to_vae"]}
