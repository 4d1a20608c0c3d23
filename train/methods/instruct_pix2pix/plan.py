"""InstructPix2Pix's part of the plan."""

import torch

from data.shards.dataset import ShardDataset, check_latents
from models.backbone import dtype_of
from train.method import PlannedTask, Planner
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.instruct_pix2pix.task import InstructPix2PixTask
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch, Task


def _sketch(config: InstructPix2PixConfig) -> PlannedTask:
    meta = MetaModels()
    backbone = meta.backbone(config.backbone.path, dtype_of(config.backbone.dtype))
    task = InstructPix2PixTask(config, "cpu", backbone)
    meta.fill(*backbone.modules(), task.trainable)  # first here: peft cannot lay adapters over FakeTensors
    unet = backbone.unet.config
    latent = (unet.in_channels, unet.sample_size, unet.sample_size)

    def batch(samples: int) -> Batch:
        tensors = {name: meta.tensor(samples, *latent) for name in ("latent", "source")}
        return {"caption": [""] * samples, **tensors}

    frozen = frozen_parts(backbone, "UNet")
    if not config.unet.lora.rank:
        del frozen["UNet"]  # the trained one has taken it over
    return PlannedTask(task, batch, frozen)


def _load(config: InstructPix2PixConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    dataset = ShardDataset(config.data.shards, InstructPix2PixTask.fields)
    task = InstructPix2PixTask(config, device)
    check_latents(dataset, task.backbone)
    return task, dataset


INSTRUCT_PIX2PIX = Planner(
    config=InstructPix2PixConfig,
    sketch=_sketch,
    load=_load,
    backbone=lambda config: config.backbone.path,
    checkpointing=("unet.gradient_checkpointing",),
    adapters=lambda config: config.unet.lora.rank > 0,
)
