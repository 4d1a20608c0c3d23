"""Shapes of pictures that keep their aspect: SDXL's buckets of about equal area."""

from collections.abc import Sequence
from functools import lru_cache
from math import log

Size = tuple[int, int]
"""Width and height in pixels."""

_STEP = 64
_LONGEST = 2
"""Longest side, as a multiple of the square's."""


@lru_cache
def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """The buckets of a resolution, from the tallest to the widest.

    Sides are multiples of 64 pixels (of an eighth of the square's side below 512 pixels), the longer one up to twice
    the square's, and the shorter one the largest with which the area is no larger than the square's. At 1,024 they are
    SDXL's (Podell et al. 2023, appendix I) but for seven, each a cut of another of nearly the same aspect.
    """
    step = min(_STEP, resolution // 8)
    sides = range(resolution, _LONGEST * resolution + 1, step)
    wide = [(side, resolution**2 // side // step * step) for side in sides]
    return (*((height, width) for width, height in reversed(wide[1:])), *wide)


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect is nearest to that of a picture, as a ratio; of equals the first."""
    aspect = log(size[0] / size[1])
    return min(buckets, key=lambda bucket: abs(log(bucket[0] / bucket[1]) - aspect))


def size_name(size: Size) -> str:
    """A size as people write it: 576x448."""
    return f"{size[0]}x{size[1]}"
