"""An object laid on a photograph: in the light of its place, with a shadow, and with the exact mask of what it changes.

Pixels are mixed in linear light. What an object does not reach keeps its level, bit by bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from data.compositing.colours import Pixels, to_levels, to_linear

_LUMINANCE = (0.2126, 0.7152, 0.0722)
_EXPOSURE = (0.5, 0.35, 1.6)
"""How far an object's mean luminance goes to that of its place, as an exponent, and the bounds of the gain."""
_TEMPERATURE = (0.35, 0.8, 1.25)
"""The same of each colour of the light, luminance apart."""
_CAST_STRENGTH, _CONTACT_STRENGTH = 0.5, 0.75
_CAST_HEIGHT, _CAST_SLANT = 0.3, 0.35
"""Height of a cast shadow and how far it leans, as shares of the object's height."""
_INVISIBLE = 1 / 255
"""Coverage below which nothing is laid on a photograph."""


@dataclass(frozen=True)
class Standpoint:
    """Where an object stands in a picture.

    Args:
        left: left edge in pixels.
        bottom: the row behind its lowest one, in pixels.
        width: width in pixels.
        height: height in pixels.
    """

    left: int
    bottom: int
    width: int
    height: int


@dataclass(frozen=True)
class PastedLayer:
    """An object as it lies on a picture.

    Args:
        light: linear light [H, W, 3].
        alpha: coverage [H, W].
        shadow: the share of light that it takes from what is behind [H, W].
    """

    light: Pixels
    alpha: Pixels
    shadow: Pixels

    @property
    def reach(self) -> NDArray[np.bool_]:
        """The pixels that it may change, [H, W]."""
        return (self.alpha > 0) | (self.shadow > 0)

    @property
    def behind(self) -> NDArray[np.bool_]:
        """The pixels through which the picture can be seen, [H, W]."""
        return self.alpha < 1

    def on(self, photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The photograph [H, W, 3] with the object on it."""
        ground = to_linear(photograph) * (1 - self.shadow[..., None])
        mixed = to_levels(ground + self.alpha[..., None] * (self.light - ground))
        return np.where(self.reach[..., None], mixed, photograph)


def resized(picture: Image.Image, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """Linear light and coverage of an RGBA picture at a size (width, height), without fringes of hidden colours."""
    small = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    levels = np.asarray(small)
    return to_linear(levels[..., :3]), levels[..., 3].astype(np.float32) / np.float32(255)


def layer(
    light: Pixels,
    alpha: Pixels,
    place: Standpoint,
    photographs: Sequence[NDArray[np.uint8]],
    original: Pixels | None = None,
) -> PastedLayer:
    """An object at a place, in the mean light of all `photographs` (of one size) there.

    Args:
        light, alpha: the object at the size of the place.
        original: what the light is matched to, for an object that was given another colour.
    """
    grounds = [to_linear(photograph) for photograph in photographs]
    gain = _gain(light if original is None else original, alpha, [_around(ground, place) for ground in grounds])
    size = grounds[0].shape[:2]
    brighter_left = sum(float(_halves(ground)) for ground in grounds) >= 0
    shadow = _shadow(alpha, place, size, 1 if brighter_left else -1)
    whole = _canvas(alpha, place, size)
    return PastedLayer(
        _canvas(np.clip(light * gain, 0, 1), place, size),
        np.where(whole < _INVISIBLE, 0, whole),
        np.where(shadow < _INVISIBLE, 0, shadow),
    )


def _gain(light: Pixels, alpha: Pixels, surroundings: Sequence[Pixels]) -> Pixels:
    """What the object's light is multiplied by, [3]: some of the way to the place's luminance and colour of light."""
    colour = np.mean([around.reshape(-1, 3).mean(0) for around in surroundings], axis=0) + 1e-3
    own = (light * alpha[..., None]).sum((0, 1)) / alpha.sum() + 1e-3
    luminance, own_luminance = float(colour @ _LUMINANCE), float(own @ _LUMINANCE)
    power, least, most = _EXPOSURE
    exposure = np.clip((luminance / own_luminance) ** power, least, most)
    power, least, most = _TEMPERATURE
    tint = np.clip((colour / luminance) ** power, least, most)
    return (exposure * tint / float(tint @ _LUMINANCE)).astype(np.float32)


def _around(ground: Pixels, place: Standpoint) -> Pixels:
    """What lies in and around the place, half its size further on every side."""
    top, wide, high = place.bottom - place.height, place.width // 2, place.height // 2
    return ground[max(0, top - high) : place.bottom + high, max(0, place.left - wide) : place.left + place.width + wide]


def _halves(ground: Pixels) -> float:
    """How much brighter the left half of a photograph is than the right one."""
    middle = ground.shape[1] // 2
    return float(ground[:, :middle].mean() - ground[:, middle:].mean())


def _shadow(alpha: Pixels, place: Standpoint, size: tuple[int, int], lean: int) -> Pixels:
    """A soft shadow on the ground to one side (`lean` 1: to the right), and a darker one where the object stands."""
    height, width = size
    wide, high, base = place.width, place.height, place.bottom
    flat, shift = max(1.0, _CAST_HEIGHT * high), lean * _CAST_SLANT * high
    silhouette = Image.fromarray(np.round(alpha * 255).astype(np.uint8))
    # Output (x, y) is input (a x + b y + c, d x + e y + f): rows above the base lean away and lie closer together.
    slant = shift / flat
    lying = silhouette.transform(
        (width, height),
        Image.Transform.AFFINE,
        (1, slant, -place.left - slant * base, 0, high / flat, high - high / flat * base),
        Image.Resampling.BILINEAR,
    )
    cast = np.asarray(lying.filter(ImageFilter.GaussianBlur(0.04 * high)), np.float32) / 255
    feet = np.flatnonzero(alpha[-max(1, high // 12) :].max(0) > 0.5)
    first, last = (int(feet[0]), int(feet[-1]) + 1) if len(feet) else (wide // 3, 2 * wide // 3)
    spot, half = Image.new("L", (width, height)), max(1.0, 0.025 * high)
    left, right = place.left + first, place.left + last
    ImageDraw.Draw(spot).ellipse((left, base - 2 * half, right, base + half), fill=255)
    contact = np.asarray(spot.filter(ImageFilter.GaussianBlur(0.02 * high)), np.float32) / 255
    return np.maximum(_CAST_STRENGTH * cast, _CONTACT_STRENGTH * contact)


def _canvas(values: Pixels, place: Standpoint, size: tuple[int, int]) -> Pixels:
    """An object's values [h, w, ...] at its place in zeros of a picture's size."""
    found = np.zeros((*size, *values.shape[2:]), np.float32)
    top = place.bottom - place.height
    found[top : place.bottom, place.left : place.left + place.width] = values
    return found
