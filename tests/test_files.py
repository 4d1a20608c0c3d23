"""Files that are there whole or not at all."""

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.jobs.files import explained_if_full, temporary_path, whole, write_json, write_text
from data.jobs.sharing import locked
from tests.processes import run, start, wait_for


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the block no file of this process grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_of_the_block(tmp_path: Path):
    path = tmp_path / "a.txt"
    with whole(path) as temporary:
        assert temporary == temporary_path(tmp_path, "a.txt")
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_after_an_error_the_file_before_stays_alone(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("write", [write_text, write_json])
def test_a_file_that_is_too_large_is_explained(tmp_path: Path, write):
    path = tmp_path / "a.txt"
    write(path, "old")
    before = path.read_bytes()
    with files_of_at_most(100), pytest.raises(OSError, match=r"cannot take more: File too large.*make room there"):
        write(path, "x" * 1000)
    assert path.read_bytes() == before and names(tmp_path) == ["a.txt"]


def test_a_file_that_its_own_text_fills_is_left_alone(tmp_path: Path):
    write_text(tmp_path / "a.txt", "the same")
    before = (tmp_path / "a.txt").stat()
    temporary_path(tmp_path, "a.txt").touch()  # a claim, which is given back
    write_text(tmp_path / "a.txt", "the same")
    after = (tmp_path / "a.txt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_is_explained(tmp_path: Path, number: int):
    with (
        pytest.raises(OSError, match=f"{tmp_path} cannot take more: {os.strerror(number)}"),
        explained_if_full(tmp_path),
    ):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass_as_they_are(tmp_path: Path):
    with pytest.raises(PermissionError) as caught, explained_if_full(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    assert caught.value.errno == errno.EACCES


FLUSHES = """
import os, sys
from pathlib import Path
calls = []
fsync, replace = os.fsync, Path.replace

def noted_fsync(handle):
    calls.append("fsync " + Path(f"/proc/self/fd/{handle}").readlink().name)
    fsync(handle)

def noted_replace(path, target):
    calls.append("rename")
    replace(path, target)

os.fsync, Path.replace = noted_fsync, noted_replace
from data.jobs.files import write_text
write_text(Path(sys.argv[1]) / "a.txt", "text")
print(*calls, sep="|")
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the names of open files from /proc")
def test_the_file_is_on_disk_before_it_is_renamed_and_the_folder_afterwards(tmp_path: Path):
    first, middle, last = run("-c", FLUSHES, tmp_path).stdout.strip().split("|")
    assert first.startswith("fsync .a.txt.") and middle == "rename" and last == f"fsync {tmp_path.name}"


HOLD = """
import sys
from pathlib import Path
from data.jobs.sharing import locked

print("asks", flush=True)
with locked(Path(sys.argv[1])):
    Path(sys.argv[2]).touch()
"""


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path):
    reached = tmp_path / "reached"
    with locked(tmp_path):
        child = start("-c", HOLD, tmp_path, reached)
        wait_for(lambda: child.said()[0] == "asks\n", child)
        time.sleep(0.5)
        assert child.poll() is None and not reached.exists()
    child.finished()
    assert reached.exists()
