"""G: a few-step text-to-image model as a predictor of x0, with consistency-style re-noising.

This is not SDXL-Turbo's stock Euler-ancestral step, which carries a part of the old noise along.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbone import Backbone
from .options import TURBO_TIMESTEPS
from .text import Prompt


class FewStepGenerator:
    """A frozen backbone that predicts x0 at a few timesteps.

    Args:
        backbone: a backbone with its network loaded.
        timesteps: the timesteps at which it is used, from noisy to clean: indices, or real numbers of a flow.

    Raises:
        ValueError: timesteps that the backbone's schedule does not have, or that do not fall.
    """

    def __init__(self, backbone: Backbone, timesteps: Sequence[float] = TURBO_TIMESTEPS) -> None:
        self.backbone = backbone
        self.schedule = backbone.schedule
        self.timesteps = self.schedule.read_timesteps(timesteps)

    def predict_x0(self, x_t: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """G(x_t, c, t): estimate of x0 [B, C, h, w] at x_t [B, C, h, w], t [B] (TurboEdit, eq. 3); differentiable."""
        return self.schedule.predict_x0(self.backbone.seen(x_t), self.backbone.predict(x_t, prompt, t), t)

    @torch.no_grad()
    def sample(self, noises: Sequence[Tensor], prompt: Prompt) -> list[Tensor]:
        """x0 after each step from one noise [B, C, h, w] a step, starting at x0 = 0 as TurboEdit does.

        Fewer noises than timesteps give fewer steps.
        """
        x0 = torch.zeros_like(noises[0])
        estimates = []
        for t, noise in zip(self.timesteps, noises, strict=False):
            steps = torch.full((len(noise),), t, device=noise.device)
            x0 = self.predict_x0(self.schedule.add_noise(x0, noise, steps), prompt, steps)
            estimates.append(x0)
        return estimates
