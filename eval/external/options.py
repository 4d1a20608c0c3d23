"""External rows as a user names them: values alone, and how the words of a command line become them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from data.jobs.command import existing
from eval.pie.config import MaskMode, Prompts

OPTION = "--external."


@dataclass(frozen=True)
class ExternalRow:
    """Pictures that something else has edited, and what their row says of it.

    Args:
        folder: place of KEY.png (.jpg, .webp ...), or of pictures under the benchmark's own names
        title: words on the row; null for its name
        prompts: what the editor was given: short or long prompts, or the instruction (instructive)
        mask: what bounded the edits: none, automatic, given (the benchmark's mask) or unsaid
        steps: number of the sampler's steps
        seconds_invert: seconds an image for what does not depend on the target
        seconds_edit: seconds an image for the edit itself
        resize: bring pictures of another size to the benchmark's, by Lanczos; else they are listed and left out
    """

    folder: Path
    title: str | None = None
    prompts: Prompts = "short"
    mask: MaskMode = "unsaid"
    steps: int | None = None
    seconds_invert: float | None = None
    seconds_edit: float | None = None
    resize: bool = False


_FIELDS = tuple(field.name for field in fields(ExternalRow))
_TEXTS = ("folder", "title")


def external_rows(given: Mapping[str, Path | ExternalRow] | None) -> dict[str, ExternalRow]:
    """The rows by name; a folder alone is a row of which nothing else is said.

    Raises:
        ValueError: a folder that is not there, or a number that cannot be.
    """
    rows = {name: row if isinstance(row, ExternalRow) else ExternalRow(row) for name, row in (given or {}).items()}
    for name, row in rows.items():
        existing(row.folder, OPTION + name)
        if not row.folder.is_dir():
            raise ValueError(f"{OPTION}{name} {row.folder} is a file; expected a folder of pictures")
        for field in ("steps", "seconds_invert", "seconds_edit"):
            value = getattr(row, field)
            if value is not None and value < 0:
                raise ValueError(f"{OPTION}{name}.{field} is {value}; expected no number below 0")
    return rows


def gathered_external(words: Sequence[str]) -> list[str]:
    """Words of a command line, all that belong to one external row put together in the place of the first.

    `--external.NAME FOLDER --external.NAME.title TITLE` becomes `--external.NAME {"folder": ..., "title": ...}`, which
    the parser takes as an ExternalRow.

    Raises:
        ValueError: a field that no external row has, one without a value, or a row without its folder.
    """
    found: list[str] = []
    places: dict[str, int] = {}
    rows: dict[str, dict[str, Any]] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith(OPTION):
            found.append(word)
            continue
        option, equals, value = word.partition("=")
        name, _, field = option.removeprefix(OPTION).partition(".")
        if not equals and (not left or left[0].startswith("--")):
            raise ValueError(f"{option} has no value")
        value = value if equals else left.pop(0)
        if field and field not in _FIELDS:
            raise ValueError(f"{option} is no option of an external row; expected one of {', '.join(_FIELDS)}")
        if name not in rows:
            places[name], rows[name] = len(found), {}
            found += [OPTION + name, ""]
        rows[name] |= _values(field, value)
    for name, row in rows.items():
        if "folder" not in row:
            raise ValueError(f"{OPTION}{name} has no folder; give it as {OPTION}{name} FOLDER")
        found[places[name] + 1] = json.dumps(row)
    return found


def _values(field: str, value: str) -> dict[str, Any]:
    """Fields of a row by one word: all of them as a mapping, its folder, or one field by name."""
    if not field and value.lstrip().startswith("{"):
        return dict(yaml.safe_load(value))
    return {field or "folder": value if (field or "folder") in _TEXTS else yaml.safe_load(value)}
