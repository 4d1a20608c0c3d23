"""Structure distance: how far a picture's layout is from another's, whatever their colours and textures.

Tumanyan et al. 2022 (Splice): the cosine self-similarity of the keys of a vision transformer's last layer, compared as
a mean squared error. They take DINO's; here they are those of the CLIP that judges the text.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.image_tokens import ClipPixels

SCALE = 1000.0
"""Distances are printed times 1000, as in PIE-Bench's tables."""


class Structure:
    """Self-similarities of pictures and the distances between them.

    Args:
        vision: a CLIP's vision encoder.
        pixels: what it takes.
    """

    def __init__(self, vision: Any, pixels: ClipPixels) -> None:
        self.vision = vision
        self.pixels = pixels

    @torch.no_grad()
    def similarity(self, images: Tensor) -> Tensor:
        """Cosines [B, N, N] between the keys of all tokens of images [B, 3, H, H] in [-1, 1], heads side by side."""
        found: list[Tensor] = []
        layer = self.vision.encoder.layers[-1].self_attn.k_proj
        hook = layer.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self.vision(pixel_values=self.pixels(images))
        finally:
            hook.remove()
        keys = functional.normalize(found[0].float(), dim=-1)
        return keys @ keys.transpose(1, 2)

    def distance(self, images: Tensor, similarities: Tensor) -> Tensor:
        """SCALE times the mean squared difference [B] from the self-similarities [B, N, N] of other pictures."""
        return SCALE * (self.similarity(images) - similarities).square().mean((1, 2))
