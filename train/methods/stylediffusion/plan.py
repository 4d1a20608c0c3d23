"""StyleDiffusion's part of the plan."""

from transformers import AutoConfig

from data.shards.dataset import largest_size
from models.backbone import dtype_of
from models.clip import token_shape
from train.method import PlannedTask, PlanParts
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.stylediffusion.task import StyleDiffusionTask
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch


def _planned_task(config: StyleDiffusionConfig) -> PlannedTask:
    meta = MetaModels()
    backbone = meta.backbone(config.backbone.path, dtype_of(config.backbone.dtype))
    clip = AutoConfig.from_pretrained(config.mapper.clip)
    tokens = token_shape(getattr(clip, "vision_config", clip))
    meta.fill(*backbone.modules())
    with meta.mode:
        task = StyleDiffusionTask(config, backbone, tokens)
    side = backbone.image_size
    width, height = largest_size(config.data.shards) or (side, side)
    unet = backbone.unet.config
    factor = side // unet.sample_size
    latent = (unet.in_channels, height // factor, width // factor)

    def batch(samples: int) -> Batch:
        return {
            "pivots": meta.tensor(samples, config.backbone.num_steps + 1, *latent),
            "clip": meta.tensor(samples, *tokens),
            "caption": [""] * samples,
        }

    return PlannedTask(task, batch, frozen_parts(backbone, "UNet"))


PLAN = PlanParts(
    task=_planned_task,
    checkpointing=("backbone.gradient_checkpointing",),
)
