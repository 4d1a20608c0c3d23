"""Weights of the samples' errors and of their kinds: by timestep, and along the run."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

EVEN_ERROR = 0.1
"""Squared error at which `balanced` weighs 1: about a trained encoder's mean over its timesteps, in latents of variance
1, so that the error keeps its size beside other terms and the clipped gradient."""


class TimestepWeights:
    """Weights of the samples' squared errors, as objective.timestep_weights says.

    `balanced` is (0.1 / error)^0.5 without gradient, of each sample itself: its gradient is that of the error's root.
    Errors at 999 are ten times those at 249, of which the last reconstruction is made. An average by timestep in the
    place of a sample's own would be a state of the run; this is a function of the sample, the same on one process and
    on many and after a resume, and it also spares easy pictures from being outweighed by hard ones, as PSNR does
    (MeanFlow, Geng et al. 2025, weighs adaptively too).

    Args:
        weights: One for each timestep, "balanced", or None for 1.
        device: Device of the errors.
    """

    def __init__(
        self, weights: Sequence[float] | Literal["balanced"] | None, device: torch.device | str = "cpu"
    ) -> None:
        self._balanced = weights == "balanced"
        given = weights is not None and not self._balanced
        self._given = torch.tensor(weights, dtype=torch.float32, device=device) if given else None

    def __call__(self, error: Tensor, group: Tensor) -> Tensor:
        """Weigh the errors [B] of samples whose timesteps have the numbers `group` [B]."""
        if self._balanced:
            return error * (EVEN_ERROR / error.detach().clamp_min(1e-6)).sqrt()
        return error if self._given is None else error * self._given[group]


def own_share_at(step: int, share: float, ramp: float, total_steps: int) -> float:
    """Share of own reconstructions at optimizer step `step` (from 0): it rises linearly from 0 over a part of the run.

    DMD2 and AnyFlow call these backward simulation; FlashIn trains on nothing else. Early in a run F is bad and would
    drag the reconstructions off.

    Args:
        share: Share after the rise.
        ramp: Part of the run over which it rises; 0 has none.
        total_steps: Steps of the run.
    """
    return share * min(1.0, step / (ramp * total_steps)) if ramp else share
