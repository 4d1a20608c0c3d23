"""Colours of objects: which one an object has, and the same object in another one.

Hues are turned in OKLab (Ottosson 2020), which keeps lightness, so that shading and texture stay as they were.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
"""Linear light [H, W, 3] in [0, 1], or a share of it [H, W]."""

HUES = {"red": 27.0, "orange": 60.0, "yellow": 104.0, "green": 142.0, "blue": 258.0, "purple": 308.0, "pink": 355.0}
"""Hues in OKLab, in degrees, of the colours by which objects are called."""

_TOLERANCE = 24.0
_GREY = 0.045
"""Chroma below which a pixel has no colour."""
_COLOURED_SHARE = 0.6
_AGREEING_SHARE = 0.75
_BROWN = (30.0, 85.0, 0.62, 0.13)
"""Brown is a dark and dull orange: its hues, and the lightness and chroma below which it is called so."""

_TO_CONES = ((0.4122215, 0.5363325, 0.0514460), (0.2119035, 0.6806995, 0.1073970), (0.0883025, 0.2817189, 0.6299787))
_TO_LAB = ((0.2104543, 0.7936178, -0.0040720), (1.9779985, -2.4285922, 0.4505937), (0.0259040, 0.7827718, -0.8086758))
_FROM_LAB = ((1.0, 0.3963378, 0.2158038), (1.0, -0.1055613, -0.0638542), (1.0, -0.0894842, -1.2914855))
_FROM_CONES = (
    (4.0767417, -3.3077116, 0.2309699),
    (-1.2684380, 2.6097574, -0.3413194),
    (-0.0041961, -0.7034186, 1.7076147),
)


def to_linear(levels: NDArray[np.uint8]) -> Pixels:
    """Linear light of sRGB levels."""
    values = levels.astype(np.float32) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_levels(light: Pixels) -> NDArray[np.uint8]:
    """SRGB levels of linear light, which is cut off at 0 and 1."""
    light = np.clip(light, 0, 1)
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(values * 255).astype(np.uint8)


def colour_of(light: Pixels, alpha: Pixels) -> str | None:
    """The colour by which an object is called; None for one that is grey, or of several colours.

    Args:
        light: the object [H, W, 3]; alpha: how opaque it is [H, W].
    """
    lightness, chroma, hue = _polar(light)
    weights = alpha * (chroma > _GREY) * chroma
    if alpha.sum() == 0 or (alpha * (chroma > _GREY)).sum() < _COLOURED_SHARE * alpha.sum():
        return None
    mean = np.degrees(np.arctan2((weights * np.sin(hue)).sum(), (weights * np.cos(hue)).sum()))
    if weights[_distance(np.degrees(hue), mean) < _TOLERANCE].sum() < _AGREEING_SHARE * weights.sum():
        return None
    first, last, darkest, dullest = _BROWN
    mean_lightness, mean_chroma = ((weights * values).sum() / weights.sum() for values in (lightness, chroma))
    if first < mean % 360 < last and mean_lightness < darkest and mean_chroma < dullest:
        return "brown"
    name = min(HUES, key=lambda colour: _distance(HUES[colour], mean))
    return name if _distance(HUES[name], mean) < _TOLERANCE else None


def recoloured(light: Pixels, alpha: Pixels, colour: str) -> Pixels:
    """An object with its mean hue turned to that of `colour` (of `HUES`); lightness and chroma stay where light can."""
    lightness, chroma, hue = _polar(light)
    weights = alpha * chroma
    mean = np.arctan2((weights * np.sin(hue)).sum(), (weights * np.cos(hue)).sum())
    turned = hue + np.radians(HUES[colour]) - mean
    cones = _mixed(np.stack([lightness, chroma * np.cos(turned), chroma * np.sin(turned)], -1), _FROM_LAB) ** 3
    return np.clip(_mixed(cones, _FROM_CONES), 0, 1).astype(np.float32)


def other_colours(light: Pixels, alpha: Pixels, own: str) -> tuple[str, ...]:
    """The colours of `HUES` that an object can be given, and is called by afterwards."""
    found = (colour for colour in HUES if colour != own)
    return tuple(colour for colour in found if colour_of(recoloured(light, alpha, colour), alpha) == colour)


def _polar(light: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Lightness, chroma and hue (radians) in OKLab."""
    lab = _mixed(np.cbrt(_mixed(light, _TO_CONES)), _TO_LAB)
    return lab[..., 0], np.hypot(lab[..., 1], lab[..., 2]), np.arctan2(lab[..., 2], lab[..., 1])


def _mixed(values: Pixels, rows: tuple[tuple[float, ...], ...]) -> Pixels:
    """A matrix applied to each pixel, without BLAS, whose rounding depends on the number of threads."""
    return np.stack([sum(values[..., i] * row[i] for i in range(3)) for row in rows], -1)


def _distance(hue: float | Pixels, other: float) -> Pixels:
    """Degrees between hues."""
    return np.abs((np.asarray(hue) - other + 180) % 360 - 180)
