"""Where captions come from. So far: captions that are there already, as text files or in metadata.jsonl."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.images import SUFFIXES
from data.shards import ShardError

METADATA = "metadata.jsonl"
_CAPTION_COLUMNS = ("text", "caption")


@dataclass(frozen=True)
class ImageFolder:
    """A folder tree with pictures, and the rows that its metadata.jsonl files hold about them.

    Args:
        root: the folder.
        sources: sorted paths of the pictures, relative to the root, with forward slashes.
        rows: columns by source, without `file_name`.
        metadata_digest: sha256 over all metadata.jsonl files.
    """

    root: Path
    sources: list[str]
    rows: dict[str, dict[str, Any]] = field(repr=False)
    metadata_digest: str


def list_images(root: str | Path) -> ImageFolder:
    """Finds the pictures below a folder: by their endings, and all that a metadata.jsonl lists.

    Hidden files and folders are left out.

    Raises:
        ShardError: for a folder that is missing or holds no picture, or a metadata.jsonl that cannot be parsed.
    """
    root = Path(root)
    if not root.is_dir():
        raise ShardError(f"INPUT {root} is not a folder")
    found: set[str] = set()
    rows: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        pictures = (name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
        found.update((relative / name).as_posix() for name in pictures)
        if METADATA in names:
            content = (Path(folder) / METADATA).read_bytes()
            digest.update(content)
            rows |= _parse_rows(root, relative, content)
    sources = sorted(found | set(rows))
    if not sources:
        raise ShardError(
            f"no pictures in {root}: looked in all subfolders for files that end in {', '.join(sorted(SUFFIXES))} "
            f"and for {METADATA}"
        )
    return ImageFolder(root, sources, rows, digest.hexdigest())


def existing_caption(folder: ImageFolder, source: str) -> str | None:
    """The caption of a picture as it is written: from metadata.jsonl, else from the .txt beside it; None for neither.

    Raises:
        UnicodeDecodeError: for a .txt file that is not UTF-8.
    """
    row = folder.rows.get(source, {})
    for column in _CAPTION_COLUMNS:
        if row.get(column) is not None:
            return row[column]
    text = (folder.root / source).with_suffix(".txt")
    return text.read_bytes().decode("utf-8-sig") if text.is_file() else None


def extra_columns(folder: ImageFolder, source: str) -> dict[str, Any]:
    """All columns of metadata.jsonl but the caption."""
    return {name: value for name, value in folder.rows.get(source, {}).items() if name not in _CAPTION_COLUMNS}


def _parse_rows(root: Path, relative: Path, content: bytes) -> dict[str, dict[str, Any]]:
    """The rows of one metadata.jsonl by source."""
    rows = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{root / relative / METADATA}, line {number}"
        try:
            row = json.loads(line)
            name = row.pop("file_name")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{where}: expected a JSON object with file_name, found {line[:80]!r}") from error
        for column in _CAPTION_COLUMNS:
            if not isinstance(row.get(column, ""), str | None):
                raise ShardError(f"{where}: {column} is {row[column]!r}, expected one string")
        source = (relative / name).as_posix()
        if source in rows:
            raise ShardError(f"{where}: {name} is listed twice")
        rows[source] = row
    return rows
