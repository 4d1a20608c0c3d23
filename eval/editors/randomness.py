"""Noise that belongs to an image: a function of the picture, a seed and a name, whatever batch it comes in."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.pictures import to_uint8


def image_keys(images: Tensor) -> tuple[int, ...]:
    """A number for each of `images` [B, 3, H, W] in [-1, 1], equal for pictures that are equal at 8 bits."""
    return tuple(zlib.crc32(picture.numpy().tobytes()) for picture in to_uint8(images).cpu())


def image_seed(key: int, name: str, seed: int) -> int:
    """A seed for torch from (seed, name, key)."""
    words = np.random.SeedSequence([seed, zlib.crc32(name.encode()), key]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


def image_noise(keys: Sequence[int], name: str, seed: int, like: Tensor) -> Tensor:
    """Standard normal noise in the shape [B, C, h, w] of `like`, row i drawn from (seed, name, keys[i])."""
    rows = []
    for key in keys:
        generator = torch.Generator().manual_seed(image_seed(key, name, seed))
        rows.append(torch.randn(like.shape[1:], generator=generator))
    return torch.stack(rows).to(like)
