"""Edits at the size of their photographs: in its own pixels where nothing changed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .masks import gaussian_blur, read_mask, size_like
from .pictures import Images, as_pictures
from .shapes import Cutout, size_words

FEATHER = 0.01
"""Standard deviation of a drawn mask's soft edge, as a share of the longer side of the part that was edited."""

_LOOKED_AT = 512
"""Longer side in pixels at which the softness of a mask is found."""


def at_full_size(
    photographs: Images, edited: Sequence[Image.Image], cutouts: Sequence[Cutout], mask: Any = None
) -> list[Image.Image]:
    """Edited pictures at the sizes of the photographs that they show.

    With a mask each is the photograph itself, into which the edit is pasted: where the mask is zero every pixel is the
    photograph's own. A drawn mask softens towards its inside. Without one it is the edited picture in the size of the
    part of the photograph that it shows.

    Args:
        photographs: the photographs of the R edited pictures, or one for all of them.
        edited: R pictures.
        cutouts: what they show of their photographs.
        mask: None, weights [R or 1, 1, h, w] in [0, 1] over the edited pictures, or drawn pictures of the photographs'
            aspect or of the edited pictures' (white is edited), one for all or one for each.

    Raises:
        ValueError: photographs or masks of another number, photographs of other sizes than those that were inverted, or
            masks of another aspect.
    """
    pictures = _one_for_each(as_pictures(photographs), len(edited), "photographs")
    for picture, cutout in zip(pictures, cutouts, strict=True):
        size = (picture.height, picture.width)
        if size != cutout.original:
            raise ValueError(
                f"the photograph has {size_words(size)} pixels, and the one that was inverted had "
                f"{size_words(cutout.original)}; give the same"
            )
    scaled = [
        picture.resize(cutout.crop[2:], Image.Resampling.LANCZOS)
        for picture, cutout in zip(edited, cutouts, strict=True)
    ]
    if mask is None:
        return scaled
    found = read_mask(mask)
    drawn = not isinstance(found, Tensor)
    each = _one_for_each(list(found), len(edited), "masks")
    pasted = []
    for photograph, picture, cutout, one in zip(pictures, scaled, cutouts, each, strict=True):
        levels = _drawn_levels(one, cutout) if drawn else _levels(one, cutout)
        result = photograph.copy()
        result.paste(picture, cutout.crop[:2], levels)
        pasted.append(result)
    return pasted


def _levels(weights: Tensor, cutout: Cutout) -> Image.Image:
    """Weights [1, h, w] over an edited picture as levels at the size of the part that it shows."""
    size_like((weights.shape[-2], weights.shape[-1]), [cutout.size])
    _, _, width, height = cutout.crop
    wide = F.interpolate(weights[None].float().cpu(), (height, width), mode="bilinear")[0, 0]
    return _as_levels(wide)


def _drawn_levels(mask: Image.Image, cutout: Cutout) -> Image.Image:
    """A drawn mask as levels over the part that was edited: zero outside of it, softer towards its edge within."""
    height, width = cutout.original
    left, top, wide, high = cutout.crop
    levels = mask.convert("L")
    if size_like((mask.height, mask.width), [cutout.original, cutout.size]) == cutout.original:
        whole = levels.resize((width, height), Image.Resampling.NEAREST)
        levels = whole.crop((left, top, left + wide, top + high))
    else:
        levels = levels.resize((wide, high), Image.Resampling.NEAREST)
    inside = torch.from_numpy(np.array(levels, np.float32))[None, None] / 255
    return _as_levels(torch.minimum(_softened(inside), inside)[0, 0])


def _softened(inside: Tensor) -> Tensor:
    """A mask [1, 1, H, W] in [0, 1] that rises from its edge to its middle, also where it is a thin stroke.

    A straight edge is blurred to a half of what its surroundings within the mask are blurred to, and becomes zero. They
    are looked for from place to place inside the mask, so that a wide part beside a thin one does not count for it.
    """
    height, width = inside.shape[-2:]
    share = min(1.0, _LOOKED_AT / max(height, width))
    small = F.adaptive_max_pool2d(inside, (max(1, round(share * height)), max(1, round(share * width))))
    sigma = FEATHER * max(small.shape[-2:])
    blurred = gaussian_blur(small, sigma) * (small > 0)
    most = blurred
    for _ in range(round(3 * sigma)):
        most = F.max_pool2d(most, 3, stride=1, padding=1) * (small > 0)
    soft = (2 * blurred / most.clamp_min(1e-6) - 1).clamp(0, 1)
    return F.interpolate(soft, (height, width), mode="bilinear")


def _as_levels(weights: Tensor) -> Image.Image:
    return Image.fromarray((weights * 255).round().to(torch.uint8).numpy(), "L")


def _one_for_each(given: list[Any], count: int, what: str) -> list[Any]:
    if len(given) not in (1, count):
        raise ValueError(f"{len(given)} {what} for {count} edited pictures; give one for all of them, or one for each")
    return given * count if len(given) == 1 else given
