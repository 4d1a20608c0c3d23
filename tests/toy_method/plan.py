"""The toy method's part of the plan."""

import torch

from tests.toy_method.config import ToyConfig
from tests.toy_method.task import ToyTask
from train.method import PlannedTask, PlanParts
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch


def _planned_task(config: ToyConfig) -> PlannedTask:
    meta = MetaModels()
    backbone = meta.backbone(config.denoiser.path, torch.float32)
    task = ToyTask(backbone)
    meta.fill(*backbone.modules())
    unet = backbone.unet.config

    def batch(samples: int) -> Batch:
        latent = meta.tensor(samples, unet.in_channels, unet.sample_size, unet.sample_size)
        return {"latent": latent, "caption": [""] * samples}

    return PlannedTask(task, batch, frozen_parts(backbone, "UNet"))


PLAN = PlanParts(task=_planned_task, checkpointing=())
