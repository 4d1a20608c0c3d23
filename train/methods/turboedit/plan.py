"""TurboEdit's part of the plan."""

from dataclasses import replace

from data.shards.dataset import largest_size
from models.backbone import dtype_of
from train.method import PlannedTask, PlanParts
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.planning.meta_models import MetaModels, frozen_parts
from train.task import Batch


def _planned_task(config: TurboEditConfig) -> PlannedTask:
    config = replace(config, objective=replace(config.objective, own_share_ramp=0.0))  # a step after the rise
    meta = MetaModels()
    dtypes = dtype_of(config.generator.dtype), dtype_of(config.generator.vae_dtype)
    backbone = meta.backbone(config.generator.path, *dtypes)
    task = TurboEditTask(config, "cpu", load_generator(config.generator, "cpu", backbone))
    meta.fill(*backbone.modules(), task.trainable)  # first here: peft cannot lay adapters over FakeTensors
    side = backbone.image_size
    width, height = largest_size(config.data.shards) or (side, side)
    factor = side // backbone.unet.config.sample_size
    shapes: dict[str, tuple[int, ...]] = {
        "latent": (backbone.unet.config.in_channels, height // factor, width // factor)
    }
    if config.generator.cached_prompts:
        prompt = backbone.encode_text([""])
        shapes["prompt"] = tuple(prompt.embeds.shape[1:])
        if prompt.pooled is not None:
            shapes["pooled"] = tuple(prompt.pooled.shape[1:])
        backbone.text = None  # a training does not load it then

    info = {"original_size": [width, height], "crop": [0, 0, width, height]}

    def batch(samples: int) -> Batch:
        tensors = {name: meta.tensor(samples, *x) for name, x in shapes.items()}
        return {"caption": [""] * samples, "info": [info] * samples, **tensors}

    return PlannedTask(task, batch, frozen_parts(backbone, "G"))


PLAN = PlanParts(
    task=_planned_task,
    checkpointing=("encoder.gradient_checkpointing", "generator.gradient_checkpointing"),
)
