"""Edits as tensors, of scenes or of other pictures: sources, true edits, masks and prompts, in batches."""

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
class PictureEdit:
    """An edit of a picture of which there is no scene: a case of PIE-Bench, a photograph.

    Args:
        key: Name in tables.
        kind: Kind of the edit, in words.
        instruction: The edit as an order, or the target's description where there is no order.
    """

    key: str
    kind: str
    instruction: str


@dataclass(frozen=True)
class EditSet:
    """N edits.

    Args:
        edits: Descriptions of the edits, all of scenes or all of other pictures.
        sources: Pictures before the edit, [N, 3, H, W] in [-1, 1].
        truths: Pictures after the edit, likewise; nan where the true edit is not known.
        masks: Places that the true edit may change, bool [N, 1, H, W]; all of them where there is no mask.
        source_prompts: Long captions of the sources.
        target_prompts: Long captions of the true edits.
    """

    edits: tuple[Edit | PictureEdit, ...]
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
    def scenes(self) -> tuple[Edit, ...]:
        """The edits, of scenes; none where they are edits of other pictures."""
        return tuple(edit for edit in self.edits if isinstance(edit, Edit))

    @property
    def has_truths(self) -> bool:
        """Whether every true edit is known."""
        return not self.truths[:, 0, 0, 0].isnan().any()

    @property
    def bounded(self) -> Tensor:
        """Bool [N]: whether the edit has to leave places as they are."""
        return ~self.masks.flatten(1).all(1)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the sources, their prompts and what becomes of them."""
        found = hashlib.sha256(self.sources.cpu().numpy().tobytes())
        if not self.scenes:  # a scene's mask and true edit follow from what its words say
            found.update(self.masks.cpu().numpy().tobytes() + self.truths.mean((1, 2, 3)).cpu().numpy().tobytes())
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

    def chosen(self, rows: Sequence[int]) -> "EditSet":
        """Some of the edits, in the order of their numbers."""
        found = list(rows)
        return EditSet(
            tuple(self.edits[row] for row in found),
            self.sources[found],
            self.truths[found],
            self.masks[found],
            tuple(self.source_prompts[row] for row in found),
            tuple(self.target_prompts[row] for row in found),
        )

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
