"""Files that are there whole or not at all: written under a temporary name, flushed to disk, then renamed."""

import errno
import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def temporary_path(folder: Path, name: str) -> Path:
    """Path under which this process writes a file before it renames it to `name`."""
    # A leading dot keeps `*.tar` and `*.json` from matching; host and process keep two runs apart.
    return folder / f".{name}.{host_name()}.{os.getpid()}.tmp"


def host_name() -> str:
    """The name of this machine, without dots."""
    return socket.gethostname().split(".")[0] or "host"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, whose file takes the name `path` at the end of the block.

    The file is flushed to disk before it is renamed, the folder afterwards: `path` is there whole or not at all, even
    after a power cut, and has the mode that the umask gives. After an error in the block nothing is left, and what was
    at `path` before stays.

    Raises:
        OSError: the file cannot be written; for a full disk, a quota or a limit on file sizes with what to do.
    """
    temporary = temporary_path(path.parent, path.name)
    try:
        with explained_if_full(path.parent):
            yield temporary
            open_as_usual(temporary)
            flush_to_disk(temporary)
            temporary.replace(path)
            flush_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def explained_if_full(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk, a quota or a limit on file sizes into a sentence that says what to do.

    Raises:
        OSError: in the place of such an error in the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise OSError(
            f"{folder} cannot take more: {error.strerror}. What is finished stays; make room there (or raise the "
            "limit), then run the same command again"
        ) from error


def open_as_usual(path: Path) -> None:
    """Give a file, or all files in a folder, the mode with which programs make files here, as the umask says.

    safetensors makes its files for their owner alone.
    """
    probe = temporary_path(path if path.is_dir() else path.parent, "mode")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            file.chmod(mode)


def flush_to_disk(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one line, whole or not at all (see `write_text`)."""
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all.

    A file that holds the text already is left alone, as when all ranks write the same manifest. File names that are
    not UTF-8 reach here as lone surrogates; they are written as JSON escapes them.

    Raises:
        OSError: see `whole`.
    """
    content = text.encode("utf-8", "backslashreplace")
    if path.is_file() and path.read_bytes() == content:
        temporary_path(path.parent, path.name).unlink(missing_ok=True)  # if it was a claim, it is given back
        return
    with whole(path) as temporary:
        temporary.write_bytes(content)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
