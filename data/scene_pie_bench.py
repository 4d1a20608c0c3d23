"""Scenes in PIE-Bench's layout, with the true edits as an addition: a benchmark of edits that needs no download.

    python -m data.scene_pie_bench OUT --num 20

OUT/mapping_file.json and OUT/annotation_images are as in PIE-Bench (Ju et al. 2024), at 64 pixels and as PNG. An entry
has three more values: `true_edit_path`, and long prompts beside the short ones, which say what the edit changes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from data.jobs.command import run
from data.jobs.files import write_json
from data.world.edits import EDIT_KINDS, Edit
from data.world.pie_layout import IMAGES, MAPPING, TRUTHS, TYPE_FOLDERS, bracketed, run_lengths, short_prompts
from data.world.render import render
from data.world.splits import sample_edits


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
        "mask": run_lengths(edit.mask()),
        "true_edit_path": name,
        "original_prompt_long": long_source,
        "editing_prompt_long": long_target,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.scene_pie_bench", write_pie_bench, arguments, positional=True)


if __name__ == "__main__":
    main()
