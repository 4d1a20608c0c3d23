"""DDIM in either direction for Stable Diffusion's many steps, guided noise, and the pivots of an inversion.

Pivots of n steps are n + 1 latents from the noisiest to the image's own: step i leads from pivots[i] to pivots[i + 1].
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .backbone import Backbone
from .own_dtype import GradientScale
from .precision import widest
from .schedule import NoiseSchedule
from .text import Prompt, concatenate

Predictor = Callable[[Tensor, int], Tensor]
"""(x [B, 4, h, w], step) -> the noise in x at that step."""


class Ddim:
    """Timesteps of n steps, and the deterministic move between their levels of noise (Song et al. 2021, eq. 12).

    Args:
        schedule: noise schedule of the backbone.
        num_steps: n; where it does not divide the training timesteps T the stride is T // n, as in diffusers' "leading"
            spacing: StyleDiffusion's 30 steps start at 957 (958).
        steps_offset: 1 gives 981, 961 ... 1 for 50 steps, as Stable Diffusion's scheduler does; 0 gives 980, 960 ... 0
            as the official codes of Prompt-to-Prompt, null-text inversion and StyleDiffusion do. With 0 the last step
            starts and ends at abar_0, so it changes nothing (nor does the first of an inversion).

    Raises:
        ValueError: a number of steps or an offset that cannot be.
    """

    def __init__(self, schedule: NoiseSchedule, num_steps: int, steps_offset: int = 1) -> None:
        training = len(schedule.alphas_cumprod)
        if not 1 <= num_steps <= training:
            raise ValueError(f"num_steps is {num_steps}; expected 1 to the {training} training timesteps")
        if steps_offset not in (0, 1):
            raise ValueError(f"steps_offset is {steps_offset}; expected 0 (the official codes) or 1 (Stable Diffusion)")
        self.schedule = schedule
        self.stride = training // num_steps
        # With one step per training timestep an offset of 1 would leave the schedule.
        offset = steps_offset if num_steps < training else 0
        self.timesteps = tuple(self.stride * i + offset for i in reversed(range(num_steps)))
        self._levels: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.timesteps)

    def abar(self, level: int) -> float:
        """Share abar of the signal at pivot `level`: of timesteps[level], then abar_0 (set_alpha_to_one=False)."""
        t = self.timesteps[level] if level < len(self) else max(0, self.timesteps[-1] - self.stride)
        return self.schedule.alphas_cumprod[t].item()

    def move(self, x: Tensor, noise: Tensor, start: int, end: int) -> Tensor:
        """Latent x of level `start` taken to level `end`: sqrt(abar_end) x0 + sqrt(1 - abar_end) eps.

        x0 = (x - sqrt(1 - abar_start) eps) / sqrt(abar_start). The same line serves both directions.
        """
        before, after = self.abar(start), self.abar(end)
        x0 = (x - (1 - before) ** 0.5 * noise) / before**0.5
        return after**0.5 * x0 + (1 - after) ** 0.5 * noise

    def next_latent(self, x: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Apply `move` from level steps[b] to the next cleaner one, each row b of x [B, 4, h, w] at its own step."""
        if x.device not in self._levels:
            levels = [self.abar(level) for level in range(len(self) + 1)]
            self._levels[x.device] = torch.tensor(levels, dtype=widest(x.device), device=x.device)
        before, after = (self._levels[x.device][at].view(-1, 1, 1, 1) for at in (steps, steps + 1))
        # x_end = c x + d eps, whose coefficients are float64 (where the device has it) whatever x is
        kept = (after / before).sqrt()
        added = (1 - after).sqrt() - kept * (1 - before).sqrt()
        return kept.to(x.dtype) * x + added.to(x.dtype) * noise

    def denoise(self, x: Tensor, predict: Predictor, first: int = 0) -> Tensor:
        """Invert x of level `first` to the latents [n + 1 - first, B, 4, h, w] of that level and all cleaner ones."""
        levels = [x]
        for step in range(first, len(self)):
            levels.append(self.move(levels[-1], predict(levels[-1], step), step, step + 1))
        return torch.stack(levels)

    def invert(self, x0: Tensor, predict: Predictor) -> Tensor:
        """The image's latent x0 -> pivots [n + 1, B, 4, h, w].

        On the way from level i + 1 up to level i the network gets the timestep that it is going to, timesteps[i], with
        the latent that is less noisy, as the official codes do.
        """
        levels = [x0]
        for step in reversed(range(len(self))):
            levels.append(self.move(levels[-1], predict(levels[-1], step), step + 1, step))
        return torch.stack(levels[::-1])


def matching(null: Prompt, prompt: Prompt) -> Prompt:
    """The one unconditional prompt [1] repeated for each of `prompt`'s rows, for pictures of the same sizes."""

    def repeat(x: Tensor) -> Any:
        return x.expand(len(prompt), *x.shape[1:])

    return replace(null.map(repeat), time_ids=prompt.time_ids)


def predict_noise(
    backbone: Backbone, x: Tensor, t: float | Tensor, prompt: Prompt, scale: GradientScale | None = None
) -> Tensor:
    """The noise that the backbone sees in x [B, 4, h, w] at timestep `t`, one for all or [B]; `scale` as in predict."""
    times = t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
    return backbone.schedule.predict_noise(backbone.seen(x), backbone.predict(x, prompt, times, scale), times)


def guided_noise(
    backbone: Backbone, x: Tensor, t: int, prompt: Prompt, null: Prompt | None = None, guidance: float = 1.0
) -> Tensor:
    """The noise of x [B, 4, h, w] at timestep `t`: eps_null + guidance (eps_prompt - eps_null) in one evaluation.

    At guidance 1, or without `null`, the prompt's own prediction is all that is needed.
    """
    if null is None or guidance == 1:
        return predict_noise(backbone, x, t, prompt)
    unconditional, conditional = predict_noise(backbone, torch.cat([x, x]), t, concatenate([null, prompt])).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def ddim_pivots(
    backbone: Backbone, ddim: Ddim, x0: Tensor, prompt: Prompt, null: Prompt | None = None, guidance: float = 1.0
) -> Tensor:
    """Pivots [n + 1, B, 4, h, w] of latents x0 [B, 4, h, w], at guidance 1 by default (Mokady et al. 2023, 3.1)."""
    return ddim.invert(x0, lambda x, i: guided_noise(backbone, x, ddim.timesteps[i], prompt, null, guidance))
