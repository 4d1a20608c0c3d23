"""JPEG photographs of any size for benchmarks, cut from pictures that ship inside scikit-image."""

import io
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

_PICTURES = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
)
_GRAIN = 5.0
_QUALITY = 95


def photograph(number: int, size: tuple[int, int]) -> bytes:
    """The bytes of JPEG photograph `number` of (width, height) pixels, always the same.

    An own cut of one of the pictures, with a camera's grain: at 640 x 480 about as many bytes as COCO's.
    """
    draw = np.random.default_rng(number)
    picture = _picture(_PICTURES[number % len(_PICTURES)])
    aspect = size[0] / size[1]
    largest = min(picture.width, picture.height * aspect)
    width = largest * draw.uniform(0.6, 1.0)
    left = draw.uniform(0, picture.width - width)
    top = draw.uniform(0, picture.height - width / aspect)
    cut = picture.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + width / aspect))
    grain = draw.normal(0, _GRAIN, (size[1], size[0], 1))
    pixels = np.clip(np.asarray(cut) + grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def write_photographs(folder: Path, num: int, size: tuple[int, int], caption: str) -> Path:
    """A folder of photographs, each with the same caption in a .txt beside it; returns `folder`."""
    folder.mkdir(parents=True)
    for number in range(num):
        (folder / f"{number:06d}.jpg").write_bytes(photograph(number, size))
        (folder / f"{number:06d}.txt").write_text(caption, encoding="utf-8")
    return folder


@cache
def _picture(name: str) -> Image.Image:
    with resources.files("skimage").joinpath("data", name).open("rb") as file:
        return Image.open(file).convert("RGB")
