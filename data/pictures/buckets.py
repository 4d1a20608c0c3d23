"""Buckets of pictures that keep their aspect: the shapes in which the exported pipeline takes them too."""

from functools import lru_cache

from models.shapes import nearest_shape, shapes, side_multiple

Size = tuple[int, int]
"""Width and height in pixels."""


@lru_cache
def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """The buckets of a resolution: of about the square's area, sides multiples of 64 pixels, of less below 256."""
    return tuple((width, height) for height, width in shapes(resolution, side_multiple(resolution)))


def nearest_bucket(size: Size, resolution: int) -> Size:
    """The bucket whose aspect is nearest to that of a picture."""
    among = [(height, width) for width, height in bucket_sizes(resolution)]
    height, width = nearest_shape((size[1], size[0]), among, resolution)
    return width, height


def size_name(size: Size) -> str:
    """A size as people write it: 576x448."""
    return f"{size[0]}x{size[1]}"
