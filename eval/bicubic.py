"""Pillow's bicubic resize as matrices, so that batches on any device get what published figures were measured on.

CLIP's image processor resizes pictures in whole levels: along the rows, then along the columns, both rounded, with
weights rounded to 22 bits. Interpolation in torch differs by a level in up to a hundredth of the values. Pillow from 13
on takes the other order for some tall pictures; no published figure comes from those.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    values = pictures.double()
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
