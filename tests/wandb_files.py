"""What wandb has written to its files: records in the log format of LevelDB, read as `wandb sync` reads them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
HEADER = 7
"""Bytes before the content of a piece (checksum 4, length 2, kind 1), and before the first piece of a file."""


def files(folder: Path) -> list[Path]:
    """The files of a run folder, those of earlier starts first."""
    return sorted(path for path in folder.glob("wandb/*run-*/*.wandb") if not path.parent.is_symlink())


def history(path: Path) -> list[dict[str, Any]]:
    """Every row of history in a file, by name."""
    rows = (record.history for record in _records(path) if record.WhichOneof("record_type") == "history")
    return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in rows]


def settings(path: Path) -> Any:
    """The record that names the run: entity, project, display name, id, tags."""
    return next(record.run for record in _records(path) if record.WhichOneof("record_type") == "run")


def _records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    at, content = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + HEADER : at + HEADER + size]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(piece) < size:
            return
        at += HEADER + size
        content = piece if kind in (FULL, FIRST) else content + piece
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(content)
            yield record
