"""Masks of data sets of edits: run lengths as PIE-Bench has them, as a list or as text, or pictures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.pictures.images import DamagedImage, decode
from eval.benchmarks.entries import Unusable

PIE_SIZE = (512, 512)
"""Height and width of all masks of PIE-Bench."""

_WHITE = 127


def mask_of(encoded: Any, height: int, width: int) -> NDArray[np.bool_]:
    """A mask, bool [H, W]: of run lengths, "0 262144" or [0, 262144], or of the bytes of a picture, white inside.

    Raises:
        Unusable: it is none of these, or of another size.
    """
    if isinstance(encoded, Mapping):
        encoded = encoded.get("bytes")
    if isinstance(encoded, bytes):
        return _of_picture(encoded, height, width)
    runs = _numbers(encoded) if isinstance(encoded, str) else encoded
    mask = decode_mask(runs, height, width)
    # The official code cuts off what reaches behind its 512x512, so that is no fault there.
    beyond = [start for start in runs[::2] if start >= height * width]
    if beyond and (height, width) != PIE_SIZE:
        raise Unusable(f"the mask has a run at pixel {beyond[0]}, the picture {width}x{height} px")
    return mask


def decode_mask(runs: Sequence[int] | None, height: int, width: int) -> NDArray[np.bool_]:
    """A mask, bool [H, W], of PIE-Bench's run lengths: start, length, start, length ..., row by row; 1 inside the edit.

    What reaches behind the last pixel is cut off, as the official code does.

    Raises:
        Unusable: what is given is no such list.
    """
    if not isinstance(runs, list) or any(not isinstance(run, int) or run < 0 for run in runs) or len(runs) % 2:
        raise Unusable("mask is no list of starts and lengths")
    flat = np.zeros(height * width, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    return flat.reshape(height, width)


def _numbers(text: str) -> list[int]:
    """The numbers of a list as text; one negative number, which is no run, for other text."""
    found = [part for part in re.split(r"[\s,]+", text.strip("[] \n")) if part]
    return [int(part) if part.isdecimal() else -1 for part in found]


def _of_picture(content: bytes, height: int, width: int) -> NDArray[np.bool_]:
    try:
        picture = decode(content).convert("L")
    except DamagedImage as error:
        raise Unusable(f"the mask cannot be read ({error})") from error
    if picture.size != (width, height):
        raise Unusable(f"the mask has {picture.width}x{picture.height} px, the picture {width}x{height}")
    return np.asarray(picture) > _WHITE
