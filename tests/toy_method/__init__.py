"""A method of the tests alone: the last convolution of a Stable Diffusion is trained, all else stays."""

from typing import TYPE_CHECKING

from tests.toy_method.config import ToyConfig
from train.method import ExportParts, Method, PlanParts

if TYPE_CHECKING:
    import torch

    from data.shards.dataset import ShardDataset
    from train.task import Task


def _load(config: ToyConfig, device: "torch.device") -> "tuple[Task, ShardDataset]":
    from tests.toy_method.task import load

    return load(config, device)


def _plan() -> PlanParts:
    from tests.toy_method.plan import PLAN

    return PLAN


def _export() -> ExportParts:
    from tests.toy_method.export import EXPORT

    return EXPORT


METHOD = Method(
    name="toy",
    section="denoiser",
    config=ToyConfig,
    backbone=lambda config: config.denoiser.path,
    variant=lambda config: None,
    load=_load,
    plan=_plan,
    export=_export,
)
