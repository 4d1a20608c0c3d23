"""What is left of a photograph's edits: a sheet, each at full size with its settings, texts and figures as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data.jobs.files import whole, write_text
from eval.editors.editor import Cost
from eval.photo_edits.editing import InvertedPhotograph, PhotoEdit
from eval.photo_edits.sheet import Tile, draw_sheet
from eval.photo_edits.texts import EditTexts, TargetText


@dataclass(frozen=True)
class FinishedEdit:
    """An edit with the text that led to it."""

    target: TargetText
    edit: PhotoEdit


def free_path(path: Path, num: int) -> Path:
    """`path`, or the first of NAME-2, NAME-3 ..., below which `write_edits` overwrites nothing with `num` edits."""
    free, number = path, 1
    while any(file.exists() for file in _all_files(free, num)):
        number += 1
        free = _beside(path, f"-{number}")
    return free


def _all_files(path: Path, num: int) -> list[Path]:
    """All files that `num` edits may have."""
    endings = [f"_{number}{ending}" for number in range(1, num + 1) for ending in (".png", ".json", "_mask.png")]
    return [_beside(path, ending) for ending in (".png", ".json", *endings)]


def write_edits(
    path: Path, inverted: InvertedPhotograph, texts: EditTexts, finished: Sequence[FinishedEdit]
) -> list[Path]:
    """Write all of a photograph's edits; returns the files of the edits alone.

    For the path DIR/NAME these are the sheet NAME.png, and NAME.json with all texts and figures; for the first edit
    NAME_1.png at the photograph's size, NAME_1.json, which `eval.edit --config` reads to make it again, and
    NAME_1_mask.png if it has a mask, and so on.

    Args:
        path: path of the files without their endings.
        inverted: the photograph.
        texts: texts of its edits.
        finished: edits of it, those of one target one after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files, figures = [], []
    for number, one in enumerate(finished, start=1):
        alone, mask = _beside(path, f"_{number}.png"), _beside(path, f"_{number}_mask.png")
        _save(alone, one.edit.picture)
        if one.edit.mask_picture is not None:
            _save(mask, one.edit.mask_picture)
        write_text(_beside(path, f"_{number}.json"), _json(one.edit.settings))
        files.append(alone)
        figures.append(_figures(one, alone, None if one.edit.mask_picture is None else mask))
    _save(_beside(path, ".png"), _sheet(inverted, finished))
    write_text(_beside(path, ".json"), _json(_record(inverted, texts, figures)))
    return files


def _record(inverted: InvertedPhotograph, texts: EditTexts, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The texts and figures of a photograph."""
    photograph, cutout = inverted.photograph, inverted.start.cutout
    return {
        "image": photograph.name or None,
        "size": list(photograph.picture.size),
        "seen": {"crop": list(cutout.crop), "size": [cutout.size[1], cutout.size[0]]},
        "prompt": inverted.prompt,
        "prompt_notes": list(texts.prompt.notes),
        "inversion": _cost(inverted.cost),
        "edits": figures,
        "unwritten": list(texts.unwritten),
    }


def _figures(one: FinishedEdit, alone: Path, mask: Path | None) -> dict[str, Any]:
    """The texts and figures of an edit."""
    edit = one.edit
    return {
        "file": alone.name,
        "mask_file": None if mask is None else mask.name,
        "instruction": one.target.instruction,
        "aims": [
            {**asdict(aim), "distance": sight.distance, "pooled_distance": sight.pooled, "unread": list(sight.unread)}
            for aim, sight in zip(edit.aims, edit.sights, strict=True)
        ],
        "mask": edit.mask,
        "threshold": edit.threshold,
        **_cost(edit.cost),
        "notes": [*one.target.written.notes, *edit.notes],
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {"nfe": cost.nfe, "seconds": round(cost.seconds, 4)}


def _sheet(inverted: InvertedPhotograph, finished: Sequence[FinishedEdit]) -> Image.Image:
    """A row for each target: source, reconstruction, the first edit's mask, edits by strength."""
    height, width = inverted.start.cutout.size
    rows: dict[str, list[Tile]] = {}
    for one in finished:
        edit, text = one.edit, one.edit.text
        if text not in rows:
            rows[text] = [Tile("source", inverted.photograph.picture, inverted.prompt)]
            if inverted.reconstruction is not None:
                rows[text].append(Tile("reconstruction", inverted.reconstruction, inverted.prompt))
            if edit.mask_picture is not None:
                rows[text].append(Tile(f"mask, {Path(edit.mask or '').name}", edit.mask_picture, "white may change"))
        strength = edit.aims[0].strength
        title = "edit" if strength is None else f"edit, strength {strength:g}"
        rows[text].append(Tile(title, edit.base, ", and ".join(aim.text for aim in edit.aims)))
    return draw_sheet(list(rows.values()), (width, height))


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _save(path: Path, picture: Image.Image) -> None:
    with whole(path) as temporary:
        picture.save(temporary, "PNG")


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
