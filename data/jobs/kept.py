"""Finished pieces of work that a command keeps in a folder and finds again when it is started once more."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.jobs.files import temporary_path, whole, write_json
from data.jobs.progress import Progress
from data.jobs.sharing import Ranks, finished_pieces, kept_alive, locked, pieces_to_make, remove_leftovers

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
"""Name of the file that says which settings a folder belongs to."""

_SHOWN_CHANGES = 4
_LONGEST_VALUE = 300


class KeptFolder:
    """Pieces of work in a folder that other processes make at the same time; a killed one is made again.

    A piece is NAME.json, its record, with any other files NAME.ENDING beside it. The record is written last and says
    that the piece is finished.

    Args:
        folder: Place of the pieces; made where it does not exist.
        settings: All that decides every piece of the folder, as JSON; None where each name carries a `digest` of what
            decides its piece.
        record: Name of the file that holds the settings.

    Raises:
        ValueError: The folder belongs to other settings; the message shows the difference.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None, record: str = SETTINGS) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if settings is not None:
            _claim_settings(folder, folder / record, json.loads(json.dumps(settings)))
        remove_leftovers(folder)
        self._progress: Progress | None = None

    def missing(
        self, sizes: Mapping[str, int], title: str, unit: str = "image", ranks: Ranks | None = None
    ) -> Iterator[str]:
        """Yield the names of the pieces that fall to this process, one by one, until all of `sizes` are there.

        The caller keeps each piece before it asks for the next one. The log says how many are there from the start; a
        bar shows what all processes have finished, see also `tick`.

        Args:
            sizes: Names of all pieces, each with the number of things that it holds.
            title: Words before the bar.
            unit: Name of one such thing.
            ranks: Which of how many processes this one is; by default as the launcher says.
        """
        ranks = ranks or Ranks.of_launch()

        def finished() -> set[str]:
            return finished_pieces(self.folder, "") & set(sizes)

        if ranks.rank == 0 and (there := len(finished())):
            rest = "; going on with the rest" if there < len(sizes) else ""
            logger.info("%s: %d of %d pieces are there already (%s)%s", title, there, len(sizes), self.folder, rest)
        with Progress(title, sizes, ranks.rank == 0, unit) as self._progress:
            noted = self._progress.following(finished)
            for name in pieces_to_make(self.folder, list(sizes), ".json", noted, ranks):
                claim = temporary_path(self.folder, f"{name}.json")
                try:
                    with kept_alive(claim):
                        yield name
                finally:
                    claim.unlink(missing_ok=True)  # of a piece that could not be made, for another process
                assert self.read(name) is not None, f"{name} was not kept"
        self._progress = None

    def tick(self, count: int = 1) -> None:
        """Move the bar by what this process has done of its piece."""
        if self._progress is not None:
            self._progress.tick(count)

    def keep(self, name: str, record: Any, files: Mapping[str, Callable[[Path], object]] | None = None) -> None:
        """Keep a finished piece, each of its files whole or not at all.

        Args:
            name: Name of the piece.
            record: Content of NAME.json, as JSON.
            files: Functions that write to the given path, by the ending (".npz") of the file that it becomes.
        """
        for ending, write in (files or {}).items():
            with whole(self.path(name, ending)) as unfinished:
                write(unfinished)
        write_json(self.path(name), record)

    def read(self, name: str) -> Any:
        """Return the record of a piece, or None where it is not finished."""
        path = self.path(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def path(self, name: str, ending: str = ".json") -> Path:
        """Return the path of a piece's record, or of its file with another ending."""
        return self.folder / (name + ending)

    def forget(self, name: str, *endings: str) -> None:
        """Remove a piece: its record first, without which the files of `endings` do not count."""
        for ending in (".json", *endings):
            self.path(name, ending).unlink(missing_ok=True)


def digest(*words: Any) -> str:
    """16 hexadecimal digits that stand for `words` (JSON): for the names of pieces that settings decide."""
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:16]


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the entries in which two settings differ in one line: `name: before -> now; group.name: ...`."""
    old, new = _flat(before), _flat(now)
    changed = [name for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name)]
    words = [f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed[:_SHOWN_CHANGES]]
    left_out = len(changed) - len(words)
    return "; ".join([*words, f"and {left_out} more"] if left_out else words)


def _claim_settings(folder: Path, path: Path, settings: Mapping[str, Any]) -> None:
    with locked(folder):
        if not path.is_file():
            write_json(path, settings)
            return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != settings:
        raise ValueError(
            f"{folder} was made with other settings:\n  {changed_settings(before, settings)}\n"
            "give the same ones, or another --out"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of nested mappings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + str(name)] = value
    return found


def _short(value: Any) -> str:
    words = json.dumps(value, ensure_ascii=False)
    return words if len(words) <= _LONGEST_VALUE else f"{words[:_LONGEST_VALUE]} ..."
