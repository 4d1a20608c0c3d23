"""Figures of held-out samples: what a task says of each, averaged over all ranks, and whether they are the best so far.

The same samples with the same noise each time, whatever the number of ranks and the micro batch.
"""

import logging
import math

import torch
from torch import Tensor, nn

from data.shards.dataset import ShardDataset
from models.precision import widest
from train.heldout.samples import HeldOutSamples
from train.rng import SampleRandom
from train.run.config import VALID, FitConfig
from train.run.launch import Launch
from train.task import StepLoss, Task, Validates

log = logging.getLogger(__name__)


class HeldOut:
    """The held-out samples of a run as its task sees them.

    Args:
        config: Config of the run, with `data.validation`.
        task: The method.
        training: The samples of the training.

    Raises:
        ValueError: as of `HeldOutSamples`, or a probe for a task that tries no edits.
    """

    def __init__(self, config: FitConfig, task: Task, training: ShardDataset) -> None:
        probed = isinstance(task, Validates) and task.tries_edits
        if config.data.probe is not None and not probed:
            raise ValueError(f"data.probe is {config.data.probe}, and this method tries no edits: leave it out")
        self.config, self.task = config, task
        self.samples = HeldOutSamples(config, training, task.fields, probed)
        edits = "edits are tried where a target is known" if probed else "no edits are tried on them"
        log.info("%d held-out samples of %s; %s", len(self.samples.numbers), config.data.validation, edits)

    def is_due(self, step: int, last: bool) -> bool:
        """Whether the run looks at its held-out samples after a number of steps, of which the last may be the last."""
        every = self.config.log.validate_every
        return every > 0 and (last or step % every == 0)

    @torch.no_grad()
    def figures(self, module: nn.Module, launch: Launch) -> dict[str, float]:
        """Means over the samples by name, `valid/...`, of a module in evaluation mode. All ranks enter.

        A sample whose figure is nan does not count in its mean; a figure that no sample has is missing.
        """
        names: list[str] = []
        total: Tensor | None = None  # [2, K]: sums and counts
        batches = self.samples.batches(self.config.run.micro_batch, launch.rank, launch.world_size)
        for batch, counts in batches:
            moved = {n: v.to(launch.device) if isinstance(v, Tensor) else v for n, v in batch.items()}
            rng = SampleRandom(self.config.run.seed, batch["key"], launch.device)
            with launch.autocast():
                found = self._of_each(module, moved, rng)
            names = list(found)
            values = torch.stack([value.to(launch.device, widest(launch.device)) for value in found.values()])  # [K, b]
            part = torch.stack([values.nansum(1), (~values.isnan()).to(values.dtype).sum(1)])
            part = part if counts else torch.zeros_like(part)
            total = part if total is None else total + part
        assert total is not None, "shards are never empty"
        sums, numbers = launch.sum(total).tolist()
        means = {name: s / n for name, s, n in zip(names, sums, numbers, strict=True) if n > 0}
        return {VALID + name: value for name, value in self.task.summarise(means).items()}

    def _of_each(self, module: nn.Module, batch: dict, rng: SampleRandom) -> dict[str, Tensor]:
        if isinstance(self.task, Validates):
            return self.task.validate(module, batch, rng)
        return loss_of_each(self.task.loss(module, batch, rng), len(batch["key"]), self.task.groups)


def loss_of_each(result: StepLoss, count: int, groups: tuple[str, ...]) -> dict[str, Tensor]:
    """Loss, terms and reports of `count` samples as one value a sample, [count], and nan in other groups than its own.

    A mean over the samples stands for each of them.
    """
    scalars = {"loss": torch.stack(list(result.terms.values())).sum(), **result.terms, **result.report}
    found = {name: value.float().expand(count) for name, value in scalars.items()}
    if result.group is None:
        return found
    for name in [name for name, value in result.report.items() if value.dim()]:
        for number, group in enumerate(groups):
            found[f"{name}/{group}"] = found[name].masked_fill(result.group != number, math.nan)
    return found
