"""Sources of pictures: a folder tree, a JSONL list, or WebDataset shards in img2dataset's layout.

Files are opened without asking the file system about them first: on a mounted bucket every such question is a request.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.pictures.images import SUFFIXES
from data.pictures.rows import METADATA, Rows
from data.pictures.source import (
    BAD_LINE,
    NO_HASH,
    TEXTS,
    CaptionPolicy,
    DamagedInput,
    Input,
    NotTaken,
    Source,
    SourcePart,
    content_hash,
    digest_of_names,
)
from data.pictures.tars import TarSource

_PART_SIZE = 1024
_READS_AHEAD = 64
_TEXTS_AT_ONCE = 16


def open_source(path: str | Path, texts: bool = True, policy: CaptionPolicy | None = None) -> Source:
    """The source at a path: a .jsonl file is a list, a folder with .tar files is shards, any other a folder tree.

    Args:
        texts: read the .txt and .caption files beside the pictures of a folder tree.
        policy: what is taken where there are several captions.

    Raises:
        ShardError: for a path that is nothing of these, or holds no picture.
    """
    path = Path(path)
    if path.suffix == ".jsonl" and path.is_file():
        return read_list(path, policy)
    if not path.is_dir():
        raise ShardError(f"INPUT {path} is not a folder (of pictures, or of tars) and not a list that ends in .jsonl")
    tars = sorted(file.name for file in path.glob("*.tar") if not file.name.startswith("."))
    if not tars:
        return list_images(path, texts, policy)
    beside = NotTaken()
    for listing in _walk(path, beside):
        for name in listing.files - (set() if listing.prefix else set(tars)):
            beside.add(listing.prefix + name)
    return TarSource(path, tars, policy, beside)


class PictureFiles:
    """Pictures that are files of their own.

    Args:
        root: folder to which the names are relative.
        names: sorted paths with forward slashes.
        rows: what metadata.jsonl and its like, or the list, say about some of them. Their bad lines are inputs too, so
            that they are counted as damage.
        texts: endings of the files with the captions of some, which lie beside them and are to be read.
        digests, not_taken: see Source.
        policy: what is taken where there are several captions.
    """

    needs_survey = False
    counted = "image"

    def __init__(
        self,
        root: Path,
        names: list[str],
        rows: Rows,
        texts: Mapping[str, str],
        digests: Mapping[str, str],
        not_taken: NotTaken | None = None,
        policy: CaptionPolicy | None = None,
    ) -> None:
        self.root = root
        self.names: Sequence[str] = names
        self.digests = digests
        self.not_taken = not_taken or NotTaken()
        self._policy = policy or CaptionPolicy()
        self._rows = rows
        self._row = rows.numbers_of(names)
        self._endings = ["", *sorted(set(texts.values()))]
        codes = {ending: code for code, ending in enumerate(self._endings)}
        self._text = bytearray(codes[texts.get(name, "")] for name in names)  # which ending; 0 for no text

    def read(self, number: int) -> Input:
        """Read a picture as every `Source` does; damages: "cannot be read", "caption is not UTF-8" and "bad line"."""
        name = self.names[number]
        if name in self._rows.bad:
            raise DamagedInput(BAD_LINE, self._rows.bad[name])
        columns = self._rows.read(self._row[number])
        captions = self._policy.of_columns(columns)
        if not captions and self._text[number]:
            captions = [self._policy.of_file(_read(self._text_path(number)))]
        first = captions[0] if captions else None
        return Input(_read(self.root / name), first, columns, tuple(captions[1:]))

    def texts_digest(self, numbers: Sequence[int], pool: Executor) -> str:
        """Do as every `Source` does."""
        with_text = [number for number in numbers if self._text[number]]
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
        return (self.root / self.names[number]).with_suffix(self._endings[self._text[number]])


def list_images(root: str | Path, texts: bool = True, policy: CaptionPolicy | None = None) -> PictureFiles:
    """Finds the pictures below a folder: by their endings, and all that a metadata.jsonl or its like lists.

    Captions are those of metadata.jsonl (`text` or `caption`), else the .txt or .caption file beside the picture.
    Links to folders are followed; hidden files and folders, and all that is neither picture nor caption, is noted.

    Raises:
        ShardError: for a folder that is missing, cannot be listed or holds no picture, or a metadata.parquet that
            cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise ShardError(f"INPUT {root} is not a folder")
    found: list[str] = []
    beside: dict[str, str] = {}
    rows, not_taken = Rows(), NotTaken()
    digests = {METADATA[0]: hashlib.sha256()}
    for listing in _walk(root, not_taken):
        table = next((name for name in METADATA if name in listing.files), None)
        if table is not None:
            content = (root / listing.prefix / table).read_bytes()
            digests.setdefault(table, hashlib.sha256()).update(content)
            rows.add(root / listing.prefix / table, content, listing.prefix)
        taken = _taken(listing, texts)
        found += taken.pictures
        beside |= taken.texts
        for name in taken.others:
            if name != table:
                not_taken.add(listing.prefix + name)
    listed = sorted({*found, *rows.names(), *rows.bad})
    _forget_listed(not_taken, rows)
    if len(listed) == len(rows.bad):
        raise ShardError(_nothing_found(root, rows, not_taken))
    return PictureFiles(
        root, listed, rows, beside, {name: digest.hexdigest() for name, digest in digests.items()}, not_taken, policy
    )


def read_list(path: str | Path, policy: CaptionPolicy | None = None) -> PictureFiles:
    """Read a JSONL list of pictures, one object a line.

    An object has `file_name` (absolute, or relative to the list's folder), `text` or `caption`, and further columns.

    Raises:
        ShardError: for a list without a line that can be used.
    """
    path = Path(path)
    content = path.read_bytes()
    rows = Rows()
    rows.add(path, content, "")
    if not rows.names():
        fault = "holds no line that can be used" if rows.bad else "is empty"
        raise ShardError(f"the list {path} {fault}; expected one JSON object with file_name a line{_first_bad(rows)}")
    names, digests = sorted({*rows.names(), *rows.bad}), {"list": hashlib.sha256(content).hexdigest()}
    return PictureFiles(path.parent, names, rows, {}, digests, policy=policy)


@dataclass(frozen=True)
class _Taken:
    """The files of one folder, as they are taken.

    Args:
        pictures: names relative to the root.
        texts: ending of the caption's file, by the picture's name.
        others: names in the folder of all that is neither.
    """

    pictures: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def _taken(listing: "_Listing", texts: bool) -> _Taken:
    """Sorts out the files of a folder; captions are others unless `texts`, and those of no picture always."""
    taken = _Taken()
    endings: dict[str, str] = {}
    stems = set()
    for name in listing.files:
        stem, ending = os.path.splitext(name)  # noqa: PTH122 (speed)
        lower = ending.lower()
        if lower in SUFFIXES:
            taken.pictures.append(listing.prefix + name)
            stems.add(stem)
        elif texts and lower in TEXTS:
            known = endings.setdefault(stem, ending)
            if known != ending:
                endings[stem], lost = sorted((known, ending), key=_rank)
                taken.others.append(stem + lost)
        else:
            taken.others.append(name)
    taken.others.extend(stem + ending for stem, ending in endings.items() if stem not in stems)
    for name in taken.pictures if endings else ():
        ending = endings.get(os.path.splitext(name[len(listing.prefix) :])[0], "")  # noqa: PTH122 (speed)
        if ending:
            taken.texts[name] = ending
    return taken


def _rank(ending: str) -> tuple[int, bool, str]:
    """Order in which the endings of captions are taken: .txt before .caption, small letters before others."""
    return TEXTS.index(ending.lower()), ending != ending.lower(), ending


def _forget_listed(not_taken: NotTaken, rows: Rows) -> None:
    """Removes what a metadata file lists, whatever its ending."""
    listed = set(rows.names())
    for kind, names in list(not_taken.items()):
        names[:] = [name for name in names if name not in listed]
        if not names:
            del not_taken[kind]


def _nothing_found(root: Path, rows: Rows, not_taken: NotTaken) -> str:
    there = f"; there are {not_taken.shown()}" if not_taken else ""
    return (
        f"no pictures in {root}: looked in all subfolders for files that end in {', '.join(sorted(SUFFIXES))} "
        f"and for {', '.join(METADATA)}, and in the folder itself for .tar{there}{_first_bad(rows)}"
    )


def _first_bad(rows: Rows) -> str:
    return next((f"; {place}: {fault}" for place, fault in rows.bad.items()), "")


@dataclass(frozen=True)
class _Listing:
    """The names of the files of one folder; `prefix` leads from the root to it ("" or "sub/folder/")."""

    prefix: str
    files: set[str]


def _walk(root: Path, not_taken: NotTaken) -> Iterator[_Listing]:
    """All folders below `root`; what is hidden, or no ordinary file (pipes, devices), is noted in `not_taken`."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folder = root / prefix
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue  # a link back to a folder above
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                visible = []
                for entry in entries:
                    if entry.name.startswith("."):
                        not_taken.add(prefix + entry.name, "hidden")
                    else:
                        visible.append(entry)
                folders = {entry.name for entry in visible if entry.is_dir()}
                files = {e.name for e in visible if e.name not in folders and (e.is_symlink() or e.is_file())}
        except OSError as error:
            raise ShardError(f"{folder} cannot be listed: {error.strerror}") from error
        for entry in visible:
            if entry.name not in files and entry.name not in folders:
                not_taken.add(prefix + entry.name, "no file")
        waiting += [f"{prefix}{name}/" for name in sorted(folders, reverse=True)]
        yield _Listing(prefix, files)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError for a name that no file can have here
        raise DamagedInput("cannot be read", str(error)) from error
