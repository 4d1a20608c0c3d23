"""InstructPix2Pix's part of the plan."""

from models.backbone import dtype_of
from train.method import PlannedTask, PlanParts
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.instruct_pix2pix.task import InstructPix2PixTask
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch


def _planned_task(config: InstructPix2PixConfig) -> PlannedTask:
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


PLAN = PlanParts(
    task=_planned_task,
    checkpointing=("unet.gradient_checkpointing",),
)
