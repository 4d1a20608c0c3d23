"""Sources of pictures: a folder tree, a JSONL list, or WebDataset shards in img2dataset's layout.

Files are opened without asking the file system about them first: on a mounted bucket every such question is a request.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path, PurePosixPath
from typing import Any

from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.pictures.images import SUFFIXES
from data.pictures.source import (
    CAPTION_COLUMNS,
    NO_HASH,
    DamagedInput,
    Input,
    Source,
    SourcePart,
    content_hash,
    digest_of_names,
    take_caption,
)
from data.pictures.tars import TarSource

METADATA = "metadata.jsonl"
_PART_SIZE = 1024
_READS_AHEAD = 64
_TEXTS_AT_ONCE = 16


def open_source(path: str | Path, texts: bool = True) -> Source:
    """The source at a path: a .jsonl file is a list, a folder with .tar files is shards, any other a folder tree.

    Args:
        texts: read the .txt files beside the pictures of a folder tree.

    Raises:
        ShardError: for a path that is nothing of these, or holds no picture.
    """
    path = Path(path)
    if path.suffix == ".jsonl" and path.is_file():
        return read_list(path)
    if not path.is_dir():
        raise ShardError(f"INPUT {path} is not a folder (of pictures, or of tars) and not a list that ends in .jsonl")
    tars = sorted(file.name for file in path.glob("*.tar") if not file.name.startswith("."))
    return TarSource(path, tars) if tars else list_images(path, texts)


class PictureFiles:
    """Pictures that are files of their own.

    Args:
        root: folder to which the names are relative.
        names: sorted paths with forward slashes.
        rows: what metadata.jsonl or the list says about some of them.
        with_text: names of those that have a .txt file beside them which is to be read.
        digests: see Source.
    """

    needs_survey = False
    counted = "image"

    def __init__(
        self, root: Path, names: list[str], rows: "_Rows", with_text: set[str], digests: Mapping[str, str]
    ) -> None:
        self.root = root
        self.names: Sequence[str] = names
        self.digests = digests
        self._rows = rows
        self._line = rows.lines_of(names)
        self._has_text = bytearray(name in with_text for name in names) if with_text else bytearray(len(names))

    def read(self, number: int) -> Input:
        """Read a picture as every `Source` does; its damages are "cannot be read" and "caption is not UTF-8"."""
        columns = self._rows.read(self._line[number])
        caption = take_caption(columns)
        if caption is None and self._has_text[number]:
            try:
                caption = _read(self._text_path(number)).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DamagedInput("caption is not UTF-8", str(error)) from error
        return Input(_read(self.root / self.names[number]), caption, columns)

    def texts_digest(self, numbers: Sequence[int], pool: Executor) -> str:
        """Do as every `Source` does."""
        with_text = [number for number in numbers if self._has_text[number]]
        groups = [with_text[start : start + _TEXTS_AT_ONCE] for start in range(0, len(with_text), _TEXTS_AT_ONCE)]
        digests = b"".join(in_order(pool, self._hash_texts, groups, _READS_AHEAD))
        return hashlib.sha256(digests).hexdigest() if with_text else ""

    def parts(self) -> list[SourcePart]:
        """Do as every `Source` does."""
        pieces = [self.names[start : start + _PART_SIZE] for start in range(0, len(self.names), _PART_SIZE)]
        return [SourcePart(digest_of_names(piece), len(piece)) for piece in pieces]

    def survey(self, part: int, hashed: bool, pool: Executor, beat: Callable[[], None]) -> dict[str, Any]:
        """Do as every `Source` does."""
        if not hashed:
            return {}
        digests = []
        names = self.names[part * _PART_SIZE : (part + 1) * _PART_SIZE]
        for digest in in_order(pool, self._hash, names, _READS_AHEAD):
            digests.append(digest)
            beat()
        return {"sha256": "".join(digests)}

    def complete(self, surveys: Iterable[dict[str, Any]]) -> None:
        """Nothing is left to know: reads them to the end."""
        for _ in surveys:
            pass

    def _hash(self, name: str) -> str:
        try:
            return content_hash(_read(self.root / name))
        except DamagedInput:
            return NO_HASH

    def _hash_texts(self, numbers: Sequence[int]) -> bytes:
        """The digests of some captions, one after the other."""
        digests = []
        for number in numbers:
            try:
                content = _read(self._text_path(number))
            except DamagedInput:
                content = b"cannot be read"
            digests.append(hashlib.sha256(content).digest())
        return b"".join(digests)

    def _text_path(self, number: int) -> Path:
        return (self.root / self.names[number]).with_suffix(".txt")


def list_images(root: str | Path, texts: bool = True) -> PictureFiles:
    """Finds the pictures below a folder: by their endings, and all that a metadata.jsonl lists.

    Captions are those of metadata.jsonl (`text` or `caption`), else the .txt file beside the picture. Hidden files
    and folders are left out; links to folders are followed.

    Raises:
        ShardError: for a folder that is missing, cannot be listed or holds no picture, or a metadata.jsonl that
            cannot be parsed.
    """
    root = Path(root)
    if not root.is_dir():
        raise ShardError(f"INPUT {root} is not a folder")
    found: list[str] = []
    with_text: set[str] = set()
    rows = _Rows()
    digest = hashlib.sha256()
    for relative, names in _walk(root):
        prefix = f"{relative}/" if relative else ""
        pictures = [name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]  # noqa: PTH122 (speed)
        found += [prefix + name for name in pictures]
        if texts:
            stems = {name[:-4] for name in names if name.endswith(".txt")}
            with_text.update(prefix + name for name in pictures if stems and name.rpartition(".")[0] in stems)
        if METADATA in names:
            content = (root / relative / METADATA).read_bytes()
            digest.update(content)
            rows.add(root / relative / METADATA, content, prefix)
    listed = sorted({*found, *rows.names()})
    if not listed:
        raise ShardError(
            f"no pictures in {root}: looked in all subfolders for files that end in {', '.join(sorted(SUFFIXES))} "
            f"and for {METADATA}, and in the folder itself for .tar"
        )
    return PictureFiles(root, listed, rows, with_text, {METADATA: digest.hexdigest()})


def read_list(path: str | Path) -> PictureFiles:
    """Read a JSONL list of pictures, one object a line.

    An object has `file_name` (absolute, or relative to the list's folder), `text` or `caption`, and further columns.

    Raises:
        ShardError: for a list that is empty or cannot be parsed.
    """
    path = Path(path)
    content = path.read_bytes()
    rows = _Rows()
    rows.add(path, content, "")
    if not rows.names():
        raise ShardError(f"the list {path} is empty; expected one JSON object with file_name a line")
    return PictureFiles(path.parent, sorted(rows.names()), rows, set(), {"list": hashlib.sha256(content).hexdigest()})


class _Rows:
    """Lines of JSON that belong to pictures. Of a million of them only the bytes are kept, and read when needed."""

    def __init__(self) -> None:
        self._contents: list[bytes] = []
        self._spans = (array("i"), array("q"), array("q"))  # which content, from where, to where
        self._lines: dict[str, int] = {}

    def names(self) -> Iterable[str]:
        """Names of all pictures that have a line."""
        return self._lines.keys()

    def add(self, path: Path, content: bytes, prefix: str) -> None:
        """Takes the lines of a file; `prefix` is where its names begin."""
        self._contents.append(content)
        for number, (start, end) in enumerate(_line_spans(content), 1):
            line = content[start:end]
            if not line.strip():
                continue
            name = _joined(prefix, _file_name(line, f"{path}, line {number}"))
            if name in self._lines:
                raise ShardError(f"{path}, line {number}: {name} is listed twice")
            self._lines[name] = len(self._spans[0])
            for column, value in zip(self._spans, (len(self._contents) - 1, start, end)):
                column.append(value)

    def lines_of(self, names: Sequence[str]) -> array:
        """The line of each picture, -1 for none; forgets the names."""
        lines = array("q", (self._lines.get(name, -1) for name in names))
        self._lines = {}
        return lines

    def read(self, line: int) -> dict[str, Any]:
        """The columns of a line but `file_name`; nothing for -1."""
        if line < 0:
            return {}
        which, start, end = (column[line] for column in self._spans)
        columns = json.loads(self._contents[which][start:end])
        del columns["file_name"]
        return columns


def _line_spans(content: bytes) -> Iterator[tuple[int, int]]:
    """Where each line begins and ends."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = end if end >= 0 else len(content)
        yield start, end
        start = end + 1


def _joined(prefix: str, name: str) -> str:
    """A name as it would be listed: relative to the root if it is not absolute, without idle parts."""
    path = name if name.startswith("/") else prefix + name
    return PurePosixPath(path).as_posix() if "./" in path or "//" in path else path


def _file_name(line: bytes, where: str) -> str:
    """The file_name of a line, which is checked."""
    try:
        row = json.loads(line)
        name = row["file_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{where}: expected a JSON object with file_name, found {line[:80]!r}") from error
    if not isinstance(name, str) or not name:
        raise ShardError(f"{where}: file_name is {name!r}, expected a path")
    for column in CAPTION_COLUMNS:
        if not isinstance(row.get(column, ""), str | None):
            raise ShardError(f"{where}: {column} is {row[column]!r}, expected one string")
    return name


def _walk(root: Path) -> Iterator[tuple[str, set[str]]]:
    """All folders below `root`, as paths relative to it, with the names of their files."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        relative = waiting.pop()
        folder = root / relative
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue  # a link back to a folder above
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
                folders = {entry.name for entry in visible if entry.is_dir()}
                files = {e.name for e in visible if e.name not in folders and (e.is_symlink() or e.is_file())}
        except OSError as error:
            raise ShardError(f"{folder} cannot be listed: {error.strerror}") from error
        waiting += [f"{relative}/{name}" if relative else name for name in sorted(folders, reverse=True)]
        yield relative, files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedInput("cannot be read", str(error)) from error
