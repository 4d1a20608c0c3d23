"""StyleDiffusion: a mapping network from image tokens to cross-attention values of a frozen Stable Diffusion."""

from typing import TYPE_CHECKING

from train.method import ExportParts, InitialParts, Method, PlanParts
from train.methods.stylediffusion.config import StyleDiffusionConfig

if TYPE_CHECKING:
    import torch

    from data.shards.dataset import ShardDataset
    from train.task import Task


def _load(config: StyleDiffusionConfig, device: "torch.device") -> "tuple[Task, ShardDataset]":
    from train.methods.stylediffusion.task import load

    return load(config, device)


def _plan() -> PlanParts:
    from train.methods.stylediffusion.plan import PLAN

    return PLAN


def _export() -> ExportParts:
    from train.methods.stylediffusion.export import EXPORT

    return EXPORT


METHOD = Method(
    name="stylediffusion",
    section="mapper",
    config=StyleDiffusionConfig,
    backbone=lambda config: config.backbone.path,
    variant=lambda config: config.backbone.variant,
    load=_load,
    plan=_plan,
    export=_export,
    initial=InitialParts(
        "StyleDiffusionPipeline",
        "mapper",
        prefix="",
        frozen=("network",),
        same=("mapper.form", "mapper.width", "mapper.depth", "mapper.heads"),
        clip=lambda config: config.mapper.clip,
    ),
)
