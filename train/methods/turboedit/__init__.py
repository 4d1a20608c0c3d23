"""TurboEdit: a noise encoder F on a frozen few-step generator G."""

from typing import TYPE_CHECKING

from train.method import ExportParts, InitialParts, Method, PlanParts
from train.methods.turboedit.config import TurboEditConfig

if TYPE_CHECKING:
    import torch

    from data.shards.dataset import ShardDataset
    from train.task import Task


def _load(config: TurboEditConfig, device: "torch.device") -> "tuple[Task, ShardDataset]":
    from train.methods.turboedit.task import load

    return load(config, device)


def _plan() -> PlanParts:
    from train.methods.turboedit.plan import PLAN

    return PLAN


def _export() -> ExportParts:
    from train.methods.turboedit.export import EXPORT

    return EXPORT


METHOD = Method(
    name="turboedit",
    section="generator",
    config=TurboEditConfig,
    backbone=lambda config: config.generator.path,
    variant=lambda config: config.generator.variant,
    load=_load,
    plan=_plan,
    export=_export,
    adapters=lambda config: config.encoder.lora.rank > 0,
    initial=InitialParts("TurboEditPipeline", "encoder", prefix="unet.", frozen=("network",), same=("encoder.lora",)),
    files=lambda config: {"generator.unet": config.generator.unet, "generator.lora": config.generator.lora},
    prediction=lambda config: config.generator.prediction_type,
)
