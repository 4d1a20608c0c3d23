"""Reading a PIE-Bench folder (Ju et al. 2024): mapping_file.json and annotation_images.

A bad annotation is listed with its reason and does not stop an evaluation.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.pictures.images import DamagedImage, decode
from data.world.pie_layout import IMAGES, MAPPING, TRUTHS
from models.shapes import shapes, side_multiple

TYPE_NAMES = {
    "0": "random",
    "1": "change object",
    "2": "add object",
    "3": "delete object",
    "4": "change content",
    "5": "change pose",
    "6": "change colour",
    "7": "change material",
    "8": "change background",
    "9": "change style",
}
ORIGINS = ("natural", "artificial")
"""Origins of PIE-Bench's pictures: photographs, or drawn and made; those of the type "random" are not told apart."""

_TEXTS = ("image_path", "original_prompt", "editing_prompt", "editing_instruction", "editing_type_id", "blended_word")


@dataclass(frozen=True)
class PieCase:
    """One image with its edit.

    Args:
        key: name of the entry, "000000000000".
        type_id: "0" to "9".
        image: the picture's file; truth: that of the true edit, where it is known.
        image_path: name of the picture in the benchmark, with folders.
        source_prompt, target_prompt: without the brackets that mark the words that differ.
        long_prompts: detailed descriptions of both, where the folder has such.
        instruction: the edit as an order.
        blended: the words of source and target whose places the edit concerns, or None.
        mask: the places that may change, bool [H, W], as annotated.
    """

    key: str
    type_id: str
    image: Path
    source_prompt: str
    target_prompt: str
    instruction: str
    blended: tuple[str, str] | None
    mask: NDArray[np.bool_]
    truth: Path | None = None
    long_prompts: tuple[str, str] | None = None
    image_path: str = ""

    @property
    def origin(self) -> str | None:
        """Origin of the picture by a folder of its name ("1_artificial", "2_natural"), or None where none says it."""
        parts = [part.partition("_") for part in PurePosixPath(self.image_path).parts[:-1]]
        return next((word for number, _, word in parts if number.isdigit() and word in ORIGINS), None)


@dataclass(frozen=True)
class BadAnnotation:
    """A mistake in an entry, and whether the case had to be left out for it."""

    key: str
    reason: str
    left_out: bool = True


class _Unusable(ValueError):
    """An entry of which no case can be made."""


def read_pie_bench(folder: Path, side: int | None = None) -> tuple[list[PieCase], list[BadAnnotation]]:
    """The cases of a PIE-Bench folder in the order of their keys, and what is wrong in it.

    Args:
        side: side in pixels of the squares that the editors work on; pictures that are neither such a square nor of one
            of the shapes of about its area (models.shapes) are left out. None takes any size.

    Raises:
        ValueError: the folder has no mapping file, it is not JSON of the right shape, or no case is left.
    """
    path = folder / MAPPING
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a PIE-Bench folder: it has no {MAPPING}; unpack the benchmark there, or make one of "
            "scenes with `python -m data.scene_pie_bench`"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path} holds no entries by key; expected PIE-Bench's mapping file")
    cases, bad = [], []
    for key, entry in sorted(entries.items()):
        try:
            case, notes = _read_case(folder, key, entry, side)
        except _Unusable as error:
            bad.append(BadAnnotation(key, str(error)))
            continue
        cases.append(case)
        bad += [BadAnnotation(key, note, left_out=False) for note in notes]
    if not cases:
        raise ValueError(f"no case of {folder} can be used; the first reason: {bad[0].reason if bad else 'no entries'}")
    return cases, bad


def _read_case(folder: Path, key: str, entry: Mapping[str, Any], side: int | None) -> tuple[PieCase, list[str]]:
    """The case, and what was mended in it. Raises _Unusable."""
    if missing := [name for name in _TEXTS if not isinstance(entry.get(name), str)]:
        raise _Unusable(f"no text under {', '.join(missing)}")
    if entry["editing_type_id"] not in TYPE_NAMES:
        raise _Unusable(f"editing_type_id is {entry['editing_type_id']!r}; expected 0 to 9")
    source, target = (without_brackets(entry[name]) for name in ("original_prompt", "editing_prompt"))
    if not source or not target:
        raise _Unusable("an empty prompt")
    image = folder / IMAGES / entry["image_path"]
    height, width = _size(image)
    if side is not None and (height, width) not in ((side, side), *shapes(side, side_multiple(side))):
        raise _Unusable(f"{entry['image_path']} has {width}x{height} px; the generator works at {side}x{side}")
    long_prompts = tuple(entry.get(f"{name}_prompt_long") for name in ("original", "editing"))
    words = entry["blended_word"].split()
    notes = [] if len(words) in (0, 2) else [f"blended_word is {entry['blended_word']!r}; expected two words or none"]
    truth = _truth(folder, entry.get("true_edit_path"), (height, width), notes)
    return PieCase(
        key,
        entry["editing_type_id"],
        image,
        source,
        target,
        entry["editing_instruction"].strip(),
        (words[0], words[1]) if len(words) > 1 else None,
        decode_mask(entry.get("mask"), height, width),
        truth,
        long_prompts if all(isinstance(text, str) and text for text in long_prompts) else None,  # type: ignore[arg-type]
        entry["image_path"],
    ), notes


def _truth(folder: Path, name: Any, size: tuple[int, int], notes: list[str]) -> Path | None:
    """The picture of the true edit; where it is named and cannot be used, None, and the reason among `notes`."""
    if not isinstance(name, str):
        return None
    path = folder / TRUTHS / name
    try:
        if _size(path) == size:
            return path
        notes.append(f"the true edit {name} has another size than the picture")
    except _Unusable as error:
        notes.append(f"the true edit is not known: {error}")
    return None


def without_brackets(prompt: str) -> str:
    """A prompt without the square brackets around the words that differ."""
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def decode_mask(runs: Sequence[int] | None, height: int, width: int) -> NDArray[np.bool_]:
    """A mask, bool [H, W], of PIE-Bench's run lengths: start, length, start, length ..., row by row; 1 inside the edit.

    What reaches behind the last pixel is cut off, as the official code does.

    Raises:
        ValueError: what is given is no such list.
    """
    if not isinstance(runs, list) or any(not isinstance(run, int) or run < 0 for run in runs) or len(runs) % 2:
        raise _Unusable("mask is no list of starts and lengths")
    flat = np.zeros(height * width, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    return flat.reshape(height, width)


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a picture that can be read. Raises _Unusable."""
    try:
        picture = decode(path.read_bytes())
    except OSError:
        raise _Unusable(f"no picture at {path.parent.name}/{path.name}") from None
    except DamagedImage as error:
        raise _Unusable(f"{path.name} cannot be read ({error})") from error
    return picture.height, picture.width


def in_turn(cases: Sequence[PieCase], num: int | None) -> list[PieCase]:
    """Choose at most `num` cases, the types taking turns, in the order in which they are given."""
    seen: dict[str, int] = {}
    order = []
    for case in cases:
        seen[case.type_id] = seen.get(case.type_id, 0) + 1
        order.append((seen[case.type_id], case.type_id, case.key))
    chosen = {key for _, _, key in sorted(order)[:num]}
    return [case for case in cases if case.key in chosen]
