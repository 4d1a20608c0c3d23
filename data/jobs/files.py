"""Files that are there whole or not at all: written under a temporary name, then renamed."""

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any


def temporary_path(folder: Path, name: str) -> Path:
    """Where this process writes a file before it renames it to `name`."""
    # A leading dot keeps `*.tar` and `*.json` from matching; host and process keep two runs apart.
    return folder / f".{name}.{host_name()}.{os.getpid()}.tmp"


def host_name() -> str:
    """The name of this machine, without dots."""
    return socket.gethostname().split(".")[0] or "host"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically: temporary name, fsync, rename, fsync of the folder."""
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text atomically: temporary name, fsync, rename, fsync of the folder.

    A file that holds the text already is left alone, as when all ranks write the same manifest. File names that are
    not UTF-8 reach here as lone surrogates; they are written as JSON escapes them.
    """
    content = text.encode("utf-8", "backslashreplace")
    temporary = temporary_path(path.parent, path.name)
    if path.is_file() and path.read_bytes() == content:
        temporary.unlink(missing_ok=True)  # if it was a claim, it is given back
        return
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
