"""The variance-preserving noise schedule that every method shares: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps.

Samplers in other conventions (diffusers' Euler works in VE space) are adapters at the border; the networks themselves
take VP latents.
"""

from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def trailing_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> tuple[int, ...]:
    """Timestep indices from noisy to clean as diffusers' "trailing" spacing gives them: 4 -> (999, 749, 499, 249).

    Raises ValueError if `num_steps` is not between 1 and `num_train_timesteps`.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps is {num_steps}; expected 1 to {num_train_timesteps}")
    return tuple(round(num_train_timesteps * (1 - i / num_steps)) - 1 for i in range(num_steps))


class NoiseSchedule:
    """Forward noising and the conversions between a network's output, x0 and noise.

    Args:
        alphas_cumprod: abar_t for every training timestep, [T], in (0, 1].
        prediction_type: what the network's output means: "epsilon", "v_prediction" or "sample" (x0).
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {prediction_type!r}; expected one of {PREDICTION_TYPES}")
        self.alphas_cumprod = alphas_cumprod.detach().cpu().double()
        self.prediction_type = prediction_type
        self._cached: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> "NoiseSchedule":
        """The schedule of any diffusers scheduler that was built from betas (DDPM, DDIM, Euler, LCM ...)."""
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(abar_t), sqrt(1 - abar_t)) for t [B], in the dtype of `like` [B, ...], shaped to broadcast over it."""
        key = (like.device, like.dtype)
        if key not in self._cached:
            root = self.alphas_cumprod.sqrt().to(like.device, like.dtype)
            self._cached[key] = (root, (1 - self.alphas_cumprod).sqrt().to(like.device, like.dtype))
        signal, noise = self._cached[key]
        shape = (-1,) + (1,) * (like.ndim - 1)
        return signal[t].view(shape), noise[t].view(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise; all [B, C, h, w], t [B]."""
        a, b = self.coefficients(t, x0)
        return a * x0 + b * noise

    def predict_x0(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The x0 that a network's `output` at `x_t` stands for (TurboEdit, eq. 3 for epsilon)."""
        a, b = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - b * output) / a
        if self.prediction_type == "v_prediction":
            return a * x_t - b * output
        return output

    def predict_noise(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise that a network's `output` at `x_t` stands for."""
        a, b = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return b * x_t + a * output
        return (x_t - a * output) / b

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Output that a network of this prediction type should output at add_noise(x0, noise, t)."""
        a, b = self.coefficients(t, x0)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return a * noise - b * x0
        return x0
