"""The inventory of a source: content hashes, and where the members of tars lie.

It is made once by all ranks together, which reads the data one time, and kept in OUT/inputs, so that every rank and
every later start knows the same duplicates.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data.jobs.files import temporary_path, write_json
from data.jobs.progress import Progress
from data.jobs.sharing import Heartbeat, Ranks, finished_pieces, pieces_to_make, remove_leftovers
from data.pictures.source import Source, SourcePart

INPUTS = "inputs"
"""The folder in OUT that holds the inventory."""

_FORMAT = 1


def take_inventory(source: Source, out: Path, hashed: bool, ranks: Ranks, pool: Executor) -> np.ndarray | None:
    """Surveys the parts of a source that are not in OUT/inputs yet, together with the other ranks.

    Args:
        out: folder of the stage's shards.
        hashed: hash the pictures' contents.
        pool: threads that may read.

    Returns:
        The sha256 of each input's content, uint64 [N, 4], zeros where there is none; None if not `hashed`.

    Raises:
        OSError: when the folder cannot be written.
        ShardError: for shards that hold no picture.
    """
    if not hashed and not source.needs_survey:
        return None
    folder = out / INPUTS
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    parts = {f"part-{number:06d}": part for number, part in enumerate(source.parts())}
    surveys = _Surveys(folder, parts, hashed)
    sizes = {name: part.size for name, part in parts.items()}
    with Progress("inputs", sizes, shown=ranks.rank == 0, unit=source.counted) as progress:
        finished = progress.following(surveys.finished)
        for name in pieces_to_make(folder, list(parts), ".json", finished, ranks):
            heartbeat = Heartbeat(temporary_path(folder, f"{name}.json"))
            survey = source.survey(int(name.removeprefix("part-")), hashed, pool, heartbeat.beat)
            surveys.write(name, survey)
    columns: list[np.ndarray] = []
    source.complete(_without_hashes(surveys.read(), columns))
    return np.concatenate(columns) if hashed else None


def _without_hashes(surveys: Iterator[dict[str, Any]], columns: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Passes surveys on; their hashes, uint64 [n, 4], are put into `columns`."""
    for survey in surveys:
        columns.append(np.frombuffer(bytes.fromhex(survey.pop("sha256", "")), np.uint64).reshape(-1, 4))
        yield survey


def duplicates(hashes: np.ndarray) -> dict[int, int]:
    """Give, for each input whose content an earlier one has already, the number of the first that has it.

    Args:
        hashes: uint64 [N, 4]; zeros have no content and are never duplicates.
    """
    order = np.lexsort(hashes.T)  # stable: equal contents stay in the order of their numbers
    ranked = hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    firsts = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    again = ~new & ranked.any(axis=1)
    return dict(zip(order[again].tolist(), firsts[again].tolist()))


class _Surveys:
    """The surveys in OUT/inputs."""

    def __init__(self, folder: Path, parts: dict[str, SourcePart], hashed: bool) -> None:
        self._folder = folder
        self._marks = {name: {"format": _FORMAT, "part": part.digest, "hashed": hashed} for name, part in parts.items()}
        self._finished: set[str] = set()

    def finished(self) -> set[str]:
        """Names of the parts that are there; those that an older state of the input made are removed."""
        for name in finished_pieces(self._folder, "part-") - self._finished:
            if self._survey(name) is not None:
                self._finished.add(name)
            else:
                (self._folder / f"{name}.json").unlink(missing_ok=True)
        return self._finished

    def write(self, name: str, survey: dict[str, Any]) -> None:
        """Keeps a survey."""
        write_json(self._folder / f"{name}.json", self._marks[name] | survey)
        self._finished.add(name)

    def read(self) -> Iterator[dict[str, Any]]:
        """The surveys of all parts, in order."""
        for name in self._marks:
            survey = self._survey(name)
            assert survey is not None, f"{self._folder / name}.json vanished or changed"
            yield survey

    def _survey(self, name: str) -> dict[str, Any] | None:
        """A survey that fits the input as it is now, or None."""
        with suppress(OSError, ValueError):
            found = json.loads((self._folder / f"{name}.json").read_text("utf-8"))
            marks = self._marks.get(name)
            if marks is not None and {key: found.get(key) for key in marks} == marks:
                return found
        return None
