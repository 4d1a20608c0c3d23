"""One edit of a data set, whatever the form in which it came: entries, their texts, and what is wrong with some."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.world.pie_layout import IMAGES
from models.words import has_word

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

NO_MASK = None
"""What stands for the mask of an entry whose data set has no masks."""

_SOURCE = ("original_prompt", "source_prompt")
_TARGET = ("editing_prompt", "target_prompt")


@dataclass(frozen=True)
class BadAnnotation:
    """A mistake in an entry, and whether the case had to be left out for it."""

    key: str
    reason: str
    left_out: bool = True


class Unusable(ValueError):
    """An entry of which no case can be made."""


@dataclass(frozen=True)
class Entry:
    """An edit as its data set has it.

    Args:
        key: name of the entry, "000000000000".
        type_id: one of TYPE_NAMES.
        picture: the picture's file, or its bytes.
        image_path: name of the picture in the data set, with folders; no other entry has it.
        source_prompt, target_prompt: without the brackets that mark the words that differ; a source's may be empty.
        instruction: the edit as an order, or nothing.
        blended: pairs of words of source and target whose places the edit concerns.
        mask: the places that may change, in any form that `eval.benchmarks.masks.mask_of` reads, or NO_MASK.
        truth: file of the true edit, where the data set has such.
        long_prompts: detailed descriptions of both.
        notes: what was mended.
    """

    key: str
    type_id: str
    picture: Path | bytes
    image_path: str
    source_prompt: str
    target_prompt: str
    instruction: str = ""
    blended: tuple[tuple[str, str], ...] = ()
    mask: Any = NO_MASK
    truth: Path | None = None
    long_prompts: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


def entry_of(
    key: str, fields: Mapping[str, Any], picture: Path | bytes, image_path: str, mask: Any, truth: Path | None = None
) -> Entry:
    """The entry of named fields, which PIE-Bench and PIE-Bench++ call differently.

    Raises:
        Unusable: a text is missing, the target's prompt is empty, or the type is none of TYPE_NAMES.
    """
    source, target = (without_brackets(_text(fields, names)) for names in (_SOURCE, _TARGET))
    if not target:
        raise Unusable("an empty prompt")
    blended, notes = _blended(fields, source, target)
    long_prompts = tuple(fields.get(f"{name}_prompt_long") for name in ("original", "editing"))
    return Entry(
        key,
        _type_id(fields, image_path),
        picture,
        image_path,
        source,
        target,
        _text(fields, ("editing_instruction",), "").strip(),
        blended,
        mask,
        truth,
        long_prompts if all(isinstance(text, str) and text for text in long_prompts) else None,  # type: ignore[arg-type]
        tuple(notes),
    )


def without_brackets(prompt: str) -> str:
    """A prompt without the square brackets around the words that differ."""
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def find_picture(folder: Path, name: str) -> Path:
    """The file of a picture that a data set in `folder` calls `name`; where there is none, where it was expected.

    It lies in annotation_images or beside it; the first folder of a name may be that of the data set itself.
    """
    if Path(name).is_absolute() and Path(name).is_file():
        return Path(name)
    path = PurePosixPath(name.lstrip("/"))
    names = [path, PurePosixPath(*path.parts[1:])] if len(path.parts) > 1 else [path]
    places = [folder / place / name for name in names for place in (IMAGES, "")]
    return next((place for place in places if place.is_file()), places[0])


def _text(fields: Mapping[str, Any], names: Sequence[str], otherwise: str | None = None) -> str:
    """The text under the first of `names` that there is. Raises Unusable for none, or no text."""
    found = next((fields[name] for name in names if name in fields), otherwise)
    if not isinstance(found, str):
        raise Unusable(f"no text under {' or '.join(names)}")
    return found


def _type_id(fields: Mapping[str, Any], image_path: str) -> str:
    """The type that is given, else that by which a folder of the picture begins, else "0"."""
    if "editing_type_id" in fields:
        found = fields["editing_type_id"]
        if not isinstance(found, str) or found not in TYPE_NAMES:
            raise Unusable(f"editing_type_id is {found!r}; expected 0 to 9")
        return found
    folders = PurePosixPath(image_path).parts[:-1]
    return next((part[0] for part in folders if re.match(r"\d_", part)), "0")


def _blended(fields: Mapping[str, Any], source: str, target: str) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """Pairs of words, and what is wrong with them.

    PIE-Bench's `blended_word` is one, "cat dog"; PIE-Bench++'s `blended_words` a list, ["cat,dog", "chair,chair"], of
    which those are kept that are in the prompts.
    """
    if "blended_words" not in fields:
        words = _text(fields, ("blended_word",), "").split()
        notes = [] if len(words) in (0, 2) else [f"blended_word is {' '.join(words)!r}; expected two words or none"]
        return (((words[0], words[1]),) if len(words) > 1 else ()), notes
    listed = fields["blended_words"]
    if isinstance(listed, str):
        try:
            listed = json.loads(listed or "[]")
        except json.JSONDecodeError:
            listed = None
    if not isinstance(listed, list) or not all(isinstance(pair, str) for pair in listed):
        return (), [f"blended_words is {fields['blended_words']!r}; expected a list of pairs"]
    pairs = [tuple(word.strip() for word in pair.split(",")) for pair in listed]
    good = [pair for pair in pairs if len(pair) == 2 and has_word(source, pair[0]) and has_word(target, pair[1])]
    notes = [f"{len(pairs) - len(good)} of its blended_words are not in the prompts"] if len(good) < len(pairs) else []
    return tuple((first, second) for first, second in good), notes
