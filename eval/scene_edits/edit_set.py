"""Scenes and their edits as tensors: sources, true edits, masks and prompts, in batches."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.world.description import Scene
from data.world.edits import EDIT_KINDS, Edit
from data.world.render import SQUARE, render
from data.world.splits import sample_edits
from models.pictures import from_pictures
from models.shapes import Size


@dataclass(frozen=True)
class EditSet:
    """N edits.

    Args:
        edits: Descriptions of the edits.
        sources: Pictures before the edit, [N, 3, H, W] in [-1, 1].
        truths: Pictures after the edit, likewise.
        masks: Places that the true edit may change, bool [N, 1, H, W].
        source_prompts: Long captions of the sources.
        target_prompts: Long captions of the true edits.
    """

    edits: tuple[Edit, ...]
    sources: Tensor
    truths: Tensor
    masks: Tensor
    source_prompts: tuple[str, ...]
    target_prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each edit."""
        return tuple(edit.kind for edit in self.edits)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the sources, their prompts and what becomes of them."""
        found = hashlib.sha256(self.sources.cpu().numpy().tobytes())
        words = [self.source_prompts, self.target_prompts, [edit.instruction for edit in self.edits]]
        found.update(json.dumps(words).encode())
        return found.hexdigest()[:16]

    def batches(self, size: int) -> Iterator["EditSet"]:
        """The edits in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self._part(slice(start, start + size))

    def first(self, count: int) -> "EditSet":
        """The first `count` edits, or all if there are fewer."""
        return self._part(slice(count))

    def _part(self, part: slice) -> "EditSet":
        return EditSet(
            self.edits[part],
            self.sources[part],
            self.truths[part],
            self.masks[part],
            self.source_prompts[part],
            self.target_prompts[part],
        )


def edit_set(edits: Sequence[Edit], device: torch.device | str = "cpu", size: Size = SQUARE) -> EditSet:
    """`edits` rendered on a canvas."""
    captions = [edit.captions(long=True) for edit in edits]
    masks = torch.from_numpy(np.stack([edit.mask(size) for edit in edits]))[:, None]
    return EditSet(
        tuple(edits),
        rendered([edit.source for edit in edits], size).to(device),
        rendered([edit.target for edit in edits], size).to(device),
        masks.to(device),
        tuple(source for source, _ in captions),
        tuple(target for _, target in captions),
    )


def sample_edit_set(
    split: str, num: int, seed: int = 0, device: torch.device | str = "cpu", size: Size = SQUARE
) -> EditSet:
    """`num` edits of each kind from a split, the kinds taking turns, on a canvas."""
    edits = [sample_edits(split, seed, index, kind) for index in range(num) for kind in EDIT_KINDS]
    return edit_set(edits, device, size)


def rendered(scenes: Sequence[Scene], size: Size = SQUARE) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1]."""
    return from_pictures([render(scene, size) for scene in scenes])
