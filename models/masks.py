"""Where an edit may change the picture (TurboEdit, local masks).

Either a mask that the user drew, or one from the attention to the words that differ between two prompts.
"""

import difflib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import token_heat


def changed_words(source: str, target: str) -> tuple[list[int], list[int]]:
    """Indices of the words (split at spaces) of each prompt that the other lacks, by aligning the two sequences."""
    a, b = ([word.strip(".,;:!?\"'").lower() for word in text.split()] for text in (source, target))
    only_a: list[int] = []
    only_b: list[int] = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        if tag != "equal":
            only_a += range(a0, a1)
            only_b += range(b0, b1)
    return only_a, only_b


def word_tokens(tokenizer: Any, text: str, words: list[int]) -> list[int]:
    """Positions in the tokenized prompt of the given words (indices into text.split()).

    Words cut off by the length limit have none.
    """
    spans, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        spans.append((start, end))
    offsets = tokenizer(
        text, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True
    ).offset_mapping
    wanted = [spans[i] for i in words]
    return [
        position
        for position, (start, end) in enumerate(offsets)
        if end > start and any(start < last and end > first for first, last in wanted)
    ]


def word_mask(maps: Tensor, tokenizer: Any, texts: list[str], others: list[str], threshold: float) -> Tensor:
    """Binary mask [B, 1, r, r] of the attention to the words of `texts` that `others` lack.

    Args:
        maps: cross-attention maps [B, r*r, L] of `texts`.
        tokenizer: of the prompts.
        texts, others: B prompts each.
        threshold: share of the strongest attention above which a place counts.
    """
    tokens = [
        word_tokens(tokenizer, text, changed_words(text, other)[0]) for text, other in zip(texts, others, strict=True)
    ]
    return (token_heat(maps, tokens) > threshold).float()


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """`image` [B, 1, H, W] blurred with standard deviation `sigma` pixels, edges repeated."""
    radius = int(3 * sigma + 0.5)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="replicate"), kernel)
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))


def soft_mask(mask: Tensor, size: tuple[int, int], blur: float) -> Tensor:
    """`mask` [B, 1, H, W] in [0, 1], blurred and then resized to a latent's (h, w); `blur` is in latent pixels."""
    mask = gaussian_blur(mask.float(), blur * mask.shape[-1] / size[1])
    return F.interpolate(mask, size, mode="bilinear", antialias=True).clamp(0, 1)
