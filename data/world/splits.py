"""The splits of the world: which random numbers make scene or edit number so-and-so; no two splits share any."""

import numpy as np

from data.world.description import (
    Scene,
)
from data.world.edits import EDIT_KINDS, Edit, sample_edit
from data.world.sampling import draw_scene

SPLITS = ("train", "validation", "test", "heldout")


SCENE_STREAM, CAPTION_STREAM, EDIT_STREAM = 1, 2, 3
CANVAS_STREAM = EDIT_STREAM + len(EDIT_KINDS)


def stream(split: str, seed: int, index: int, stream: int) -> np.random.Generator:
    """Random numbers of one sample. Never zero at the end: SeedSequence reads [a] and [a, 0] alike."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    for name, number in (("seed", seed), ("index", index)):
        if not 0 <= number < 2**32:
            raise ValueError(f"{name} is {number}, expected a whole number from 0 to 2**32 - 1")
    return np.random.default_rng(np.random.SeedSequence([SPLITS.index(split), seed, index, stream]))


def sample_scene(split: str, seed: int, index: int) -> Scene:
    """Scene `index` of a split; splits share no random numbers, and held-out combinations occur in `heldout` only."""
    return draw_scene(stream(split, seed, index, SCENE_STREAM), split == "heldout")


def sample_edits(split: str, seed: int, index: int, kind: str) -> Edit:
    """Edit `index` of one kind in a split; source and target both obey the split's rule.

    ValueError for an unknown kind.
    """
    if kind not in EDIT_KINDS:
        raise ValueError(f"edit kind is {kind!r}, expected one of {', '.join(EDIT_KINDS)}")
    return sample_edit(stream(split, seed, index, EDIT_STREAM + EDIT_KINDS.index(kind)), kind, split == "heldout")
