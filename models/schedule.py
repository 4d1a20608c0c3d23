"""How pictures become noise, x_t = a(t) x0 + b(t) eps, and what a network's output at x_t stands for.

Three schedules in one class: variance preserving (a = sqrt(abar_t), b = sqrt(1 - abar_t) at whole numbers t),
rectified flow (a = 1 - t, b = t for t in [0, 1], the sigma of diffusers) and trigonometric (a = cos t, b = sin t for t
in [0, pi / 2]). Samplers in other conventions (diffusers' Euler works in VE space) are adapters at the border; what a
network is fed for t is its family's affair.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SCMScheduler
from torch import Tensor

from .precision import widest

PREDICTED = {
    "variance_preserving": ("epsilon", "v_prediction", "sample"),
    "rectified_flow": ("velocity", "sample"),
    "trigonometric": ("trigflow", "sample"),
}
"""What networks predict, by the schedule."""

Flow = Literal["rectified_flow", "trigonometric"]
"""Schedules whose t is a real number."""

_LAST = {"rectified_flow": 1.0, "trigonometric": math.pi / 2}
_ROUNDED = 1e-5  # diffusers' SCMScheduler calls pi / 2 1.5708


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
        levels: abar_t for every training timestep, [T], in [0, 1], of a variance-preserving schedule; else the name of
            one whose t is a real number, "rectified_flow" or "trigonometric".
        prediction_type: what the network's output means: "epsilon", "v_prediction" (a eps - b x0) or "sample" (x0);
            "velocity" (eps - x0) of a rectified flow; "trigflow" (cos t eps - sin t x0, which is v) of a trigonometric.

    Raises:
        ValueError: a prediction type that is unknown or of another schedule, or epsilon where a timestep holds nothing
            but noise: x0 = (x_t - b eps) / a divides by zero there.
    """

    def __init__(self, levels: Tensor | Flow, prediction_type: str) -> None:
        self.kind: str = levels if isinstance(levels, str) else "variance_preserving"
        self.prediction_type = prediction_type
        if prediction_type not in PREDICTED[self.kind]:
            raise ValueError(
                f"prediction_type is {prediction_type!r}; expected one of {PREDICTED[self.kind]} of this "
                f"{self.kind.replace('_', '-')} schedule"
            )
        self._abar = None if isinstance(levels, str) else levels.detach().cpu().double()
        if prediction_type == "epsilon" and self.reaches_pure_noise:
            raise _divides_by_zero()
        self._cached: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_scheduler(cls, scheduler: Any, prediction_type: str | None = None) -> "NoiseSchedule":
        """The schedule of a diffusers scheduler: one of betas (DDPM, DDIM, Euler, LCM, TCD), a flow's, or SCM's.

        Args:
            scheduler: the scheduler.
            prediction_type: what the network predicts, where the scheduler does not know it: of a UNet that was
                distilled to another.

        Raises:
            ValueError: a scheduler of another kind, a flow's whose network does not predict the velocity, or epsilon
                with zero terminal SNR (`rescale_betas_zero_snr`).
        """
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return cls("rectified_flow", prediction_type or "velocity")
        if isinstance(scheduler, SCMScheduler):
            return cls("trigonometric", prediction_type or scheduler.config.prediction_type)
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"the scheduler is a {type(scheduler).__name__}; expected one that is built from betas (such as DDPM, "
                "DDIM, Euler, LCM or TCD), FlowMatchEulerDiscreteScheduler or SCMScheduler"
            )
        prediction_type = prediction_type or scheduler.config.prediction_type
        if prediction_type == "epsilon" and scheduler.config.get("rescale_betas_zero_snr"):
            raise _divides_by_zero()  # Euler's abar is 2^-24 there
        return cls(scheduler.alphas_cumprod, prediction_type)

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_t [T] in float64 of a variance-preserving schedule.

        Raises:
            ValueError: the schedule is another.
        """
        if self._abar is None:
            raise ValueError(
                f"the schedule is {self.kind} and has no alphas_cumprod: what is asked for works on "
                "variance-preserving models alone, such as Stable Diffusion's and SDXL's"
            )
        return self._abar

    @property
    def reaches_pure_noise(self) -> bool:
        """Whether a(t) is zero at the noisiest t, as of all flows; else a little of x0 stays in every x_t."""
        return self._abar is None or bool((self._abar <= 0).any())

    def read_timesteps(self, numbers: Sequence[float], option: str = "timesteps") -> tuple[float, ...]:
        """The timesteps from noisy to clean that `numbers` name: ints of a variance-preserving schedule, else floats.

        Args:
            numbers: indices 0..T - 1; or sigmas above 0 and up to 1; or angles above 0 and up to pi / 2.
            option: name of what they come from, for errors.

        Raises:
            ValueError: none, some that do not fall, that are out of range, or that are no indices.
        """
        falling = sorted(set(numbers), reverse=True)
        whole = all(float(t).is_integer() for t in numbers)
        words = f"{option} is {', '.join(f'{t:g}' for t in numbers) or 'empty'}; expected falling"
        if self._abar is not None:
            last = len(self._abar) - 1
            if not falling or list(numbers) != falling or not whole or falling[0] > last or falling[-1] < 0:
                raise ValueError(f"{words} indices from {last} to 0 such as {trailing_timesteps(4, last + 1)}")
            return tuple(int(t) for t in numbers)
        last_angle = _LAST[self.kind]
        if not falling or list(numbers) != falling or falling[0] > last_angle + _ROUNDED or falling[-1] <= 0:
            raise ValueError(
                f"{words} numbers from {last_angle:.6g} to above 0, such as {last_angle:.6g}, {last_angle / 2:.6g}, of "
                f"this {self.kind.replace('_', ' ')}"
            )
        return tuple(float(t) for t in numbers)

    def fewer(self, numbers: Sequence[float]) -> dict[int, tuple[float, ...]]:
        """The evenly spaced ones of some timesteps by their number, and all of them.

        Of indices they are the trailing ones: of (999, 749, 499, 249) two are (999, 499). Of real numbers, which no
        rule spaces, they are each second, each third and so on, from the noisiest.
        """
        known, count = tuple(numbers), len(numbers)
        if self._abar is None:
            return {n: known[:: count // n] for n in range(1, count + 1) if count % n == 0}
        trailing = {n: trailing_timesteps(n, len(self._abar)) for n in range(1, count)}
        return {n: chosen for n, chosen in trailing.items() if set(chosen) <= set(known)} | {count: known}

    def times(self, numbers: Sequence[float], device: torch.device | str | None = None) -> Tensor:
        """A tensor of numbers that `read_timesteps` takes: int64, or float32 of a flow.

        No t is ever of 16 bits: bfloat16 makes 1000 of 999.

        Raises:
            ValueError: numbers that are no timesteps.
        """
        dtype = torch.float32 if self._abar is None else torch.int64
        return torch.tensor(self.read_timesteps(numbers), dtype=dtype, device=device)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a(t), b(t)) for t [B], in the dtype of `like` [B, ...], shaped to broadcast over it."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        signal, noise = self._table(t, like) if self._abar is not None else self._functions(t)
        return signal.to(like.dtype).view(shape), noise.to(like.dtype).view(shape)

    def _table(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(abar_t), sqrt(1 - abar_t)) [B], which were rooted in float64 and lie on the device of `like`."""
        key = (like.device, like.dtype)
        if key not in self._cached:
            root = self.alphas_cumprod.sqrt().to(like.device, like.dtype)
            self._cached[key] = (root, (1 - self.alphas_cumprod).sqrt().to(like.device, like.dtype))
        signal, noise = self._cached[key]
        return signal[t], noise[t]

    def _functions(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - t, t) or (cos t, sin t) [B], in float64 where the device has it."""
        t = t.to(widest(t.device))
        return (1 - t, t) if self.kind == "rectified_flow" else (t.cos(), t.sin())

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a(t) x0 + b(t) noise; all [B, C, h, w], t [B]."""
        a, b = self.coefficients(t, x0)
        return a * x0 + b * noise

    def predict_x0(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The x0 that a network's `output` at `x_t` stands for (TurboEdit, eq. 3 for epsilon)."""
        a, b = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - b * output) / a
        if self.prediction_type in ("v_prediction", "trigflow"):
            return a * x_t - b * output
        if self.prediction_type == "velocity":
            return x_t - b * output
        return output

    def predict_noise(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise that a network's `output` at `x_t` stands for."""
        a, b = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type in ("v_prediction", "trigflow"):
            return b * x_t + a * output
        if self.prediction_type == "velocity":
            return x_t + a * output
        return (x_t - a * output) / b

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Output that a network of this prediction type should output at add_noise(x0, noise, t)."""
        a, b = self.coefficients(t, x0)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type in ("v_prediction", "trigflow"):
            return a * noise - b * x0
        if self.prediction_type == "velocity":
            return noise - x0
        return x0


def _divides_by_zero() -> ValueError:
    return ValueError(
        "the network predicts epsilon and the schedule ends in pure noise (zero terminal SNR, rescale_betas_zero_snr): "
        "x0 = (x_t - b eps) / a divides by zero there; take a model that predicts v_prediction, or a scheduler whose "
        "rescale_betas_zero_snr is false"
    )
