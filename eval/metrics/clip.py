"""CLIP similarity of pictures and texts, from any CLIPModel folder or hub id."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.clip import ClipEmbeddings, ClipPixels
from models.precision import exact


class ClipSimilarity(ClipEmbeddings):
    """100 times the cosine between the embeddings of an image and its text, as CLIPScore papers print it."""

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Similarity [B] of images [B, 3, H, W] in [-1, 1], square, and B texts."""
        return self.compare(images, self.embed(texts))

    def compare(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """Similarity [B] of images and the embeddings of their texts."""
        return 100 * functional.cosine_similarity(self.embed_images(images), embeddings)

    def embed_pictures(self, pictures: Sequence[Tensor] | Tensor) -> Tensor:
        """Embeddings [B, P] of pictures, uint8 [3, H, W] of any sizes, prepared as CLIP's image processor does."""
        return self.embed_pixels(picture_pixels(pictures, self.pixels))

    def score(self, pictures: Sequence[Tensor] | Tensor, embeddings: Tensor) -> Tensor:
        """CLIPScore [B] as torchmetrics and PIE-Bench have it: max(100 cos, 0), of pictures uint8 [3, H, W]."""
        return clip_score(self.embed_pictures(pictures), embeddings)


def clip_score(pictures: Tensor, texts: Tensor) -> Tensor:
    """CLIPScore [B] of embeddings [B, P] of pictures and texts: max(100 cos, 0)."""
    return 100 * functional.cosine_similarity(pictures, texts).clamp(min=0)


_SAME = 1e-4
"""Distance of two embeddings of length 1 below which their texts are the same: batches leave some 1e-6."""


def clip_direction(before: Tensor, after: Tensor, source_texts: Tensor, target_texts: Tensor) -> Tensor:
    """Directional similarity [B] of edits (Gal et al. 2022), of embeddings [B, P] of pictures and prompts.

    100 times the cosine between what the edit changes in the pictures' embedding and in the prompts', each of length 1
    before the difference is taken (as InstructPix2Pix measures it). nan where the prompts are the same.
    """
    pictures, texts = (
        functional.normalize(second, dim=-1) - functional.normalize(first, dim=-1)
        for first, second in ((before, after), (source_texts, target_texts))
    )
    return (100 * functional.cosine_similarity(pictures, texts)).where(texts.norm(dim=-1) > _SAME, torch.nan)


def clipscore(similarity: Tensor) -> Tensor:
    """Clipscore of StyleDiffusion's Table 2: 2.5 max(cos, 0) in percent (Hessel et al. 2021), of 100 times cosines.

    The paper does not say so; its values of 75 to 82 imply the factor.
    """
    return 2.5 * similarity.clamp(min=0)


def picture_pixels(pictures: Sequence[Tensor] | Tensor, pixels: ClipPixels) -> Tensor:
    """CLIP's pixel values [B, 3, side, side] of pictures, uint8 [3, H, W] of any sizes.

    As CLIPImageProcessor does: the shorter side resized to CLIP's by Pillow's bicubic, the middle cut out.
    """
    if isinstance(pictures, Tensor):
        return _processed(pictures, pixels)
    return torch.cat([_processed(picture[None], pixels) for picture in pictures])


def _processed(pictures: Tensor, pixels: ClipPixels) -> Tensor:
    height, width = pictures.shape[-2:]
    short = min(height, width)
    height, width = (int(pixels.side * length / short) for length in (height, width))
    top, left = (height - pixels.side) // 2, (width - pixels.side) // 2
    levels = resize_levels(pictures, (height, width))[..., top : top + pixels.side, left : left + pixels.side]
    return pixels((levels / 127.5 - 1).float().to(pictures.device))


_BITS = 22


_SHARPNESS = -0.5


def resize_levels(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, 3, H, W] in levels of 0 to 255, resized to `size` (height, width) bit for bit as by Pillow; float64.

    The sums are whole numbers below 2**53, so float64 has them exactly.
    """
    return _along_both(pictures, size, whole=True)


def resize_floats(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """The same without rounding (Pillow's mode F, as clean-fid uses it), clipped to 0 to 255; float64."""
    return _along_both(pictures, size, whole=False).clamp(0, 255)


def _along_both(pictures: Tensor, size: tuple[int, int], whole: bool) -> Tensor:
    values = exact(pictures)
    if values.shape[-1] != size[1]:
        values = _rounded(values @ _weights(values.shape[-1], size[1], whole).to(values.device).T, whole)
    if values.shape[-2] != size[0]:
        values = _rounded(_weights(values.shape[-2], size[0], whole).to(values.device) @ values, whole)
    return values


def _rounded(sums: Tensor, whole: bool) -> Tensor:
    return ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255) if whole else sums


@cache
def _weights(old: int, new: int, whole: bool) -> Tensor:
    """Weights [new, old] of the old positions; whole numbers of 2**-22 if `whole`."""
    step = old / new
    stretch = max(step, 1.0)
    support = 2 * stretch
    found = np.zeros((new, old))
    for position in range(new):
        centre = (position + 0.5) * step
        first, last = max(0, int(centre - support + 0.5)), min(old, int(centre + support + 0.5))
        row = _cubic((np.arange(first, last) - centre + 0.5) / stretch)
        found[position, first:last] = row / math.fsum(row)
    if whole:
        found = np.trunc(found * 2**_BITS + np.copysign(0.5, found))
    return torch.from_numpy(found)


def _cubic(distances: NDArray[Any]) -> NDArray[Any]:
    """Keys' cubic convolution (1981) with a = -0.5."""
    x, a = np.abs(distances), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
