"""Scenes in PIE-Bench's layout, with the true edits as an addition: a benchmark of edits that needs no download.

    python -m data.scene_pie_bench OUT --num 20

OUT/mapping_file.json and OUT/annotation_images are as in PIE-Bench (Ju et al. 2024), at 64 pixels and as PNG. An entry
has three more values: `true_edit_path`, and long prompts beside the short ones, which say what the edit changes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data.jobs.command import run
from data.jobs.files import write_json
from data.world.captions import short_caption
from data.world.edits import EDIT_KINDS, Edit, changed_attributes
from data.world.render import render
from data.world.splits import sample_edits

MAPPING = "mapping_file.json"
IMAGES = "annotation_images"
TRUTHS = "true_edits"

TYPE_FOLDERS = ("random", *EDIT_KINDS)
"""Editing types 0 to 9; the kinds of edits are named and ordered as PIE-Bench's types 1 to 9."""


def write_pie_bench(
    out: Path, num: int = 20, split: Literal["train", "validation", "test", "heldout"] = "test", seed: int = 0
) -> None:
    """Write edits of scenes as a PIE-Bench folder; mapping_file.json comes last and marks it complete.

    Args:
        out: folder; new, or left by the same command
        num: edits of each of the ten types
        split: split of the scenes
        seed: another seed gives other scenes of the same split
    """
    if num < 1:
        raise ValueError(f"num is {num}, expected at least 1")
    if (out / MAPPING).is_file():
        raise ValueError(f"{out} is a PIE-Bench folder already; give another OUT or remove it")
    entries = {}
    for number in tqdm(range(num * len(TYPE_FOLDERS)), unit="edit", desc="PIE-Bench of scenes"):
        type_id, index = divmod(number, num)
        # Random ones take turns among the kinds, with indices that the other types do not use.
        kind = TYPE_FOLDERS[type_id] if type_id else EDIT_KINDS[index % len(EDIT_KINDS)]
        edit = sample_edits(split, seed, index if type_id else num + index, kind)
        key = f"{type_id}00{index:09d}"
        entries[key] = _write_entry(out, edit, type_id, f"{type_id}_{TYPE_FOLDERS[type_id]}_{num}/{key}.png")
    write_json(out / MAPPING, entries)


def _write_entry(out: Path, edit: Edit, type_id: int, name: str) -> dict[str, Any]:
    """Writes both pictures; returns the entry of mapping_file.json."""
    for folder, scene in ((IMAGES, edit.source), (TRUTHS, edit.target)):
        path = out / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(scene)).save(path)
    from models.words import changed_words  # torch takes seconds

    source, target = short_prompts(edit)
    long_source, long_target = edit.captions(long=True)
    only_source, only_target = changed_words(source, target)
    named = [text.split()[only[0]].strip(",") for text, only in ((source, only_source), (target, only_target)) if only]
    return {
        "image_path": name,
        "original_prompt": bracketed(source, only_source),
        "editing_prompt": bracketed(target, only_target),
        "editing_instruction": edit.instruction,
        "editing_type_id": str(type_id),
        "blended_word": " ".join(named) if len(only_source) == len(only_target) == 1 else "",
        "mask": run_lengths(edit.mask),
        "true_edit_path": name,
        "original_prompt_long": long_source,
        "editing_prompt_long": long_target,
    }


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.scene_pie_bench", write_pie_bench, arguments, positional=True)


if __name__ == "__main__":
    main()
