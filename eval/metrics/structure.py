"""Structure distance: how far a picture's layout is from another's, whatever their colours and textures.

Tumanyan et al. 2022 (Splice): the cosine self-similarity of the keys of a vision transformer's last layer (all tokens,
heads side by side), compared as a mean squared error. They and PIE-Bench take DINO ViT-B/8's; those of a CLIP, or of
any transformers ViTModel, serve as well but give other figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 1000.0
"""Distances are printed times 1000, as in PIE-Bench's tables."""


@dataclass(frozen=True)
class DinoPixels:
    """Pictures as DINO gets them for structure distances: shorter side 224, at most 480 long, ImageNet's normalisation.

    Args:
        published: do as PIE-Bench's official code: levels of 0 to 255 are normalised as if they were in [0, 1], and
            resized without antialiasing (torchvision's Resize of tensors before 0.17; the tables are from 0.13).
        today: the official code with torchvision from 0.17 on: `published`, but with antialiasing.
    """

    published: bool = False
    today: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Pixel values [B, 3, h, w] of images [B, 3, H, W] in [-1, 1]."""
        size = _resized(*images.shape[-2:])
        values = (images.float() + 1) * (127.5 if self.published else 0.5)
        if size != tuple(images.shape[-2:]):
            values = functional.interpolate(values, size, mode="bilinear", antialias=self.today or not self.published)
        mean, std = (torch.tensor(x, device=values.device).view(1, 3, 1, 1) for x in (_MEAN, _STD))
        return (values - mean) / std


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORT, _LONG = 224, 480


def _resized(height: int, width: int) -> tuple[int, int]:
    """Torchvision's Resize(224, max_size=480)."""
    short, long = min(height, width), max(height, width)
    new_short, new_long = _SHORT, int(_SHORT * long / short)
    if new_long > _LONG:
        new_short, new_long = int(_LONG * new_short / new_long), _LONG
    return (new_short, new_long) if height <= width else (new_long, new_short)


class Structure:
    """Self-similarities of pictures and the distances between them.

    Args:
        vision: a CLIP's vision encoder or a ViTModel.
        pixels: makes what the network takes of images [B, 3, H, W] in [-1, 1].
    """

    def __init__(self, vision: Any, pixels: Callable[[Tensor], Tensor]) -> None:
        self.vision = vision
        self.pixels = pixels
        self._keys = [module for name, module in vision.named_modules() if name.endswith(("k_proj", ".key"))][-1]

    @torch.no_grad()
    def similarity(self, images: Tensor) -> Tensor:
        """Cosines [B, N, N] between the keys of all tokens of images [B, 3, H, W] in [-1, 1], heads side by side."""
        found: list[Tensor] = []
        hook = self._keys.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self.vision(pixel_values=self.pixels(images), interpolate_pos_encoding=True)
        finally:
            hook.remove()
        keys = functional.normalize(found[0].float(), dim=-1)
        return keys @ keys.transpose(1, 2)

    def distance(self, images: Tensor, similarities: Tensor) -> Tensor:
        """SCALE times the mean squared difference [B] from the self-similarities [B, N, N] of other pictures."""
        return SCALE * similarity_distance(self.similarity(images), similarities)


def similarity_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared differences [B] of self-similarities [B, N, N]: the structure distance."""
    return (a - b).square().mean((1, 2))
