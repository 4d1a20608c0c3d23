"""A discriminator made of small heads on feature maps of a frozen network, and its hinge loss.

LADD (Sauer et al. 2024, "Fast high-resolution image synthesis with latent adversarial diffusion distillation").
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

WIDTH = 64
"""Channels inside a head."""


class Heads(nn.Module):
    """Feature maps [B, C_i, h_i, w_i] to a logit for each place of each map, [B, 1, h_i, w_i]: above 0 is real.

    Args:
        channels: C_i of each map.
        groups: Groups of the norm of the maps, whose sizes differ from layer to layer; divides every C_i.
    """

    def __init__(self, channels: Sequence[int], groups: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(groups, count),
                nn.Conv2d(count, WIDTH, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(WIDTH, 1, 1),
            )
            for count in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each map."""
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]

    def as_constant(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each map whose gradient reaches the features and not the heads' weights."""
        constants = {name: weight.detach() for name, weight in self.named_parameters()}
        return functional_call(self, constants, (features,))


def seeded_heads(channels: Sequence[int], groups: int, seed: int) -> Heads:
    """Heads on the CPU whose first weights follow from the seed; torch's own generator is left as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Heads(channels, groups)


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """D [B]: the mean over the places of each map [B, 1, h_i, w_i], then over the maps."""
    return torch.stack([places.flatten(1).mean(1) for places in logits]).mean(0)


def hinge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """L_D [B] = mean relu(1 - D(real)) + mean relu(1 + D(fake)) over places, then maps (Lim and Ye 2017)."""
    return mean_logit([F.relu(1 - places) for places in real]) + mean_logit([F.relu(1 + places) for places in fake])
