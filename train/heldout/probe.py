"""The edit probe: a change of its description that is tried on a held-out picture while an encoder trains.

An encoder whose noise has swallowed the picture reconstructs well and no longer follows the prompt; only edits show it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.pictures.buckets import Size
from data.world.description import Scene, has_heldout_pair
from data.world.edits import EDIT_KINDS, Edit, edit_of
from train.rng import derived_seed


@dataclass(frozen=True)
class Probe:
    """A description of a picture and the one after an edit, with the true edit where the picture is a scene."""

    caption: str
    target: str
    edit: Edit | None = None


Pairs = Mapping[str, Mapping[str, str]]
"""What a probe's file says, by the samples' keys."""


_COLUMNS = {"key", "target", "caption", "instruction"}


def read_pairs(path: Path) -> Pairs:
    """The rows of a file of edits, `{"key": ..., "target": ..., "caption": ..., "instruction": ...}` a line.

    The caption may be missing; the instruction may, too, and is for people.

    Raises:
        ValueError: a line is something else, or a key comes twice.
    """
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"data.probe {path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not {"key", "target"} <= set(row) <= _COLUMNS:
            raise ValueError(f"data.probe {path}, line {number} is {line[:80]}; expected key, target and maybe caption")
        if not all(isinstance(text, str) and text.strip() for text in row.values()):
            raise ValueError(f"data.probe {path}, line {number} is {line[:80]}; expected words in all of it")
        if row["key"] in found:
            raise ValueError(f"data.probe {path}, line {number}: the key {row['key']} stands there twice; take one out")
        found[row["key"]] = row
    return found


def probe_of(info: Mapping[str, Any], size: Size, pairs: Pairs, seed: int) -> Probe | None:
    """The edit that is tried on a sample: of the file, of its own column `target`, or a true one where it is a scene.

    A scene's edit begins with the long caption, which says all that the edit may change.

    Args:
        info: KEY.json of the sample.
        size: Width and height of the picture as networks see it. A scene that was scaled has no true edit.
        pairs: Rows of the file.
        seed: Seed of the run.
    """
    if info["key"] in pairs:
        row = pairs[info["key"]]
        return Probe(row.get("caption", info["caption"]), row["target"])
    if isinstance(target := info["extra"].get("target"), str):
        return Probe(info["caption"], target)
    if "scene" in info["extra"] and tuple(info["original_size"]) == tuple(size):
        edit = _true_edit(Scene.from_dict(info["extra"]["scene"]), derived_seed(seed, "probe", info["key"]))
        return Probe(*edit.captions(), edit)
    return None


def _true_edit(scene: Scene, seed: int) -> Edit:
    """A random edit of a scene that stays on its side of the held-out combinations."""
    rng = np.random.default_rng(seed)
    while True:
        edit = edit_of(rng, scene, str(rng.choice(EDIT_KINDS)))
        if edit is not None and has_heldout_pair(edit.target) == has_heldout_pair(scene):
            return edit
