"""Averages over a log interval, kept on the device so that no step waits for the host."""

import logging

import torch
from torch import Tensor

from models.precision import widest
from train.run.launch import Launch
from train.task import StepLoss

log = logging.getLogger(__name__)


class Meters:
    """Means of losses and reports over the steps since the last `read`.

    A step's micro batches are `add`ed and then `commit`ted; a step that was not applied leaves nothing. Sums and counts
    are float64 where the device has it.

    Args:
        groups: Names of the task's groups.
        device: Device of the sums.
    """

    def __init__(self, groups: tuple[str, ...], device: torch.device) -> None:
        self.groups = groups
        self.device = device
        self._dtype = widest(device)
        self._names: list[str] = []  # of the K columns that micro batches fill
        self._extra: list[str] = []  # of the E columns that `commit` adds
        self._pending: Tensor | None = None  # [2, K]: sums and counts of the present step
        self._former = False  # whether the sums are those of a checkpoint
        self._total: Tensor | None = None  # [2, K + E]: of the interval

    @torch.no_grad()
    def add(self, loss: Tensor, result: StepLoss) -> None:
        """Add one micro batch.

        Raises:
            ValueError: a report is neither a scalar nor [b], or the names differ from those of earlier steps.
        """
        scalars = {"loss": loss, **result.terms}
        samples: dict[str, Tensor] = {}
        for name, value in result.report.items():
            if value.dim() > 1 or name in scalars:
                raise ValueError(
                    f"report {name!r} has shape {tuple(value.shape)}; expected a scalar or one value per sample, "
                    "under a name that is no term's"
                )
            (samples if value.dim() else scalars)[name] = value
        names = [*scalars, *samples]
        sums = torch.stack([v.detach().to(self._dtype) for v in scalars.values()])
        counts = torch.ones_like(sums)
        if samples:
            values = torch.stack([v.detach().to(self._dtype) for v in samples.values()])  # [R, b]
            sums = torch.cat([sums, values.sum(1)])
            counts = torch.cat([counts, torch.full_like(values[:, 0], values.shape[1])])
            if result.group is not None:
                names += [f"{name}/{group}" for name in samples for group in self.groups]
                group = result.group.to(values.device, non_blocking=True)
                grouped = values.new_zeros(len(samples), len(self.groups)).index_add_(1, group, values)
                sizes = torch.zeros_like(grouped).index_add_(1, group, torch.ones_like(values))
                sums, counts = torch.cat([sums, grouped.flatten()]), torch.cat([counts, sizes.flatten()])
        if self._former and self._names != names:
            log.warning("what the run reports has changed since its checkpoint: its averages begin with this step")
            self._total = None
            self._names = names
        self._former = False
        if self._names and self._names != names:
            raise ValueError(f"a task must report the same names in every step: {names} after {self._names}")
        self._names = names
        step = torch.stack([sums, counts])
        self._pending = step if self._pending is None else self._pending + step

    @torch.no_grad()
    def commit(self, good: Tensor, extra: dict[str, Tensor]) -> None:
        """Close a step; it counts only if `good` (bool scalar on the device). `extra`: scalars of the step itself."""
        assert self._pending is not None, "commit without add"
        sums = torch.stack([v.detach().to(self._dtype) for v in extra.values()])
        step = torch.cat([self._pending, torch.stack([sums, torch.ones_like(sums)])], dim=1)
        self._extra = list(extra)
        step = torch.where(good, step, torch.zeros_like(step))
        self._total = step if self._total is None else self._total + step
        self._pending = None

    def read(self, launch: Launch) -> dict[str, float]:
        """Means over the interval and over all ranks, by name; then start anew. The one transfer of a log interval."""
        if self._total is None:
            return {}
        sums, counts = launch.sum(self._total).tolist()
        self._total = None
        names = self._names + self._extra
        return {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n > 0}

    def state(self, launch: Launch) -> dict[str, list]:
        """State for a checkpoint inside an interval: the sums of all ranks, which the first rank then owns."""
        if self._total is None:
            return {}
        total = launch.sum(self._total)
        self._total = total if launch.is_main else torch.zeros_like(total)
        return {"names": self._names, "extra": self._extra, "total": total.tolist()}

    def load(self, state: dict[str, list], launch: Launch) -> None:
        """Take up a state that was saved by `state`."""
        if state:
            self._names, self._extra = list(state["names"]), list(state["extra"])
            self._former = True
            total = torch.tensor(state["total"], dtype=self._dtype, device=self.device)
            self._total = total if launch.is_main else torch.zeros_like(total)
