"""Pictures as the page shows them: of a size for screens, masks over them, painted strokes, noises."""

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from data.pages.page import picture_uri

LEAST, MOST = 512, 1024
"""Longer side in pixels that shown pictures have: smaller ones are enlarged, larger ones reduced."""

_TINT = (214, 48, 49)
_OPACITY = 0.5
_NOISE_RANGE = 3.0
"""Largest value of a noise that is told apart, in standard deviations of the unit Gaussian."""


def preview(picture: Image.Image) -> Image.Image:
    """A picture in the size in which the page shows it."""
    longer = max(picture.size)
    scale = min(max(longer, LEAST), MOST) / longer
    if scale == 1:
        return picture
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, mask: Tensor) -> Image.Image:
    """A picture tinted where a mask [1, 1, h, w] in [0, 1] lets it change."""
    levels = (mask[0, 0].float().cpu().numpy() * 255 * _OPACITY).round().astype(np.uint8)
    shown = picture.copy()
    shown.paste(_TINT, mask=Image.fromarray(levels).resize(picture.size, Image.Resampling.BILINEAR))
    return shown


def painted_mask(layer: Image.Image) -> Image.Image | None:
    """White where a transparent layer was painted on, black elsewhere; None where it was not."""
    painted = np.asarray(layer.convert("RGBA"))[..., 3] > 127
    return Image.fromarray(painted.astype(np.uint8) * 255) if painted.any() else None


def painted_layer(size: tuple[int, int], drawn: Image.Image | None) -> Image.Image:
    """A transparent layer of a size, painted where a drawn mask is white."""
    layer = Image.new("RGBA", size)
    if drawn is not None:
        layer.paste(_TINT, mask=drawn.convert("L").resize(size, Image.Resampling.NEAREST))
    return layer


def noise_maps(noises: Mapping[float, Tensor]) -> str:
    """HTML of the noise [1, 4, h, w] of each timestep: three of its channels as red, green, blue, and its deviation."""
    figures = (
        f'<figure><img alt="Noise of timestep {timestep}" src="{picture_uri(_noise_levels(noise))}">'
        f"<figcaption>t = {timestep}, deviation {noise.float().std().item():.2f}</figcaption></figure>"
        for timestep, noise in noises.items()
    )
    return f'<div class="noises">{"".join(figures)}</div>'


def _noise_levels(noise: Tensor) -> np.ndarray:
    """A noise [1, 4, h, w] as a picture [h, w, 3] in uint8."""
    channels = noise[0, :3].float().cpu().permute(1, 2, 0).numpy()
    return ((channels / _NOISE_RANGE + 1) * 127.5).clip(0, 255).round().astype(np.uint8)
