"""Composites written as a PIE-Bench folder, by any number of processes, each of which may die and come back."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.compositing.edits import CompositeEdit, Kind, draw_edit, edit_words, make_pictures
from data.compositing.inputs import GroundPhotograph, LeftOut, PastedObject, open_captioned
from data.jobs.files import whole, write_json, write_text
from data.jobs.kept import KeptFolder, digest
from data.jobs.sharing import Ranks, remove_leftovers
from data.pictures.source import Source
from data.world.pie_layout import IMAGES, MAPPING, TRUTHS, TYPE_FOLDERS, run_lengths

logger = logging.getLogger(__name__)

ENTRIES = "entries"
"""Folder of what mapping_file.json is made of, an entry a file."""

LEFT_OUT = "left_out.jsonl"

_TYPES: Mapping[Kind, str] = {
    "change_object": "1",
    "add_object": "2",
    "delete_object": "3",
    "move_object": "5",
    "change_colour": "6",
    "change_background": "8",
}
"""PIE-Bench's types. A change of place is one of pose, as in the scenes."""


@dataclass(frozen=True)
class CompositesPlan:
    """All that decides a folder of composites.

    Args:
        objects_path: folder, list or shards of the objects.
        photographs_path: folder, list or shards of the photographs.
        objects: the objects that can be used.
        photographs: the photographs that can be used.
        kinds: kinds of edits.
        num: number of edits of each kind.
        resolution: side in pixels from which the photographs have their sizes.
        shapes: "square" or "buckets", likewise.
        seed: seed of all that is drawn.
    """

    objects_path: Path
    photographs_path: Path
    objects: Sequence[PastedObject]
    photographs: Sequence[GroundPhotograph]
    kinds: Sequence[Kind]
    num: int
    resolution: int
    shapes: str
    seed: int

    @cached_property
    def edits(self) -> dict[str, CompositeEdit]:
        """The edits by their keys, in PIE-Bench's form: type, then number.

        Raises:
            ValueError: there is nothing of which one of the kinds can be made.
        """
        found = {}
        for place, kind in enumerate(self.kinds):
            for index in range(self.num):
                type_id = _TYPES[kind]
                rng = np.random.default_rng([self.seed, int(type_id), index])
                turn = index * len(self.kinds) + place
                found[f"{type_id}00{index:09d}"] = draw_edit(rng, kind, turn, self.objects, self.photographs)
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be the same where a folder is gone on with."""
        return {
            "num": self.num,
            "kinds": list(self.kinds),
            "resolution": self.resolution,
            "shapes": self.shapes,
            "seed": self.seed,
            "objects": digest([asdict(item) for item in self.objects]),
            "photographs": digest([asdict(item) for item in self.photographs]),
        }


def make_composites(plan: CompositesPlan, out: Path, ranks: Ranks) -> None:
    """Make the composites that fall to this process, until all are there, whoever made them.

    Raises:
        ValueError: `out` holds composites of another plan.
    """
    edits = plan.edits
    kept = KeptFolder(out / ENTRIES, plan.settings)
    folders = [out / folder / _folder(kind, plan.num) for folder in (IMAGES, TRUTHS) for kind in plan.kinds]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    objects, photographs = open_captioned(plan.objects_path, "first"), open_captioned(plan.photographs_path)
    for key in kept.missing(dict.fromkeys(edits, 1), "composites", "edit", ranks):
        kept.keep(key, _write_edit(edits[key], key, plan.num, out, objects, photographs))


def complete(plan: CompositesPlan, out: Path, left_out: Sequence[LeftOut]) -> None:
    """Write the list of what was left out, and the mapping file of all entries, which marks the folder as complete."""
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in left_out)
    write_text(out / LEFT_OUT, "".join(lines))
    kept = KeptFolder(out / ENTRIES, plan.settings)
    write_json(out / MAPPING, {key: kept.read(key) for key in plan.edits})


def told_left_out(what: str, used: int, left_out: Sequence[LeftOut]) -> str:
    """How many inputs are used, and how many are not for which reason: "objects: 20 used; left out: 3 no caption"."""
    reasons = Counter(item.reason for item in left_out)
    others = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]))
    return f"{what}: {used} used" + (f"; left out: {others}" if others else "")


def _folder(kind: Kind, num: int) -> str:
    type_id = _TYPES[kind]
    return f"{type_id}_{TYPE_FOLDERS[int(type_id)]}_{num}"


def _write_edit(
    edit: CompositeEdit, key: str, num: int, out: Path, objects: Source, photographs: Source
) -> dict[str, Any]:
    """Writes both pictures; returns the entry of mapping_file.json."""
    name = f"{_folder(edit.kind, num)}/{key}.png"
    pictures, words = make_pictures(edit, objects, photographs), edit_words(edit)
    for folder, picture in ((IMAGES, pictures.before), (TRUTHS, pictures.after)):
        with whole(out / folder / name) as path:
            Image.fromarray(picture).save(path, "PNG")
    return {
        "image_path": name,
        "original_prompt": words.short[0],
        "editing_prompt": words.short[1],
        "editing_instruction": words.instruction,
        "editing_type_id": _TYPES[edit.kind],
        "blended_word": words.blended,
        "mask": run_lengths(pictures.mask),
        "true_edit_path": name,
        "original_prompt_long": words.long[0],
        "editing_prompt_long": words.long[1],
        "kind": edit.kind,
        "photographs": [photograph.name for photograph in edit.photographs],
        "objects": [item.name for item in edit.objects],
    }
