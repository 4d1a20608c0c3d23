"""Parquet files as the hub has them: a folder for each type of edit, with the pictures' bytes in the rows."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from data.jobs.errors import ShardError
from data.pictures.rows import ParquetRows
from eval.benchmarks.entries import NO_MASK, BadAnnotation, Entry, Unusable, entry_of, find_picture

_ORIGINS = {"1": "1_artificial", "2": "2_natural"}
_SUBJECTS = {"1": "1_animal", "2": "2_human", "3": "3_indoor", "4": "4_outdoor"}
_NEEDED = (("image",), ("source_prompt", "original_prompt"), ("target_prompt", "editing_prompt"))


def read_parquet(paths: Sequence[Path], folder: Path) -> Iterator[Entry | BadAnnotation]:
    """The rows of files below `folder`, file by file in the order of their rows.

    A file that cannot be read, or lacks a column, is a bad entry under its own name.
    """
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        try:
            yield from _rows(path, folder, PurePosixPath(name))
        except (ShardError, Unusable) as error:
            yield BadAnnotation(name, str(error))


def _rows(path: Path, folder: Path, name: PurePosixPath) -> Iterator[Entry | BadAnnotation]:
    """Raises Unusable or ShardError for a file that cannot be read, or not on."""
    rows = ParquetRows(path)
    if lacking := [" or ".join(names) for names in _NEEDED if not set(names) & set(rows.columns)]:
        raise Unusable(f"the file has no column {', '.join(lacking)}; its columns are {', '.join(rows.columns)}")
    for number, row in enumerate(rows):
        there = {column: value for column, value in row.items() if value is not None}
        key = str(there.get("id", f"{'-'.join(name.with_suffix('').parts)}-{number:06d}"))
        try:
            yield _entry(key, there, folder, name, masked="mask" in rows.columns)
        except Unusable as error:
            yield BadAnnotation(key, str(error))


def _entry(key: str, row: Mapping[str, Any], folder: Path, name: PurePosixPath, masked: bool) -> Entry:
    if masked and "mask" not in row:
        raise Unusable("it has no mask")
    picture, suffix = _picture(row.get("image"), folder)
    image_path = f"{_official_folder(key, name)}{key}{suffix}"
    type_id = row.get("editing_type_id")
    fields = row if type_id is None else {**row, "editing_type_id": str(type_id)}
    return entry_of(key, fields, picture, image_path, row["mask"] if masked else NO_MASK)


def _picture(cell: Any, folder: Path) -> tuple[Path | bytes, str]:
    """The bytes of a cell, or the file that it names, with the suffix of such files. Raises Unusable for neither."""
    content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if isinstance(content, bytes):
        return content, _suffix(content)
    name = content if isinstance(content, str) else name
    if not isinstance(name, str):
        raise Unusable("it has no picture")
    return find_picture(folder, name), PurePosixPath(name).suffix


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return f".{(picture.format or 'png').lower()}".replace(".jpeg", ".jpg")
    except (UnidentifiedImageError, OSError):
        return ".png"


def _official_folder(key: str, name: PurePosixPath) -> str:
    """Where PIE-Bench itself has a picture, by the folder of its file and the digits of its key.

    "423000000000" of type 4 is 4_change_attribute_content_40/2_natural/3_indoor/423000000000.jpg. Without a folder of a
    type there is none, and keys of other forms lie directly in it.
    """
    folder = next((part for part in name.parts[:-1] if re.match(r"\d_", part)), None)
    if folder is None:
        return ""
    digits = re.fullmatch(r"([1-9])([12])([1-4])\d{9}", key)
    if digits is None or digits[1] != folder[0]:
        return f"{folder}/"
    return f"{folder}/{_ORIGINS[digits[2]]}/{_SUBJECTS[digits[3]]}/"
