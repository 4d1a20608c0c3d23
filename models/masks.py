"""Masks of where an edit may change the picture (TurboEdit, local masks).

Either a mask that the user drew, or an automatic one: from what a network predicts under two prompts, or from the
attention to the words that differ between them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .attention_maps import token_heat
from .options import AUTOMATIC, UNCHANGED, Automatic
from .pictures import as_pictures, described
from .shapes import Cutout, Size, same_aspect, size_words
from .upright import fitted
from .words import changed_tokens

_SMOOTHING = 1 / 16
"""Standard deviation with which differences are smoothed, as a share of the latent's shorter side."""

_ROUNDING = 1e-3
"""Differences of latents or noises, whose deviation is about one, that are taken for rounding in float32; in half
precision it is 16 of its steps, what the estimate at t = 999 loses in bfloat16 (docs/options.md)."""


def automatic_kind(mask: Any) -> Automatic | None:
    """The kind of automatic mask that a user has named, "auto" for the best one; None for anything else."""
    return AUTOMATIC.get(mask) if isinstance(mask, str) else None


def difference_mask(difference: Tensor, threshold: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Binary mask [B, 1, h, w] of where a network's outputs [B, C, h, w] under two prompts differ.

    SwiftEdit and DiffEdit (Couairon et al. 2023) clip the mean over channels at three times its mean; where an edit is
    as large as a background that leaves few places above the threshold, so here it is smoothed and divided by its
    maximum. Outputs that are equal but for the rounding of the network's `dtype` give an empty mask.
    """
    heat = difference.float().abs().mean(1, keepdim=True)
    heat = gaussian_blur(heat, _SMOOTHING * min(heat.shape[-2:]))
    rounding = max(_ROUNDING, 16 * torch.finfo(dtype).eps)
    largest = heat.amax((2, 3), keepdim=True)
    return ((heat > threshold * largest) & (largest > rounding)).float()


def unchanged(edited: Tensor, source: Tensor) -> Tensor:
    """Share [B, 1, h, w] in [0, 1] to which each place of a latent [B, C, h, w] is still the source's.

    It is exp(-(d / UNCHANGED)^2), d being the root of the mean square of the difference over channels.
    """
    distance = (edited.float() - source.float()).square().mean(1, keepdim=True)
    return torch.exp(-distance / UNCHANGED**2).to(edited.dtype)


def read_mask(mask: Any) -> Tensor | list[Image.Image]:
    """A user's mask: a tensor [B, 1, H, W] in [0, 1], or pictures whose white may change.

    Raises:
        ValueError: it is neither, or a tensor of another shape or with values outside of [0, 1].
    """
    if isinstance(mask, Tensor):
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; expected [1, 1, H, W] or [B, 1, H, W]")
        if not mask.is_meta and not (mask.numel() and mask.min() >= 0 and mask.max() <= 1):
            raise ValueError(f"mask is {described(mask)}; expected values from 0 to 1")
        return mask
    given = np.repeat(mask[..., None], 3, axis=-1) if isinstance(mask, np.ndarray) and mask.ndim == 2 else mask
    if isinstance(given, np.ndarray) and given.dtype == bool:
        given = given.astype(np.uint8) * 255
    try:
        return as_pictures(given)
    except ValueError as error:
        kinds = ", ".join(f'"{kind}"' for kind in AUTOMATIC)
        expected = f"None, {kinds}, a picture, an array [H, W] or a tensor [B, 1, H, W]"
        raise ValueError(f"mask is {described(mask)}; expected {expected} ({error})") from error


def drawn_mask(mask: Tensor | Sequence[Image.Image], cutouts: Sequence[Cutout]) -> Tensor:
    """Mask [R or 1, 1, H, W] in [0, 1] of what `read_mask` has read, for R pictures.

    Pictures have the aspect of the photograph, and are cropped as it was, or that of the picture, like all tensors.

    Args:
        mask: one for all pictures or one for each.
        cutouts: what the R pictures show of their photographs.

    Raises:
        ValueError: a mask of another aspect.
    """
    if isinstance(mask, Tensor):
        size_like((mask.shape[-2], mask.shape[-1]), [cutouts[0].size])
        return mask
    if len(mask) == 1:
        levels = [_placed(mask[0], cutout) for cutout in (cutouts if len(set(cutouts)) > 1 else cutouts[:1])]
    else:
        levels = [_placed(picture, cutout) for picture, cutout in zip(mask, cutouts, strict=True)]
    return torch.stack(levels)[:, None].float() / 255


def _placed(mask: Image.Image, cutout: Cutout) -> Tensor:
    """Levels [H, W] of a picture as mask of what `cutout` shows."""
    size_like((mask.height, mask.width), [cutout.original, cutout.size])
    height, width = cutout.size
    return torch.from_numpy(np.array(fitted(mask, (width, height))[0].convert("L")))


def size_like(mask: Size, pictures: Sequence[Size]) -> Size:
    """The first of a picture's sizes that has the aspect of a mask.

    Raises:
        ValueError: none has.
    """
    for size in pictures:
        if same_aspect(mask, size):
            return size
    seen = ", edited at ".join(map(size_words, dict.fromkeys(pictures)))
    raise ValueError(f"mask has {size_words(mask)} pixels and the picture {seen}; expected a mask of the same aspect")


def changed_places(
    tokenizer: Any,
    texts: Sequence[Sequence[str]],
    targets: Sequence[str],
    before: Tensor,
    after: Tensor,
    threshold: float,
) -> Tensor:
    """Binary mask [B, 1, h, w] of the words that are in the source's texts or in the target only.

    Words that a target lost are placed by the source's maps, words that it gained by those of the edit itself. Of a
    source with several texts a word is lost if it was in any, and gained if it was in none.

    Args:
        texts: descriptions of each of the B sources.
        targets: description of each edit.
        before, after: cross-attention maps [B, h, w, L] of the sources' prompts and of the edits'.
        threshold: share of the strongest attention above which a place counts.
    """
    lost, gained = [], []
    for sources, target in zip(texts, targets, strict=True):
        again = [target] * len(sources)
        lost.append(sorted(set().union(*changed_tokens(tokenizer, sources, again))))
        new = changed_tokens(tokenizer, again, sources)
        gained.append(sorted(set(new[0]).intersection(*new)))
    return torch.maximum(word_mask(before, lost, threshold), word_mask(after, gained, threshold))


def word_mask(maps: Tensor, tokens: Sequence[Sequence[int]], threshold: float) -> Tensor:
    """Binary mask [B, 1, h, w] of the attention to some tokens.

    Args:
        maps: cross-attention maps [B, h, w, L].
        tokens: positions in each image's prompt, such as those of the words that another prompt lacks.
        threshold: share of the strongest attention above which a place counts.
    """
    return (token_heat(maps, tokens) > threshold).float()


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur `image` [B, 1, H, W] with standard deviation `sigma` pixels, edges repeated."""
    radius = int(3 * sigma + 0.5)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="replicate"), kernel)
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))


def soft_mask(mask: Tensor, size: tuple[int, int], blur: float) -> Tensor:
    """Blur `mask` [B, 1, H, W] in [0, 1], then resize it to a latent's (h, w); `blur` is in latent pixels."""
    mask = gaussian_blur(mask.float(), blur * mask.shape[-1] / size[1])
    return F.interpolate(mask, size, mode="bilinear", antialias=True).clamp(0, 1)
