"""Interface of a method to the engine: a trainable module, a loss, a preview.

The engine owns learning rate, EMA, clipping, accumulation, meters and checkpoints; a task owns noise, timesteps, text
and frozen models.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from train.rng import SampleRandom, StepRandom

Batch = dict[str, Any]
"""A micro batch of `data.loader.batches`: tensors [b, ...], lists of length b, and `rows`, int64 [b]: numbers of its
rows in the global batch."""


@dataclass
class StepLoss:
    """The loss of one micro batch and what is to be said about it."""

    terms: dict[str, Tensor]
    """Scalars, each already weighted and each a mean over the samples. Their sum is the loss."""
    report: dict[str, Tensor] = field(default_factory=dict)
    """Numbers that are logged and not trained on: scalars or one value per sample [b]. The same names in every step."""
    group: Tensor | None = None
    """int64 [b]: index into `task.groups`. Per-sample reports are then also averaged by group, as "name/group"."""
    critic: Tensor | None = None
    """Loss of the task's critic: a mean over the samples, whose graph is its own and reaches the critic alone."""


@dataclass(frozen=True)
class Critic:
    """A second part that is trained on a loss of its own, `StepLoss.critic`, such as a discriminator.

    Its loss is float32, outside of autocast. Every process holds it whole, so it should be small beside `trainable`.

    Args:
        module: Module whose parameters need gradients, in float32; the same on every process and at every start.
        lr: Learning rate of its AdamW.
        betas: AdamW's decay rates of the first and second moment.
    """

    module: nn.Module
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)


class Task(Protocol):
    """A method, seen from the engine. A plain object, not a module."""

    trainable: nn.Module
    """Module that is prepared, trained, averaged and checkpointed. Its trainable parameters are fp32."""
    fields: tuple[str, ...]
    """The sample fields that the loader has to read."""
    groups: tuple[str, ...]
    """Names of the groups of `StepLoss.group`, () for none."""

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Loss of a micro batch. `model` is `trainable` as the engine wrapped it: call it, so that DDP's hooks run."""
        ...

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Columns of a picture by name, images [n, 3, H, W] in [-1, 1]; {} for none.

        `model` holds the averaged weights; `batch` has the field `image` too where the shards hold pictures.
        """
        ...

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Figures to log, from the averages of terms and reports over a log interval (moments to deviations, say).

        A group that had no sample in the interval is missing.
        """
        ...


@runtime_checkable
class Criticised(Protocol):
    """What a task may have beside: a second trained part. Its `loss` then gives `StepLoss.critic`."""

    critic: Critic | None
    """The second part; None where the config wants none."""


def critic_of(task: Task) -> Critic | None:
    """Second trained part of a task, which most have none of."""
    return task.critic if isinstance(task, Criticised) else None


@runtime_checkable
class Validates(Protocol):
    """What a task may have beside: figures of its own of held-out samples. Those of other tasks are of their loss."""

    tries_edits: bool
    """Whether edits are tried on held-out samples: `batch` then has `probe` too, that of each sample or None."""

    def validate(self, model: nn.Module, batch: Batch, rng: SampleRandom) -> dict[str, Tensor]:
        """Figures of each sample by name, [b]; nan where a sample has none. The same names for every batch.

        `model` holds the averaged weights. The means over all samples go to `summarise`.
        """
        ...
