"""Settings in rows' folders of before: all attributes of an editor's objects, where now it states what counts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.jobs.files import write_json
from data.jobs.kept import SETTINGS
from data.jobs.sharing import locked

_RENAMED = {"Ddim": "DdimInversion"}
"""Today's names of editors' classes by their former ones."""


def take_up(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a folder's settings in the form of today if the former one that it holds says the same as `settings`.

    A folder without settings, or with any others, is left as it is.
    """
    path, now = folder / SETTINGS, json.loads(json.dumps(settings))
    if not path.is_file() or not isinstance(now.get("editor"), dict):
        return
    with locked(folder):
        before = json.loads(path.read_text(encoding="utf-8"))
        if before == now or not isinstance(before.get("editor"), dict):
            return
        if {**before, "editor": _stated(before["editor"], now["editor"])} == now:
            write_json(path, now)


def _stated(before: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of former settings that `like` names; they may lie in an object that the editor holds."""
    found = {}
    for name, value in like.items():
        held = _nearest(before, name)
        if held is None and name == "networks" and before.get("unet") in value:
            held = value  # of a whole pipeline only the UNet was looked at
        if isinstance(held, Mapping) and isinstance(value, Mapping):
            held = _stated(held, value)
        elif isinstance(held, str) and isinstance(value, list):
            held = [int(word) for word in held.split()]  # a pipeline's timesteps
        found[name] = _RENAMED.get(held, held) if name == "class" else held
    return found


def _nearest(settings: Mapping[str, Any], name: str) -> Any:
    """The entry of that name that is nested least, or None."""
    level = [settings]
    while level:
        for mapping in level:
            if name in mapping:
                return mapping[name]
        level = [value for mapping in level for value in mapping.values() if isinstance(value, Mapping)]
    return None
