"""What the editors share: levels of noise, the steps between them, and the text and picture ends of an edit."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.schedule import NoiseSchedule
from models.text import Prompt, interpolate

CLEAN = -1
"""The timestep below all others: no noise, abar = 1."""


def abar(schedule: NoiseSchedule, t: int) -> float:
    """abar_t, and 1 for CLEAN (diffusers' set_alpha_to_one)."""
    return 1.0 if t == CLEAN else schedule.alphas_cumprod[t].item()


def downwards(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """(from, to) of each denoising step: (999, 749, 499, 249) -> (999, 749), (749, 499), (499, 249), (249, CLEAN)."""
    return list(pairwise((*timesteps, CLEAN)))


def implied_noise(schedule: NoiseSchedule, x_t: Tensor, x0: Tensor, t: int) -> Tensor:
    """The noise that turns `x0` into `x_t`: (x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t)."""
    level = abar(schedule, t)
    return (x_t - level**0.5 * x0) / (1 - level) ** 0.5


def full(t: int, like: Tensor) -> Tensor:
    """The timestep `t` for each row of `like`, int64 [B]."""
    return torch.full((len(like),), t, device=like.device)


def networks_of(backbone: Backbone) -> tuple[nn.Module, ...]:
    """The networks whose evaluations count for a method that only has the generator."""
    assert backbone.unet is not None, "the backbone was loaded without its UNet"
    return (backbone.unet,)


def target_prompt(backbone: Backbone, source: Prompt, targets: Sequence[str], strength: float | None) -> Prompt:
    """source + strength (target - source) in prompt embeddings; the target itself by default."""
    return interpolate(source, [backbone.encode_text(targets)], [1.0 if strength is None else strength])


def decode(backbone: Backbone, latent: Tensor) -> Tensor:
    """Images [B, 3, H, W] of scaled latents, clamped to [-1, 1] as a picture on disk would be."""
    return backbone.decode(latent).clamp(-1, 1)
