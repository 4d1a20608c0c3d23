"""Shared parts of the editors: levels of noise, the steps between them, and the text and picture ends of an edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.schedule import NoiseSchedule
from models.text import Prompt, interpolate
from models.turboedit_pipeline import TurboEditPipeline

CLEAN = -1
"""The timestep below all others: no noise, abar = 1."""


def abar(schedule: NoiseSchedule, t: float) -> float:
    """abar_t, and 1 for CLEAN (diffusers' set_alpha_to_one)."""
    return 1.0 if t == CLEAN else schedule.alphas_cumprod[int(t)].item()


def downwards(timesteps: Sequence[float]) -> list[tuple[float, float]]:
    """(from, to) of each denoising step: (999, 749, 499, 249) -> (999, 749), (749, 499), (499, 249), (249, CLEAN)."""
    return list(pairwise((*timesteps, CLEAN)))


def level(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    """(a, b) of x_t = a x0 + b eps, of any schedule; (1, 0) for CLEAN."""
    if t == CLEAN:
        return 1.0, 0.0
    if schedule.kind == "variance_preserving":
        return abar(schedule, t) ** 0.5, (1 - abar(schedule, t)) ** 0.5
    a, b = schedule.coefficients(schedule.times([t]), torch.empty(1, dtype=torch.float64))
    return a.item(), b.item()


def implied_noise(schedule: NoiseSchedule, x_t: Tensor, x0: Tensor, t: float) -> Tensor:
    """The noise that turns `x0` into `x_t`: (x_t - a x0) / b."""
    a, b = level(schedule, t)
    return (x_t - a * x0) / b


def full(t: float, like: Tensor) -> Tensor:
    """The timestep `t` for each row of `like`, [B]: int64, or float32 of a flow."""
    return torch.full((len(like),), t, device=like.device)


def networks_of(backbone: Backbone) -> tuple[nn.Module, ...]:
    """The networks whose evaluations count for a method that only has the generator."""
    assert backbone.network is not None, "the backbone was loaded without its network"
    return (backbone.network,)


def require_unet(backbone: Backbone, method: str) -> None:
    """Refuse a generator without a UNet to a `method` that reads or changes attention.

    Raises:
        ValueError: the generator is a transformer.
    """
    if backbone.NETWORK_NAME != "unet":
        raise ValueError(
            f"{method} works on a UNet's attention layers, as of Stable Diffusion and SDXL; the generator is a "
            f"{backbone.NETWORK.__name__}"
        )


def generator_of(pipeline: TurboEditPipeline) -> FewStepGenerator:
    """The few-step generator on which the pipeline's encoder was trained."""
    return FewStepGenerator(pipeline.backbone, pipeline.timesteps)


def target_prompt(backbone: Backbone, source: Prompt, targets: Sequence[str], strength: float | None) -> Prompt:
    """The prompt source + strength (target - source) in embeddings, by default the target, of the source's size."""
    return interpolate(source, [backbone.encode_text(targets)], [1.0 if strength is None else strength])


def decode_latents(backbone: Backbone, latent: Tensor) -> Tensor:
    """Images [B, 3, H, W] of scaled latents, clamped to [-1, 1] as a picture on disk would be."""
    return backbone.decode(latent).clamp(-1, 1)


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


def ancestral_step(schedule: NoiseSchedule, t: float, s: float) -> AncestralStep:
    """The step from timestep t to the cleaner s, which may be CLEAN."""
    a_t, a_s = abar(schedule, t), abar(schedule, s)
    r_t, r_s = (1 / a_t - 1) ** 0.5, (1 / a_s - 1) ** 0.5
    down = r_s**2 / r_t
    up = (r_s**2 - down**2) ** 0.5
    return AncestralStep((a_s / a_t) ** 0.5, a_s**0.5 * (down - r_t), a_s**0.5 * up)


OFFICIAL_SIZE = 4 * 64 * 64


def size_ratio(latent: Tensor) -> float:
    """Size of each latent of `latent` [B, C, h, w] as a multiple of the official one.

    A norm grows with its root. A gradient step on a mean over all places moves each by the inverse of their number, so
    for the same effect its rate has to grow with it.
    """
    return latent[0].numel() / OFFICIAL_SIZE
