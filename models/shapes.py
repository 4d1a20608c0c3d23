"""Shapes of pictures: the sizes in which a backbone takes them, and what of a photograph they show.

Sizes are (height, width) in pixels. Nothing heavy is imported here: options of commands stand on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

Size = tuple[int, int]
"""Height and width in pixels."""

LONGEST = 4
"""The sides of a shape differ by this factor at most, as in SDXL's training."""

_AREA_TOLERANCE = 1 / 8
"""Share by which the area of a shape may differ from that of the square."""


@dataclass(frozen=True)
class SizeConditioning:
    """What SDXL is told of a picture's size, in pixels (Podell et al. 2023, section 2.2).

    Args:
        original: height and width of the picture before it was resized.
        crop: rows above and columns to the left that were cut off the resized picture.
        target: height and width of the picture that the networks see.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def uncropped(cls, height: int, width: int) -> "SizeConditioning":
        """A picture that has never been resized or cropped, as SDXL-Turbo's own pipeline says of all."""
        return cls((height, width), (0, 0), (height, width))


Sizes = SizeConditioning | Sequence[SizeConditioning]
"""The sizes of all pictures, or of each."""


@dataclass(frozen=True)
class Cutout:
    """What of a photograph a picture shows.

    Args:
        original: height and width of the photograph, upright.
        crop: left, top, width and height of the part that is shown, in the photograph's pixels.
        size: height and width of the picture, to which that part is resized.
    """

    original: Size
    crop: tuple[int, int, int, int]
    size: Size

    @classmethod
    def whole(cls, height: int, width: int) -> "Cutout":
        """A picture that is no part of anything and has not been resized."""
        return cls((height, width), (0, 0, width, height), (height, width))

    @property
    def conditioning(self) -> SizeConditioning:
        """What SDXL was told of such pictures in training: where the crop lies in the resized photograph."""
        left, top, width, height = self.crop
        crop = round(top * self.size[0] / height), round(left * self.size[1] / width)
        return SizeConditioning(self.original, crop, self.size)


def side_multiple(side: int) -> int:
    """What divides the sides of the shapes of about a square of `side` pixels: 64, as in SDXL's training, from 256 on.

    It is the largest power of two up to 64 that divides the side and is at most a quarter of it. What networks halve of
    a square divides it too, up to a power of two of such a size.
    """
    return max((power for power in (2, 4, 8, 16, 32, 64) if side % power == 0 and 4 * power <= side), default=1)


def shapes(side: int, multiple: int) -> tuple[Size, ...]:
    """The shapes of about the area of a square of `side` pixels, within an eighth, whose sides `multiple` divides.

    For 1024 and 64 SDXL's own buckets are among them (Podell et al. 2023, appendix I).
    """
    area, lengths = side * side, range(multiple, 2 * side + 1, multiple)
    return tuple(
        (height, width)
        for height in lengths
        for width in lengths
        if abs(height * width - area) <= _AREA_TOLERANCE * area and _elongation((height, width)) <= log(LONGEST)
    )


def nearest_shape(size: Size, among: Sequence[Size], side: int) -> Size:
    """The shape whose aspect is nearest to that of `size`; of equal aspects that of the area nearest to `side` squared.

    Aspects are compared by their logarithms, so that turned pictures get turned shapes.
    """
    aspect = log(size[0] / size[1])
    return min(
        among, key=lambda shape: (abs(log(shape[0] / shape[1]) - aspect), abs(shape[0] * shape[1] - side * side))
    )


def same_aspect(first: Size, second: Size) -> bool:
    """Whether one is the other resized: their aspects agree to a pixel of the smaller one."""
    return abs(first[0] * second[1] - first[1] * second[0]) <= max(*first, *second)


def size_words(size: Size) -> str:
    """A size as people write it, the width first: 640 x 384."""
    return f"{size[1]} x {size[0]}"


@dataclass(frozen=True)
class WantedShape:
    """The shape in which a backbone shall see pictures: their own, unless height or width are given.

    Args:
        side: side of the squares for which the backbone was made.
        multiple: what divides all sides.
        height, width: what the user wants; where only one of them is given, the other keeps the picture's aspect.

    Raises:
        ValueError: a height or width that `multiple` does not divide.
    """

    side: int
    multiple: int
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for name, length in (("height", self.height), ("width", self.width)):
            if length is not None and (length < 1 or length % self.multiple):
                raise ValueError(f"{name} is {length}; expected a multiple of {self.multiple}, or None")

    def of(self, sizes: Sequence[Size]) -> Size:
        """The shape for pictures of some sizes.

        Raises:
            ValueError: the pictures have different shapes, which one call cannot give.
        """
        found = list(dict.fromkeys(map(self._of_one, sizes)))
        if len(found) > 1:
            raise ValueError(
                f"the pictures have the shapes {' and '.join(map(size_words, found))}; give height and width for all, "
                "or take one shape a call"
            )
        return found[0]

    def admit(self, size: Size) -> None:
        """Raises ValueError for a tensor of images of a size that it cannot have."""
        if any(length % self.multiple for length in size):
            raise ValueError(
                f"the image is a tensor of {size_words(size)} pixels; expected sides that {self.multiple} divides"
            )
        if (self.height or size[0], self.width or size[1]) != size:
            raise ValueError(
                f"the image is a tensor of {size_words(size)} pixels, and tensors are not resized; leave out height "
                f"({self.height}) and width ({self.width})"
            )

    def _of_one(self, size: Size) -> Size:
        height, width = self.height, self.width
        if height is not None:
            return height, width or self._rounded(height * size[1] / size[0])
        if width is not None:
            return self._rounded(width * size[0] / size[1]), width
        return nearest_shape(size, shapes(self.side, self.multiple), self.side)

    def _rounded(self, length: float) -> int:
        return max(1, round(length / self.multiple)) * self.multiple


def _elongation(size: Size) -> float:
    return abs(log(size[0] / size[1]))
