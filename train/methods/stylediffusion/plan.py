"""StyleDiffusion's part of the plan."""

import torch
from transformers import AutoConfig

from data.shards.dataset import ShardDataset
from models.backbone import dtype_of
from models.clip import token_shape
from train.method import PlannedTask, Planner
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.stylediffusion.task import StyleDiffusionTask
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch, Task


def _sketch(config: StyleDiffusionConfig) -> PlannedTask:
    meta = MetaModels()
    backbone = meta.backbone(config.backbone.path, dtype_of(config.backbone.dtype))
    clip = AutoConfig.from_pretrained(config.mapper.clip)
    tokens = token_shape(getattr(clip, "vision_config", clip))
    meta.fill(*backbone.modules())
    with meta.mode:
        task = StyleDiffusionTask(config, backbone, tokens)
    unet = backbone.unet.config
    latent = (unet.in_channels, unet.sample_size, unet.sample_size)

    def batch(samples: int) -> Batch:
        return {
            "pivots": meta.tensor(samples, config.backbone.num_steps + 1, *latent),
            "clip": meta.tensor(samples, *tokens),
            "caption": [""] * samples,
        }

    return PlannedTask(task, batch, frozen_parts(backbone, "UNet"))


def _load(config: StyleDiffusionConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    dataset = ShardDataset(config.data.shards, StyleDiffusionTask.fields)
    return StyleDiffusionTask.load(config, dataset, device), dataset


STYLEDIFFUSION = Planner(
    config=StyleDiffusionConfig,
    sketch=_sketch,
    load=_load,
    backbone=lambda config: config.backbone.path,
    checkpointing=("backbone.gradient_checkpointing",),
)
