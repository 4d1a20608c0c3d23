"""TurboEdit's part of the plan."""

import torch

from data.shards.dataset import ShardDataset, check_latents
from models.backbone import dtype_of
from train.method import PlannedTask, Planner
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch, Task


def _sketch(config: TurboEditConfig) -> PlannedTask:
    meta = MetaModels()
    backbone = meta.backbone(config.generator.path, dtype_of(config.generator.dtype))
    task = TurboEditTask(config, "cpu", load_generator(config.generator, "cpu", backbone))
    meta.fill(*backbone.modules(), task.trainable)  # first here: peft cannot lay adapters over FakeTensors
    unet = backbone.unet.config
    shapes: dict[str, tuple[int, ...]] = {"latent": (unet.in_channels, unet.sample_size, unet.sample_size)}
    if config.generator.cached_prompts:
        prompt = backbone.encode_text([""])
        shapes["prompt"] = tuple(prompt.embeds.shape[1:])
        if prompt.pooled is not None:
            shapes["pooled"] = tuple(prompt.pooled.shape[1:])

    def batch(samples: int) -> Batch:
        return {"caption": [""] * samples} | {name: meta.tensor(samples, *x) for name, x in shapes.items()}

    return PlannedTask(task, batch, frozen_parts(backbone, "G"))


def _load(config: TurboEditConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    task = TurboEditTask(config, device)
    dataset = ShardDataset(config.data.shards, task.fields)
    check_latents(dataset, task.backbone)
    return task, dataset


TURBOEDIT = Planner(
    config=TurboEditConfig,
    sketch=_sketch,
    load=_load,
    backbone=lambda config: config.generator.path,
    checkpointing=("encoder.gradient_checkpointing", "generator.gradient_checkpointing"),
    adapters=lambda config: config.encoder.lora.rank > 0,
)
