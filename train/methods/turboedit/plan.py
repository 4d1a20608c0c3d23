"""TurboEdit's part of the plan."""

from data.shards.dataset import largest_size
from models.backbone import dtype_of
from train.method import PlannedTask, PlanParts
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.planning.meta_models import MetaModels, frozen_parts
from train.run.config import with_option
from train.task import Batch


def _planned_task(config: TurboEditConfig) -> PlannedTask:
    meta = MetaModels()
    dtypes = dtype_of(config.generator.dtype), dtype_of(config.generator.vae_dtype)
    backbone = meta.backbone(config.generator.path, *dtypes)
    task = TurboEditTask(_steady(config), "cpu", load_generator(config.generator, "cpu", backbone))
    critic = [task.critic.module] if task.critic else []
    meta.fill(*backbone.modules(), task.trainable, *critic)  # first here: peft cannot lay adapters over FakeTensors
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


def _steady(config: TurboEditConfig) -> TurboEditConfig:
    """The config with the adversary's term in F's loss from the first step on."""
    return with_option(config, "objective.adversary.start", 0)


PLAN = PlanParts(
    task=_planned_task,
    checkpointing=("encoder.gradient_checkpointing", "generator.gradient_checkpointing"),
    steady=_steady,
)
