"""Regularised DDIM inversion (Parmar et al. 2023, section 3.2): predicted noise is pushed towards white noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8
"""Side of the coarsest level of the noise pyramid."""


@dataclass(frozen=True)
class NoiseRegularisation:
    """Regularisation of noise after every evaluation of the inversion; defaults of the official code.

    Each of `steps` rounds takes `rolls` gradient steps in the autocorrelation, whose rates sum to its weight, and one
    in the divergence. A weight of 0 leaves out its part.

    Args:
        autocorrelation, divergence: the weights lambda_ac and lambda_KL.
        steps, rolls: numbers of rounds, and of draws of a shift in each.
    """

    autocorrelation: float = 20.0
    divergence: float = 20.0
    steps: int = 5
    rolls: int = 5

    @torch.enable_grad()
    def __call__(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The regularised noise [B, C, h, w]; row i draws its shifts from generators[i]."""
        noise = noise.detach()
        for _ in range(self.steps):
            if self.autocorrelation:
                for _ in range(self.rolls):
                    shifts = random_shifts(noise.shape, generators).to(noise.device)
                    x = noise.requires_grad_()
                    (gradient,) = torch.autograd.grad(autocorrelation(x, shifts).sum(), x)
                    noise = noise.detach() - self.autocorrelation / self.rolls * gradient
            if self.divergence:
                x = noise.requires_grad_()
                (gradient,) = torch.autograd.grad(divergence(x).sum(), x)
                noise = noise.detach() - self.divergence * gradient
        return noise


def pyramid_sides(side: int) -> list[int]:
    """Sides of the levels of the noise pyramid: halved down to the first that is at most SMALLEST."""
    sides = [side]
    while sides[-1] > SMALLEST:
        sides.append(sides[-1] // 2)
    return sides


def random_shifts(shape: torch.Size, generators: Sequence[torch.Generator]) -> Tensor:
    """Shifts [B, C, levels] for noise of `shape` [B, C, h, w], each below a half of its level's side."""
    sides = pyramid_sides(shape[2])
    return torch.stack(
        [
            torch.cat([torch.randint(side // 2, (1,), generator=g) for _ in range(shape[1]) for side in sides])
            for g in generators
        ]
    ).unflatten(1, (shape[1], len(sides)))


def autocorrelation(noise: Tensor, shifts: Tensor) -> Tensor:
    """[B]: over channels and levels, mean(noise * shifted noise)^2 for shifts [B, C, levels] down and to the right."""
    total = noise.new_zeros(len(noise))
    for level in range(shifts.shape[2]):
        for dim in (2, 3):
            correlation = (noise * rolled(noise, shifts[..., level], dim)).mean(dim=(2, 3))
            total = total + correlation.square().sum(dim=1)
        noise = F.avg_pool2d(noise, 2) if level + 1 < shifts.shape[2] else noise
    return total


def rolled(noise: Tensor, shifts: Tensor, dim: int) -> Tensor:
    """Every channel of `noise` [B, C, h, w] rolled along `dim`, 2 or 3, by its own of `shifts` [B, C]."""
    places = torch.arange(noise.shape[dim], device=noise.device) - shifts[..., None]
    index = (places % noise.shape[dim]).unsqueeze(3 if dim == 2 else 2)
    return noise.gather(dim, index.expand_as(noise))


def divergence(noise: Tensor) -> Tensor:
    """[B]: var + mean^2 - 1 - log var of all of an image's noise, twice its KL divergence from N(0, 1)."""
    mean, variance = noise.mean(dim=(1, 2, 3)), noise.flatten(1).var(dim=1)
    return variance + mean.square() - 1 - (variance + 1e-7).log()
