"""InstructPix2Pix: a Stable Diffusion that follows instructions on a picture."""

from typing import TYPE_CHECKING

from train.method import ExportParts, InitialParts, Method, PlanParts
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig

if TYPE_CHECKING:
    import torch

    from data.shards.dataset import ShardDataset
    from train.task import Task


def _load(config: InstructPix2PixConfig, device: "torch.device") -> "tuple[Task, ShardDataset]":
    from train.methods.instruct_pix2pix.task import load

    return load(config, device)


def _plan() -> PlanParts:
    from train.methods.instruct_pix2pix.plan import PLAN

    return PLAN


def _export() -> ExportParts:
    from train.methods.instruct_pix2pix.export import EXPORT

    return EXPORT


METHOD = Method(
    name="instruct_pix2pix",
    section="unet",
    config=InstructPix2PixConfig,
    backbone=lambda config: config.backbone.path,
    variant=lambda config: config.backbone.variant,
    load=_load,
    plan=_plan,
    export=_export,
    adapters=lambda config: config.unet.lora.rank > 0,
    # Not the backbone's own UNet, which an export of a full fine-tune does not hold.
    initial=InitialParts(
        "StableDiffusionInstructPix2PixPipeline", "unet", prefix="", frozen=("vae", "text"), same=("unet.lora",)
    ),
)
