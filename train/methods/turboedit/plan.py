"""TurboEdit's part of the plan."""

import logging
import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from data.shards.dataset import largest_size
from eval.metrics.lpips import Lpips, classifier_features
from models.backbone import Backbone, dtype_of
from train.method import PlannedTask, PlanParts
from train.methods.network_files import shaped
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.methods.turboedit.terms import TermNetworks, check_teacher
from train.planning.meta_models import MetaModels, bytes_of, frozen_parts
from train.run.config import with_option
from train.task import Batch

log = logging.getLogger(__name__)

_FLOAT16 = 2
"""Bytes of each number in shards."""


def _planned_task(config: TurboEditConfig) -> PlannedTask:
    config = replace(config, objective=replace(config.objective, own_share_ramp=0.0))  # a step after the rise
    meta = MetaModels()
    dtypes = dtype_of(config.generator.dtype), dtype_of(config.generator.vae_dtype)
    backbone = meta.backbone(config.generator.path, *dtypes)
    backbone.network = _shaped(backbone.network, config.generator.unet)
    networks, of_terms = _term_networks(config, meta)
    task = TurboEditTask(_steady(config), "cpu", load_generator(config.generator, "cpu", backbone), networks)
    critic = [task.critic.module] if task.critic else []
    # First here: peft cannot lay adapters over FakeTensors.
    meta.fill(*backbone.modules(), task.trainable, *critic, *of_terms.values())
    side = backbone.image_size
    width, height = largest_size(config.data.shards) or (side, side)
    factor = backbone.vae_factor
    shapes: dict[str, tuple[int, ...]] = {"latent": (backbone.latent_channels, height // factor, width // factor)}
    held = cache(lambda: _prompt_shapes(backbone))
    if config.generator.cached_prompts:
        shapes |= held()
        backbone.text = None  # a training does not load it then

    info = {"original_size": [width, height], "crop": [0, 0, width, height]}

    def batch(samples: int) -> Batch:
        tensors = {name: meta.tensor(samples, *x) for name, x in shapes.items()}
        return {"caption": [""] * samples, "info": [info] * samples, **tensors}

    frozen = {name: bytes_of(network) for name, network in of_terms.items()}
    return PlannedTask(
        task,
        batch,
        frozen_parts(backbone, "G") | frozen,
        lambda: sum(_FLOAT16 * math.prod(shape) for shape in held().values()),
        # A network that goes through its pictures one by one takes minutes for the usual number.
        96 if backbone.TAKES_LISTS else PlannedTask.samples,
    )


def _shaped(network: Any, unet: str | None) -> Any:
    """The network as the weights over it shape it, or as it is where those have not been fetched yet."""
    try:
        return shaped(network, unet, fetched=False)
    except ValueError as error:
        log.warning("the plan counts the network of generator.path alone: %s", error)
        return network


def _prompt_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Shapes of what shards hold of a caption's prompt, by name."""
    prompt = backbone.encode_text([""])
    parts = {"prompt": prompt.embeds, "pooled": prompt.pooled, "mask": prompt.mask}
    return {name: tuple(tensor.shape[1:]) for name, tensor in parts.items() if tensor is not None}


def _term_networks(config: TurboEditConfig, meta: MetaModels) -> tuple[TermNetworks, dict[str, nn.Module]]:
    """Networks of the objective's further terms without data, and the same by name."""
    objective, teacher, lpips = config.objective, None, None
    found: dict[str, nn.Module] = {}
    if objective.score_weight:
        assert objective.score_teacher, "checked by the config"
        check_teacher(objective.score_teacher, config.generator.path)
        teacher = meta.backbone(objective.score_teacher, dtype_of(config.generator.dtype))
        teacher.vae = None  # a training does not load it
        found["teacher"] = nn.ModuleList(teacher.modules())
    if objective.perceptual_weight and objective.perceptual == "lpips":
        with torch.device("meta"):
            lpips = Lpips("vgg", classifier_features("vgg").state_dict(prefix="features."))
        found["LPIPS"] = lpips
    return TermNetworks(teacher, lpips), found


def _steady(config: TurboEditConfig) -> TurboEditConfig:
    """The config as it trains in the end, from the first step on: the adversary's term in F's loss, no ramp."""
    return with_option(with_option(config, "objective.adversary.start", 0), "objective.own_share_ramp", 0.0)


PLAN = PlanParts(
    task=_planned_task,
    checkpointing=("encoder.gradient_checkpointing", "generator.gradient_checkpointing"),
    steady=_steady,
)
