"""What a method brings to the plan: its task without data, and what a plan may change to make it fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeVar

import torch

from data.shards.dataset import ShardDataset
from train.planning.footprint import BalancedRandom, Flop, flop
from train.task import Batch, Task

Config = TypeVar("Config")

_SAMPLES = 240  # every one of 4 timesteps or 30 steps with as many further draws; without data it costs nothing


@dataclass(frozen=True)
class PlannedTask:
    """A task without data.

    Args:
        task: on FakeTensors of the CPU.
        batch: makes a micro batch of so many samples as the loader gives it.
        frozen: bytes of the frozen models that lie on a GPU beside what is trained, by name.
    """

    task: Task
    batch: Callable[[int], Batch]
    frozen: Mapping[str, int]

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.task.trainable.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Planner:
    """One method's part of a plan.

    Args:
        config: the class of its runs' configs.
        sketch: its task without data; needs the config files of the models alone.
        load: its task and data as a training has them.
        backbone: path of the frozen model.
        checkpointing: the options that trade time for memory, the most worthwhile first.
        adapters: whether a config trains LoRA.
    """

    config: type
    sketch: Callable[[Any], PlannedTask]
    load: Callable[[Any, torch.device], tuple[Task, ShardDataset]]
    backbone: Callable[[Any], str]
    checkpointing: tuple[str, ...]
    adapters: Callable[[Any], bool] = lambda config: False

    def executed_flop(self, config: Any) -> Flop:
        """FLOP of a sample's training step on average over the random choices, recomputed ones included."""
        sketch = self.sketch(config)
        rng, precision = BalancedRandom(_SAMPLES), config.run.mixed_precision
        return flop(sketch.task, sketch.batch(_SAMPLES), rng, precision) / _SAMPLES

    def model_flop(self, config: Any) -> Flop:
        """The same without what gradient checkpointing computes again: the FLOP of MFU."""
        return self.executed_flop(reduce(lambda c, option: with_option(c, option, False), self.checkpointing, config))


def option_of(config: Any, name: str) -> Any:
    """The value of an option such as encoder.gradient_checkpointing."""
    return reduce(getattr, name.split("."), config)


def with_option(config: Config, name: str, value: Any) -> Config:
    """The config with another value of an option."""
    part, _, rest = name.partition(".")
    return replace(config, **{part: with_option(getattr(config, part), rest, value) if rest else value})  # type: ignore[type-var]
