"""A training method for the commands that train, plan and export: one record, METHOD of its folder.

A new method is a folder train/methods/NAME and a line in train/methods/__init__.py. The record is light: torch and
diffusers are imported when one of its functions is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.run.config import FitConfig

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from data.shards.dataset import ShardDataset
    from train.task import Batch, Task


@dataclass(frozen=True)
class PlannedTask:
    """A task without data.

    Args:
        task: The task, on FakeTensors of the CPU.
        batch: Maker of a micro batch of so many samples, as the loader gives it.
        frozen: Bytes of the frozen models that lie on a GPU beside what is trained, by name.
    """

    task: "Task"
    batch: "Callable[[int], Batch]"
    frozen: Mapping[str, int]

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.task.trainable.parameters() if p.requires_grad)


@dataclass(frozen=True)
class PlanParts:
    """A method's part of `train.plan`.

    Args:
        task: The task of a config without data; needs the config files of the models alone.
        checkpointing: Names of the options that trade time for memory, the most worthwhile first.
    """

    task: Callable[[Any], PlannedTask]
    checkpointing: tuple[str, ...]


@dataclass(frozen=True)
class TrainedWeights:
    """The newest weights of a run.

    Args:
        config: Config of the run.
        step: Optimizer step of the checkpoint.
        weights: Tensors by name, as the checkpoint holds those of the task's trainable; `ExportParts.build` takes them
            out.
        averaged: Whether they are the EMA.
    """

    config: Any
    step: int
    weights: "dict[str, Tensor]"
    averaged: bool


@dataclass(frozen=True)
class AdapterParts:
    """Export of a LoRA run's adapters without the weights under them (`train.export --lora apart`).

    Args:
        write: Writer of the adapters to a folder in a dtype, which then takes them up again; gives the largest change
            of the outputs by storing in the dtype, and by the reload as a share of the largest output.
        card: Template of the model card (jinja2).
    """

    write: Callable[[TrainedWeights, Path, str], tuple[float, float]]
    card: str


@dataclass(frozen=True)
class ExportParts:
    """A method's part of `train.export`.

    Code that the pipeline needs is found by itself: the file of its class with its siblings, if the class is not
    diffusers' own, and the files of its components' classes likewise.

    Args:
        build: Maker of the run's pipeline in float32 on the CPU.
        outputs: Outputs of the pipeline for a random picture, as one tensor; the export is proven on it.
        card: Template of the model card (jinja2).
        figures: Names of the figures of the last log interval that the card shows.
        tags: Tags of the card's header.
        adapter: Export of the adapters alone, where the method has one.
    """

    build: "Callable[[TrainedWeights], DiffusionPipeline]"
    outputs: "Callable[[Any], Tensor]"
    card: str
    figures: tuple[str, ...]
    tags: tuple[str, ...] = ("image-editing", "inversion")
    adapter: AdapterParts | None = None


@dataclass(frozen=True)
class Method:
    """A training method.

    Args:
        name: Value of `method` in its configs, and name of its command.
        section: Part of a config that only this method has; tells the configs that do not name their method.
        config: Class of its runs' configs.
        backbone: Path or hub id of the frozen model in a config.
        variant: File variant of the frozen model in a config, such as fp16.
        load: Task and data as a training has them, on a device.
        plan: Part of train.plan, imported when it is asked for.
        export: Part of train.export, imported when it is asked for.
        adapters: Whether a config trains LoRA adapters.
    """

    name: str
    section: str
    config: type[FitConfig]
    backbone: Callable[[Any], str]
    variant: Callable[[Any], str | None]
    load: "Callable[[Any, torch.device], tuple[Task, ShardDataset]]"
    plan: Callable[[], PlanParts]
    export: Callable[[], ExportParts]
    adapters: Callable[[Any], bool] = lambda config: False
