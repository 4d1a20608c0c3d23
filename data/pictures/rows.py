"""Rows that list pictures: metadata.jsonl, metadata.csv and metadata.parquet of a folder, or a list of its own.

A row has `file_name`, a caption in `text` or `caption`, and further columns. A bad one is set aside with its place.
"""

import csv
import io
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from data.jobs.errors import ShardError
from data.pictures.source import CAPTION_COLUMNS, DamagedInput, check_caption

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files of a folder that list its pictures; the first that is there counts. The last two are Hugging Face's too."""

_SHOWN = 200
_BATCH = 256
_Line = tuple[int, int, int]
"""Number of a line, and where it begins and ends."""


class Rows:
    """Rows of many files, by the pictures that they list. Of a million only the bytes are kept, and read when needed.

    Attributes:
        bad: what is wrong with each row that cannot be used, by its place ("sub/metadata.jsonl, line 3").
    """

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}
        self._contents: list[bytes] = []
        self._spans = (array("i"), array("q"), array("q"))  # which content, from where, to where
        self._numbers: dict[str, int] = {}

    def names(self) -> Iterable[str]:
        """Names of all pictures that have a row."""
        return self._numbers.keys()

    def add(self, path: Path, content: bytes, prefix: str) -> None:
        """Takes the rows of a file; `prefix` is where its names, and the places of its bad rows, begin.

        Raises:
            ShardError: for a .parquet that cannot be read.
        """
        place = prefix + path.name
        if path.suffix == ".jsonl":
            lines: Iterable[_Line] = _lines(content)
        elif path.suffix == ".csv":
            content, lines = self._as_json(_csv_rows(content), place)
        else:
            content, lines = self._as_json(_parquet_rows(path, content), place)
        self._contents.append(content)
        for number, start, end in lines:
            try:
                name = _joined(prefix, _file_name(content[start:end]))
                if name in self._numbers:
                    raise DamagedInput(f"{name} is listed twice")
            except DamagedInput as error:
                self.bad[_place(place, number)] = str(error)
                continue
            self._numbers[name] = len(self._spans[0])
            for column, value in zip(self._spans, (len(self._contents) - 1, start, end)):
                column.append(value)

    def numbers_of(self, names: Sequence[str]) -> array:
        """The row of each picture, -1 for none; forgets the names."""
        found = array("q", (self._numbers.get(name, -1) for name in names))
        self._numbers = {}
        return found

    def read(self, number: int) -> dict[str, Any]:
        """The columns of a row but `file_name`; nothing for -1."""
        if number < 0:
            return {}
        which, start, end = (column[number] for column in self._spans)
        columns = json.loads(self._contents[which][start:end])
        del columns["file_name"]
        return columns

    def _as_json(self, rows: Iterable[tuple[int, Any]], place: str) -> tuple[bytes, list[_Line]]:
        """Rows as lines of JSON, so that all kinds are kept alike; those that are damaged are set aside."""
        content, lines = bytearray(), []
        for number, row in rows:
            if isinstance(row, DamagedInput):
                self.bad[_place(place, number)] = str(row)
                continue
            start = len(content)
            content += json.dumps(row, ensure_ascii=False, default=str).encode()
            lines.append((number, start, len(content)))
        return bytes(content), lines


def _place(file: str, number: int) -> str:
    return f"{file}, {'row' if file.endswith('.parquet') else 'line'} {number}"


def _lines(content: bytes) -> Iterator[_Line]:
    """The lines that are not blank."""
    start = number = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = end if end >= 0 else len(content)
        number += 1
        if content[start:end].strip():
            yield number, start, end
        start = end + 1


def _csv_rows(content: bytes) -> Iterator[tuple[int, dict[str, str] | DamagedInput]]:
    """Rows of a table with a header by the line at which they end; empty cells are left out.

    One that breaks off, as by a quote that is never closed, costs the line in which it begins.
    """
    # Bytes that are not UTF-8 become lone surrogates, by which the row that holds them is known.
    text = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
    header: list[str] = []
    number = 0
    while True:
        start = text.tell()
        reader = csv.reader(text, strict=True)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            text.seek(start)
            number += 1
            yield number, DamagedInput("bad row", f"{error}, in what begins with {text.readline()!r}"[:_SHOWN])
            continue
        if cells is None:
            return
        number += reader.line_num
        if cells and header:
            yield number, _csv_row(cells, header)
        elif cells:
            fault = _fault_of_header(cells)
            if fault is not None:
                yield number, fault
                return
            header = cells


def _fault_of_header(cells: Sequence[str]) -> DamagedInput | None:
    if "file_name" not in cells:
        return DamagedInput("no column file_name", f"the header is {cells}"[:_SHOWN])
    return None if _are_utf8(cells) else DamagedInput("not UTF-8", f"the header is {cells}"[:_SHOWN])


def _csv_row(cells: Sequence[str], header: Sequence[str]) -> dict[str, str] | DamagedInput:
    if len(cells) > len(header):
        return DamagedInput("too many cells", f"{len(cells)} under a header of {len(header)}")
    if not _are_utf8(cells):
        return DamagedInput("not UTF-8", f"{cells}"[:_SHOWN])
    return {name: cell for name, cell in zip(header, cells) if cell}


def _are_utf8(cells: Sequence[str]) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell)


class ParquetRows:
    """The rows of a Parquet file as mappings, and the names of its columns that can hold anything.

    Args:
        path: the file, or what its bytes are called.
        content: Bytes of the file; without them `path` is read, batch by batch.

    Raises:
        ShardError: pyarrow is missing, or the file cannot be read, which iterating over it may raise too.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        try:
            from pyarrow import ArrowException, BufferReader
            from pyarrow.parquet import ParquetFile
            from pyarrow.types import is_null
        except ImportError as error:
            raise ShardError(
                f"{path} is read by pyarrow, which is not installed: pip install '.[pictures]', or take the file out"
            ) from error
        self._path, self._broken = path, (ArrowException, OSError)
        with self._told():
            self._file = ParquetFile(path if content is None else BufferReader(content))
        self.columns: list[str] = [field.name for field in self._file.schema_arrow if not is_null(field.type)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._told():
            for batch in self._file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._broken as error:
            reason = " ".join(str(error).split())
            raise ShardError(f"{self._path} cannot be read as Parquet: {reason}; repair it or take it out") from error


def _parquet_rows(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any] | DamagedInput]]:
    """Rows of a Parquet file, counted from 1."""
    rows = ParquetRows(path, content)
    if "file_name" not in rows.columns:
        yield 0, DamagedInput("no column file_name", f"the columns are {rows.columns}")
        return
    yield from enumerate(rows, start=1)


def _joined(prefix: str, name: str) -> str:
    """A name as it would be listed: relative to the root if it is not absolute, without idle parts."""
    path = name if name.startswith("/") else prefix + name
    return PurePosixPath(path).as_posix() if "./" in path or "//" in path else path


def _file_name(line: bytes) -> str:
    """The file_name of a line, which is checked."""
    try:
        row = json.loads(line)
        name = row["file_name"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedInput(f"expected a JSON object with file_name, found {line[:80]!r}") from error
    if not isinstance(name, str) or not _is_path(name):
        raise DamagedInput(f"file_name is {name!r}, expected a path")
    for column in CAPTION_COLUMNS:
        check_caption(row.get(column), column)
    return name


def _is_path(name: str) -> bool:
    """Whether a file may be called so: by any bytes but NUL, which lone surrogates may stand for."""
    with suppress(UnicodeEncodeError):
        return bool(name.encode("utf-8", "surrogateescape")) and "\0" not in name
    return False
