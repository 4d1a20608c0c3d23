"""Photographic textures for the scenes, cut from the free photographs in data/world/photographs.

Scales and blurs are chosen so that each has few, smooth features in 64 pixels: a small VAE has to carry them.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

FloatArray = NDArray[np.floating]
"""float32; numpy's hints widen a product with a Python float."""


@cache
def texture(name: str) -> FloatArray:
    """Texture `name` (brick, grass, fur, space: [H, W, 3] in [0, 1]; stone: [H, W, 1], a factor around 0.75).

    Shared between callers, therefore read-only. ValueError for another name.
    """
    makers = {"brick": _brick, "grass": _grass, "fur": _fur, "space": _space, "stone": _stone}
    if name not in makers:
        raise ValueError(f"no texture is called {name!r}, expected one of {', '.join(makers)}")
    array = np.ascontiguousarray(makers[name](), dtype=np.float32)
    array.setflags(write=False)
    return array


def _read(file_name: str) -> Image.Image:
    with Image.open(Path(__file__).with_name("photographs") / file_name) as image:
        return image.convert("RGB")


def _scaled(image: Image.Image, scale: float, blur: float) -> FloatArray:
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(image, dtype=np.float32) / 255


def _luminance(image: Image.Image, scale: float, blur: float) -> FloatArray:
    """[H, W, 1], mean 0 and standard deviation 1, slow changes of light taken out, clipped at 2."""
    sharp = _scaled(image, scale, blur).mean(axis=2, keepdims=True)
    slow = _scaled(image, scale, 20).mean(axis=2, keepdims=True)
    flat = sharp - slow
    return np.clip(flat / flat.std(), -2, 2)


def _tinted(luminance: FloatArray, colour: tuple[float, float, float], contrast: float) -> FloatArray:
    return np.clip(np.array(colour, np.float32) * (1 + contrast * luminance), 0, 1)


def _brick() -> FloatArray:
    lying = _read("brick.png").rotate(90)  # the photograph's courses run upwards
    mortar = np.clip(_luminance(lying, 0.4, 0.6), -1, 2) / 2
    return np.array((0.55, 0.27, 0.22), np.float32) + mortar * np.array((0.20, 0.24, 0.24), np.float32)


def _grass() -> FloatArray:
    return _tinted(_luminance(_read("grass.png"), 0.5, 1.2), (0.30, 0.46, 0.17), 0.28)


def _fur() -> FloatArray:
    forehead = _read("chelsea.png").crop((80, 2, 320, 88))  # above the cat's eyes
    return _scaled(forehead, 1.0, 0.6)


def _space() -> FloatArray:
    return 0.07 + 0.93 * _scaled(_read("hubble_deep_field.jpg"), 0.8, 0.8)  # dark objects must not vanish


def _stone() -> FloatArray:
    return np.clip(0.75 + 0.36 * _luminance(_read("gravel.png"), 0.5, 0.5), 0.25, 1.3)
