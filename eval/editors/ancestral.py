"""The stock sampler of SDXL-Turbo, diffusers' Euler-ancestral, in the variance-preserving convention."""

from dataclasses import dataclass

from torch import Tensor

from eval.editors.few_steps import abar
from models.schedule import NoiseSchedule


@dataclass(frozen=True)
class AncestralStep:
    """x_s = kept x_t + added eps + sigma z, from timestep t to the cleaner s, for predicted noise eps and fresh z.

    diffusers keeps y = x / sqrt(abar), whose noise has deviation r = sqrt(1 / abar - 1), and steps by
    y_s = y_t + (r_down - r_t) eps + r_up z with r_down = r_s^2 / r_t and r_up^2 = r_s^2 - r_down^2. The last step, to
    CLEAN, ends at the prediction of x0 and adds no noise. DDIM with eta 1 is the same sampler (eval.editors.ddpm).
    """

    kept: float
    added: float
    sigma: float

    def forward(self, x: Tensor, noise: Tensor, z: Tensor | None) -> Tensor:
        """x_s of x_t [B, C, h, w]; without z its mean."""
        mean = self.kept * x + self.added * noise
        return mean if z is None else mean + self.sigma * z

    def back(self, x: Tensor, noise: Tensor, z: Tensor | None) -> Tensor:
        """The x_t from which `forward` leads to x_s [B, C, h, w] with this noise and z."""
        known = x - self.added * noise
        return (known if z is None else known - self.sigma * z) / self.kept


def ancestral_step(schedule: NoiseSchedule, t: int, s: int) -> AncestralStep:
    """The step from timestep t to the cleaner s, which may be CLEAN."""
    a_t, a_s = abar(schedule, t), abar(schedule, s)
    r_t, r_s = (1 / a_t - 1) ** 0.5, (1 / a_s - 1) ** 0.5
    down = r_s**2 / r_t
    up = (r_s**2 - down**2) ** 0.5
    return AncestralStep((a_s / a_t) ** 0.5, a_s**0.5 * (down - r_t), a_s**0.5 * up)
