"""Masks of where an edit may change the picture (TurboEdit, local masks).

Either a mask that the user drew, or one from the attention to the words that differ between two prompts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_maps import token_heat


def word_mask(maps: Tensor, tokens: Sequence[Sequence[int]], threshold: float) -> Tensor:
    """Binary mask [B, 1, r, r] of the attention to some tokens.

    Args:
        maps: cross-attention maps [B, r*r, L].
        tokens: positions in each image's prompt, such as those of the words that another prompt lacks.
        threshold: share of the strongest attention above which a place counts.
    """
    return (token_heat(maps, tokens) > threshold).float()


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur `image` [B, 1, H, W] with standard deviation `sigma` pixels, edges repeated."""
    radius = int(3 * sigma + 0.5)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="replicate"), kernel)
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))


def soft_mask(mask: Tensor, size: tuple[int, int], blur: float) -> Tensor:
    """Blur `mask` [B, 1, H, W] in [0, 1], then resize it to a latent's (h, w); `blur` is in latent pixels."""
    mask = gaussian_blur(mask.float(), blur * mask.shape[-1] / size[1])
    return F.interpolate(mask, size, mode="bilinear", antialias=True).clamp(0, 1)
