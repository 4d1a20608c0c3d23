"""Work in one folder, shared by processes through files alone, so that they may start, die and return at any time.

A process that makes a piece of work holds its claim, the temporary file into which it writes. Others leave the piece
alone while the claim is live, and make it themselves when it is not.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, SoftFileLock

from data.jobs.errors import work_begins
from data.jobs.files import host_name, temporary_path

LOCK = ".lock"
"""Name of the file whose lock is held while a folder's state changes."""

_CLAIM_SEC = 600
_LEFTOVER_SEC = 24 * 3600
_BEAT_SEC = 30
_LOCK_POLL_SEC = 0.02
_POLL_SEC = (0.5, 8.0)
"""Pauses between looks at what others are making: the first, and the longest that it grows to."""
_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True)
class Ranks:
    """Number of this process among all of a launch."""

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def of_launch() -> "Ranks":
        """Read RANK and WORLD_SIZE (torchrun, accelerate) or SLURM_PROCID and SLURM_NTASKS; without them one process.

        Raises:
            ValueError: for numbers that do not fit together.
        """
        for names in _LAUNCHERS:
            words = [os.environ.get(name, "") for name in names]
            if all(words):
                with suppress(ValueError):
                    rank, world_size = map(int, words)
                    if 0 <= rank < world_size:
                        return Ranks(rank, world_size)
                raise ValueError(f"the environment says {names[0]}={words[0]} and {names[1]}={words[1]}")
        return Ranks()

    @staticmethod
    def local_rank() -> int:
        """The number of this process on its machine, by which it takes a GPU."""
        return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a folder, waiting for it as long as another process holds it.

    Where the file system (some mounted buckets) or Python knows no locks this does nothing; two processes may then do
    the same work at the same time, and the later one wins.

    Raises:
        OSError: the folder is not there or cannot be written to.
    """
    (folder / LOCK).touch()
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    if not isinstance(lock, SoftFileLock):  # one is held for as long as its file is there, after a kill too
        with suppress(OSError):
            lock.acquire(poll_interval=_LOCK_POLL_SEC)
    try:
        yield
    finally:
        lock.release()


class Heartbeat:
    """Shows the others that a temporary file is being worked on, which writing alone may do too seldom."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = time.monotonic()

    def beat(self) -> None:
        """Touch the file if that was half a minute ago; to be called often."""
        if time.monotonic() - self._last > _BEAT_SEC:
            self._last = time.monotonic()
            with suppress(FileNotFoundError):  # taken for dead and removed; the work goes on
                os.utime(self._path)


@contextmanager
def kept_alive(path: Path) -> Iterator[None]:
    """Within the block a thread shows the others that `path`, a claim, is being worked on, however long that takes."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_BEAT_SEC):
            with suppress(FileNotFoundError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def finished_pieces(folder: Path, prefix: str) -> set[str]:
    """Names of the pieces whose PIECE.json is there, from one listing of the folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return {name[:-5] for name in names if name.startswith(prefix) and name.endswith(".json")}


def pieces_to_make(
    folder: Path, names: Sequence[str], suffix: str, finished: Callable[[], Collection[str]], ranks: Ranks
) -> Iterator[str]:
    """Yields the pieces of work that fall to this process, one by one, until all of them are there.

    A process begins with the pieces that its rank stands for, then takes what is left over, and waits for what others
    are making, until their claims are no longer live. The caller makes PIECE + `suffix`, then PIECE.json, before it
    asks for the next one.

    Args:
        names: all pieces.
        suffix: ending of the file that the caller writes under `temporary_path`, ".tar" or ".json".
        finished: gives the pieces that are there; called before every choice.
    """
    own = names[ranks.rank :: ranks.world_size]
    start = len(names) * ranks.rank // ranks.world_size  # helpers begin at different places
    waiting = list(dict.fromkeys([*own, *names[start:], *names[:start]]))
    pause = _POLL_SEC[0]
    while True:
        done = finished()
        waiting = [name for name in waiting if name not in done]
        if not waiting:
            return
        taken = _live_claims(folder)
        free = next((name for name in waiting if name + suffix not in taken), None)
        if free is not None and _claim(folder, free, suffix):
            pause = _POLL_SEC[0]
            work_begins()
            yield free
        else:
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SEC[1])


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that nobody will finish.

    These are the files of dead processes of this machine, files that bear this process's own number and so come from an
    earlier one, and any file older than a day.
    """
    for path, host, pid in _temporary_files(folder):
        here = host == host_name()
        with suppress(FileNotFoundError):
            if (here and (pid == os.getpid() or not _lives(pid))) or _age_sec(path) > _LEFTOVER_SEC:
                path.unlink()


def _claim(folder: Path, name: str, suffix: str) -> bool:
    """Creates this process's claim, unless another process has one by now or has finished the piece."""
    with locked(folder):
        if (folder / f"{name}.json").exists() or name + suffix in _live_claims(folder):
            return False
        temporary_path(folder, name + suffix).touch()
        return True


def _live_claims(folder: Path) -> set[str]:
    """Names of the files that other processes are writing.

    A file counts if it was touched in the last ten minutes, unless its process belongs to this machine and is gone.
    """
    live = set()
    for path, host, pid in _temporary_files(folder):
        own = host == host_name() and pid == os.getpid()
        with suppress(FileNotFoundError):
            if not own and (host != host_name() or _lives(pid)) and _age_sec(path) < _CLAIM_SEC:
                live.add(_parse(path.name)[0])
    return live


def _temporary_files(folder: Path) -> list[tuple[Path, str, int]]:
    """Path, host and process number of all temporary files."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith(".tmp")]
    found = []
    for name in names:
        with suppress(ValueError):
            _, host, pid = _parse(name)
            found.append((folder / name, host, pid))
    return found


def _parse(name: str) -> tuple[str, str, int]:
    """Final name, host and process number in the name of a temporary file."""
    final, host, pid = name[1 : -len(".tmp")].rsplit(".", 2)
    return final, host, int(pid)


def _lives(pid: int) -> bool:
    """Whether a process of this machine runs; a dead one that nobody has waited for does not."""
    if not Path("/proc/self/stat").exists():
        return True  # only time will tell
    try:
        return Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _age_sec(path: Path) -> float:
    return time.time() - path.stat().st_mtime
