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
from data.world.render import render
from data.world.splits import sample_edits
from models.pictures import from_pictures


@dataclass(frozen=True)
class EditSet:
    """N edits.

    Args:
        edits: Descriptions of the edits.
        sources: Pictures before the edit, [N, 3, 64, 64] in [-1, 1].
        truths: Pictures after the edit, likewise.
        masks: Places that the true edit may change, bool [N, 1, 64, 64].
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


def edit_set(edits: Sequence[Edit], device: torch.device | str = "cpu") -> EditSet:
    """`edits` rendered."""
    captions = [edit.captions(long=True) for edit in edits]
    masks = torch.from_numpy(np.stack([edit.mask for edit in edits]))[:, None]
    return EditSet(
        tuple(edits),
        rendered([edit.source for edit in edits]).to(device),
        rendered([edit.target for edit in edits]).to(device),
        masks.to(device),
        tuple(source for source, _ in captions),
        tuple(target for _, target in captions),
    )


def sample_edit_set(split: str, num: int, seed: int = 0, device: torch.device | str = "cpu") -> EditSet:
    """`num` edits of each kind from a split, the kinds taking turns."""
    return edit_set([sample_edits(split, seed, index, kind) for index in range(num) for kind in EDIT_KINDS], device)


def rendered(scenes: Sequence[Scene]) -> Tensor:
    """Pictures [N, 3, 64, 64] in [-1, 1]."""
    return from_pictures([render(scene) for scene in scenes])
