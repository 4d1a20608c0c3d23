"""JSON with an entry by key: PIE-Bench's mapping files (Ju et al. 2024), also of TI2I, and PIE-Bench++'s."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data.world.pie_layout import TRUTHS
from eval.benchmarks.entries import NO_MASK, BadAnnotation, Entry, Unusable, entry_of, find_picture


def read_mapping(path: Path) -> Iterator[Entry | BadAnnotation]:
    """The entries of a file in the order of their keys. Where none has a mask, the data set has none.

    Raises:
        ValueError: the file is not JSON of the right shape.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path} holds no entries by key; expected PIE-Bench's mapping file")
    shared = Counter(str(entry.get("image_path")) for entry in entries.values())
    masked = any(entry.get("mask") not in (None, "") for entry in entries.values())
    for key, entry in sorted(entries.items()):
        try:
            yield _entry(path.parent, key, entry, masked, shared[str(entry.get("image_path"))] > 1)
        except Unusable as error:
            yield BadAnnotation(key, str(error))


def _entry(folder: Path, key: str, entry: Mapping[str, Any], masked: bool, shared: bool) -> Entry:
    """Args: shared: other entries edit the same picture, so that its name does not tell them apart."""
    name = entry.get("image_path")
    if not isinstance(name, str):
        raise Unusable("no text under image_path")
    own = key + PurePosixPath(name).suffix if shared else name
    mask = entry.get("mask")
    if masked and mask in (None, ""):
        raise Unusable("it has no mask")
    truth = entry.get("true_edit_path")
    true_edit = folder / TRUTHS / truth if isinstance(truth, str) else None
    return entry_of(key, entry, find_picture(folder, name), own, mask if masked else NO_MASK, true_edit)
