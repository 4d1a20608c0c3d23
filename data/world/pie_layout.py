"""Layout of a PIE-Bench folder (Ju et al. 2024), and scenes' prompts and masks as its mapping_file.json has them."""

import numpy as np
from numpy.typing import NDArray

from data.world.captions import short_caption
from data.world.edits import EDIT_KINDS, Edit, changed_attributes

MAPPING = "mapping_file.json"
IMAGES = "annotation_images"
TRUTHS = "true_edits"

TYPE_FOLDERS = ("random", *EDIT_KINDS)
"""Editing types 0 to 9; the kinds of edits are named and ordered as PIE-Bench's types 1 to 9."""


def short_prompts(edit: Edit) -> tuple[str, str]:
    """Short captions of both scenes that say, beside colours, shapes and background, what the edit changes."""
    also = {name.split("_", 1)[-1] for name in changed_attributes(edit)}
    if len(edit.source.objects) == len(edit.target.objects) and "layout" in also:
        also.add("place")
    return short_caption(edit.source, also), short_caption(edit.target, also)


def bracketed(text: str, words: list[int]) -> str:
    """Put each run of the given words (indices into text.split()) of `text` in square brackets."""
    found = text.split()
    for index in words:
        found[index] = ("" if index - 1 in words else "[") + found[index] + ("" if index + 1 in words else "]")
    return " ".join(found)


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """PIE-Bench's form of a mask [H, W]: start, length, start, length ... of the runs of ones, row by row."""
    flat = np.concatenate([[0], mask.ravel().astype(np.int8), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return np.stack([starts, ends - starts], axis=1).ravel().tolist()
