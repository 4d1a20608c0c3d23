"""A training method for the commands that train, plan and export: one record, METHOD of its folder.

A new method is a folder train/methods/NAME and a line in train/methods/__init__.py. The record is light: torch and
diffusers are imported when one of its functions is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train.run.config import FitConfig

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image
    from torch import Tensor, nn

    from data.shards.dataset import ShardDataset
    from train.task import Batch, Task

Checkpoint = int | Literal["best"] | None
"""A checkpoint of a run: its step, the best one by `log.best`, or None for the newest one that is whole."""


@dataclass(frozen=True)
class PlannedTask:
    """A task without data.

    Args:
        task: The task, on FakeTensors of the CPU.
        batch: Maker of a micro batch of so many samples, as the loader gives it.
        frozen: Bytes of the frozen models that lie on a GPU beside what is trained, by name.
        prompt_bytes: Counts the bytes of a caption's embeddings as data.encode stores them; 0 where none are read.
        samples: Number of samples over whose random choices operations are counted: every one of 4 timesteps or 30
            steps with as many further draws.
    """

    task: "Task"
    batch: "Callable[[int], Batch]"
    frozen: Mapping[str, int]
    prompt_bytes: "Callable[[], int]" = lambda: 0
    samples: int = 960

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return _trained_parameters(self.task.trainable)

    @property
    def critic(self) -> int:
        """Number of parameters of the second trained part; 0 where the task has none."""
        from train.task import critic_of

        critic = critic_of(self.task)
        return 0 if critic is None else _trained_parameters(critic.module)


def _trained_parameters(module: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class PlanParts:
    """A method's part of `train.plan`.

    Args:
        task: The task of a config without data; needs the config files of the models alone.
        checkpointing: Names of the options that trade time for memory, the most worthwhile first.
        steady: A config without the steps at the start in which a term of the loss does not take part yet.
    """

    task: Callable[[Any], PlannedTask]
    checkpointing: tuple[str, ...]
    steady: Callable[[Any], Any] = lambda config: config


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of a run's checkpoint.

    Args:
        config: Config of the run.
        step: Optimizer step of the checkpoint.
        weights: Tensors by name, as the checkpoint holds those of the task's trainable; each is read when it is asked
            for.
        averaged: Whether they are the EMA.
    """

    config: Any
    step: int
    weights: "Mapping[str, Tensor]"
    averaged: bool


class Storage:
    """Dtype in which an export's weights are stored, and what storing in it does to those that were trained.

    Args:
        name: float32, bfloat16 or float16.

    Attributes:
        dtype: The dtype of torch.
        rounding: Largest change of a tensor so far, as a share of its norm.
    """

    def __init__(self, name: str) -> None:
        from models.backbone import dtype_of

        self.name, self.dtype, self.rounding = name, dtype_of(name), 0.0

    def cast(self, name: str, weight: "Tensor") -> "Tensor":
        """Return the weight `name`, of any shape, in the dtype.

        Raises:
            ValueError: A value is not finite in it.
        """
        stored = weight.to(self.dtype)
        if not stored.isfinite().all():
            if weight.isfinite().all():
                largest = weight.abs().max().item()
                raise ValueError(f"{name} holds {largest:.3g}, too much for {self.name}: --dtype bfloat16 or float32")
            raise ValueError(f"{name} holds values that are not finite: take an earlier --checkpoint")
        if (norm := weight.float().norm()) > 0:
            self.rounding = max(self.rounding, ((stored.float() - weight.float()).norm() / norm).item())
        return stored


@dataclass(frozen=True)
class Example:
    """A picture on which an export is tried out.

    Args:
        picture: The picture.
        caption: Description of the picture.
        target: Description after an edit.
        instruction: The edit as an order.
    """

    picture: "Image.Image"
    caption: str
    target: str
    instruction: str


@dataclass(frozen=True)
class Trial:
    """What a pipeline makes of an example.

    Args:
        outputs: Outputs of its networks as one tensor, by which it is compared.
        pictures: Maker of the pictures that the card shows beside the example, by their titles.
    """

    outputs: "Tensor"
    pictures: "Callable[[], Mapping[str, Image.Image]]"


@dataclass(frozen=True)
class AdapterParts:
    """Export of a LoRA run's adapters without the weights under them (`train.export --lora apart`).

    Args:
        write: Writer of the adapters to a folder; gives outputs of the networks before, and after it has taken the
            adapters up again.
        card: Template of the model card (jinja2).
    """

    write: "Callable[[TrainedWeights, Path, Storage], tuple[Tensor, Tensor]]"
    card: str


@dataclass(frozen=True)
class ExportParts:
    """A method's part of `train.export`.

    Code that the pipeline needs is found by itself: the file of its class with its siblings, if the class is not
    diffusers' own, and the files of its components' classes likewise.

    Args:
        build: Maker of the run's pipeline on the CPU, in the dtype in which it is stored.
        trial: What the pipeline makes of an example; the export is proven on it.
        evaluations: Pictures that the pipeline's network is evaluated on in two trials, one with its pictures.
        card: Template of the model card (jinja2).
        figures: Names of the figures of the last log interval that the card shows.
        tags: Tags of the card's header.
        adapter: Export of the adapters alone, where the method has one.
        encoder: Name of the component that is trained, where its pipeline loads the others from the base
            (`train.export --encoder_only`).
        page: Whether the page of eval.app opens its exports (`train.export --space`).
        alters_base: Whether a config's base is not what lies at its path, so that exports have to hold it.
    """

    build: "Callable[[TrainedWeights, Storage], DiffusionPipeline]"
    trial: "Callable[[Any, Example], Trial]"
    evaluations: "Callable[[Any], int]"
    card: str
    figures: tuple[str, ...]
    tags: tuple[str, ...] = ("image-editing", "inversion")
    adapter: AdapterParts | None = None
    encoder: str | None = None
    page: bool = False
    alters_base: "Callable[[Any], bool]" = lambda config: False


@dataclass(frozen=True)
class InitialParts:
    """A method's trainings that start from the weights of others; the option is its config's `init_option`.

    Args:
        pipeline: Class of the exports that it takes.
        component: Component of them that was trained.
        prefix: What the task's trainable puts before the names of the component's tensors.
        frozen: Parts of the backbone (models.backbone.PARTS) that trained weights belong to.
        same: Options that decide the network, which have to be those of the source.
        clip: Path or hub id of the CLIP in a config, whose tokens it was trained on.
    """

    pipeline: str
    component: str
    prefix: str
    frozen: tuple[str, ...]
    same: tuple[str, ...]
    clip: Callable[[Any], str | None] = lambda config: None


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
        initial: What its trainings may start from; None for the usual start alone.
        files: Weights over the frozen model in a config, by option: of a UNet (generator.unet), a LoRA on it
            (generator.lora).
        prediction: What the frozen model predicts, where a config says another than its scheduler.
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
    initial: InitialParts | None = None
    files: Callable[[Any], Mapping[str, str | None]] = lambda config: {}
    prediction: Callable[[Any], str | None] = lambda config: None
