"""Text encoders that give again what they gave for the same text: moving a strength encodes nothing anew."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from models.shapes import SizeConditioning, Sizes
from models.text import Prompt, Text

_KEPT = 64
"""Calls that are remembered; one of SDXL in float16 has a third of a megabyte."""


class RememberedText:
    """The text encoders of a backbone, with a memory.

    Args:
        text: the encoders.
    """

    def __init__(self, text: Text) -> None:
        self.tokenizers = text.tokenizers
        self.encoders = text.encoders
        self._text = text
        self._known: OrderedDict[Any, Prompt] = OrderedDict()

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """The prompt [B, L, D] of `texts`; see the encoders' own."""
        key = (tuple(texts), size if isinstance(size, SizeConditioning) else tuple(size), device)
        if key not in self._known:
            self._known[key] = self._text(texts, size, device)
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return self._known[key]
