"""Files of an edit: the picture at full size, its masks, and the settings by which `eval.edit --config` makes it."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from eval.photo_edits.editing import PhotoEdit


def save_edit(edit: PhotoEdit, folder: Path, photograph: bool) -> list[Path]:
    """Write an edit into an empty folder; returns the files.

    The settings name photograph and masks by their files' names alone: `eval.edit` is typed where they lie, and what
    it writes there, NAME_edited and on, overwrites none of them.

    Args:
        edit: the edit.
        folder: an empty folder.
        photograph: whether to write the photograph too.
    """
    name = Path(edit.source.photograph.name).name
    stem = Path(name).stem
    files = [folder / f"{stem}_saved.png"]
    edit.picture.save(files[0])
    settings: dict[str, Any] = deepcopy(edit.settings) | {"image": [name]}
    if photograph:
        name = f"{stem}.png"
        settings["image"] = [name]
        files.append(folder / name)
        edit.source.photograph.picture.save(files[-1])
    edits = _chain(edit)
    for number, one in enumerate(edits):
        if one.drawn is not None:
            files.append(folder / (f"{stem}_mask.png" if len(edits) == 1 else f"{stem}_mask_{number + 1}.png"))
            one.drawn.save(files[-1])
            masked = settings if one is edit else settings["earlier"][number]
            masked["mask"] = files[-1].name
    files.append(folder / f"{stem}_saved.json")
    files[-1].write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def _chain(edit: PhotoEdit) -> list[PhotoEdit]:
    """The edits from the photograph to this one, the first one first."""
    found = [edit]
    while isinstance(found[0].on, PhotoEdit):
        found.insert(0, found[0].on)
    return found
