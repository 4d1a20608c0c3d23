"""Steps whose gradient was not finite: flagged on the device, named with their samples at the next log.

Too many in a row stop the run.
"""

import logging

import torch
from torch import Tensor

from train.run.checkpoint import RunProgress
from train.run.launch import Launch

log = logging.getLogger(__name__)


class NonFiniteGradient(RuntimeError):
    """Too many steps in a row had a gradient that is not finite."""


class BadSteps:
    """Flags of the steps since the last `check`, with the keys of their samples.

    Args:
        limit: Bad steps in a row that stop the run.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._flags: list[Tensor] = []
        self._scales: list[Tensor] = []
        self._steps: list[tuple[int, list[str]]] = []

    def record(self, step: int, good: Tensor, scale: Tensor, keys: list[str]) -> None:
        """Note a step: whether it was applied, its loss scale (both scalars on the device), this rank's sample keys."""
        self._flags.append(good)
        self._scales.append(scale)
        self._steps.append((step, keys))

    def check(self, progress: RunProgress, launch: Launch) -> None:
        """Read the flags, count and name the bad steps. All ranks must call; the flags are equal on all of them.

        A step whose loss was scaled by more than one may have overflowed by that alone: it counts, but not as one of
        those in a row, since the scale is halved until no step does or it is one.

        Raises:
            NonFiniteGradient: `limit` steps in a row were bad.
        """
        if not self._flags:
            return
        flags, scales = torch.stack(self._flags).tolist(), torch.stack(self._scales).tolist()
        steps, self._flags, self._scales, self._steps = self._steps, [], [], []
        for (step, keys), good, scale in zip(steps, flags, scales, strict=True):
            if good:
                progress.bad_in_row = 0
                continue
            progress.bad_steps += 1
            if scale > 1:
                log.info("step %d: the gradient overflowed at loss scale %g, the step was not applied", step, scale)
                continue
            progress.bad_in_row += 1
            named = f"step {step}: the gradient is not finite, the step was not applied; samples {launch.gather(keys)}"
            log.warning(named)
            if progress.bad_in_row >= self.limit:
                raise NonFiniteGradient(
                    f"{named}. That is {self.limit} in a row (optim.max_bad_steps): lower optim.lr or optim.grad_clip, "
                    "or look at these samples. The newest checkpoint is from before."
                )
