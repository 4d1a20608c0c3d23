"""A stage turns units of sorted inputs into shards, one shard per unit, and can be killed and run again.

Units that an earlier run finished with the same config are skipped; another config is refused. The ranks of a launch,
and several runs of one command at the same time, share its units.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.jobs.errors import ShardError
from data.jobs.files import explained_if_full, write_text
from data.jobs.kept import changed_settings
from data.jobs.progress import Progress
from data.jobs.sharing import Ranks, finished_pieces, locked, pieces_to_make, remove_leftovers
from data.pictures.source import BAD_LINE, NotTaken
from data.shards.shard import (
    Drop,
    Origin,
    Sample,
    is_whole,
    read_sidecar,
    total_drops,
    write_manifest,
    write_shard,
)

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"
NOT_TAKEN = "not_taken.jsonl"
Outcome = Sample | Drop | list[Sample]
"""What becomes of an input."""

_LISTED_EVERY_SEC = 5.0


@dataclass(frozen=True)
class Unit:
    """A piece of work that makes one shard.

    Args:
        name: name of the shard, `unit-000012`.
        items: the inputs, sorted.
        inputs: digest that changes when the inputs do.
        texts: gives a digest of texts that lie beside the inputs and are read with them; None where there are none.
    """

    name: str
    items: Sequence[Any]
    inputs: str
    texts: Callable[[], str] | None = None


def divide(
    keys: Sequence[str],
    items: Sequence[Any],
    unit_size: int,
    contents: Sequence[bytes] | None = None,
    texts: Callable[[Sequence[Any]], str] | None = None,
) -> list[Unit]:
    """Divides sorted inputs into units of `unit_size`.

    Args:
        keys: names of the items.
        contents: digests of what the items hold, where they are known; they become a part of the units' digests.
        texts: gives the digest of the texts that lie beside some items.

    Raises:
        ShardError: for keys that are not sorted and distinct, or a unit size below one.
    """
    if unit_size < 1:
        raise ShardError(f"--unit-size is {unit_size}, expected at least 1")
    if any(a >= b for a, b in pairwise(keys)):
        raise ShardError("the inputs of a stage must be sorted and distinct")
    units = []
    for number, start in enumerate(range(0, len(keys), unit_size)):
        part = slice(start, start + unit_size)
        digest = hashlib.sha256("\n".join(keys[part]).encode("utf-8", "surrogateescape"))
        for content in contents[part] if contents is not None else ():
            digest.update(content)
        beside = _later(texts, items[part]) if texts is not None else None
        units.append(Unit(f"unit-{number:06d}", items[part], digest.hexdigest(), beside))
    return units


def _later(texts: Callable[[Sequence[Any]], str], items: Sequence[Any]) -> Callable[[], str]:
    return lambda: texts(items)


def run_stage(
    units: Sequence[Unit],
    out: Path,
    process: Callable[[Unit], Iterable[Outcome]],
    origin: Origin,
    max_damage: float,
    ranks: Ranks | None = None,
    counted: str = "image",
    not_taken: NotTaken | None = None,
) -> dict[str, Any]:
    """Makes the shards of all units that are not there yet, together with the other ranks; returns the manifest.

    Every rank goes on until all units are there, whoever makes them, and then writes the same manifest.

    Args:
        out: folder of the shards; made if missing, used again if an earlier run of the same stage left it.
        process: turns a unit into one outcome per input, in the order of its items; an input that makes several samples
            gives them together.
        max_damage: share of damaged inputs over which the stage stops; bad lines of lists do not stop it.
        ranks: which of how many processes this is; by default what the launcher says.
        counted: what an input is, for the bar.
        not_taken: what lay among the inputs and is none; counted in the manifest and listed in `not_taken.jsonl`.

    Raises:
        ShardError: for a share that is none, another stage, config or input in the same folder, too much damage, or no
            sample left.
        OSError: for shards that cannot be written; the message says what to do about a full disk.
    """
    if not 0 <= max_damage <= 1:
        raise ShardError(f"--max-damage is {max_damage}, expected a share of the inputs from 0 to 1 (0.05 is 5 %)")
    ranks = ranks or Ranks.of_launch()
    with explained_if_full(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        work = _Work(units, out, origin, max_damage, not_taken)
        num_there = len(work.refresh())
        if num_there:
            logger.info("%d of %d units are there already; going on with the rest", num_there, len(units))
        work.check_texts(ranks)
        sizes = {unit.name: len(unit.items) for unit in units}
        with Progress(origin.stage, sizes, shown=ranks.rank == 0, unit=counted) as progress:
            for name in pieces_to_make(out, list(sizes), ".tar", progress.following(work.refresh), ranks):
                unit = work.units[name]
                texts = unit.texts() if unit.texts else ""
                outcomes = _ticking(process(unit), progress, out)
                write_shard(out, name, outcomes, origin, unit.inputs, texts)
        return work.finish()


def library_versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of some packages, for the record."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _ticking(outcomes: Iterable[Outcome], progress: Progress, out: Path) -> Iterator[Sample | Drop]:
    """Moves the bar with each outcome, and now and then by what other ranks have finished."""
    listed = time.monotonic()
    for outcome in outcomes:
        yield from outcome if isinstance(outcome, list) else (outcome,)
        progress.tick()
        if time.monotonic() - listed > _LISTED_EVERY_SEC:
            progress.note(finished_pieces(out, "unit-"))
            listed = time.monotonic()


class _Work:
    """The units of a stage, and what is known of those that are finished, whoever finished them.

    Of a sidecar only what the manifest, the quarantine and the report need is kept.
    """

    def __init__(
        self, units: Sequence[Unit], out: Path, origin: Origin, max_damage: float, not_taken: NotTaken | None
    ) -> None:
        self.units = {unit.name: unit for unit in units}
        self._out = out
        self._stage = origin.stage
        self._config = json.loads(json.dumps(origin.config))
        self._max_damage = max_damage
        self._not_taken = not_taken
        self._num_inputs = sum(len(unit.items) for unit in units)
        self._num_damaged = 0
        self._done: dict[str, dict[str, Any]] = {}

    def refresh(self) -> set[str]:
        """Reads the sidecars that are new; returns the names of the finished units.

        Raises:
            ShardError: for a sidecar that another stage, config or input made, and for too much damage.
        """
        for name in sorted(finished_pieces(self._out, "unit-") - set(self._done)):
            self._add(name)
        if self._num_damaged > self._max_damage * self._num_inputs:
            self._stop_for_damage()
        return set(self._done)

    def check_texts(self, ranks: Ranks) -> None:
        """Compares the texts beside the inputs of this rank's finished units with those that made the shards.

        Raises:
            ShardError: if one has changed.
        """
        for name in list(self.units)[ranks.rank :: ranks.world_size]:
            texts = self.units[name].texts
            if texts and name in self._done and texts() != self._done[name]["texts"]:
                raise ShardError(
                    f"a caption beside the pictures of {name} has changed since {self._out} was made; to make its "
                    f"shard again remove {self._out / name}.json and run the same command, or give another OUT folder"
                )

    def finish(self) -> dict[str, Any]:
        """Writes the lists of what was left out and the manifest, and returns the manifest.

        Raises:
            ShardError: if no sample is left.
        """
        ordered = {name: self._done[name] for name in self.units}
        self._write_quarantine()
        self._write_not_taken()
        drops = total_drops(ordered.values())
        count = sum(sidecar["count"] for sidecar in ordered.values())
        if not count:
            raise ShardError(f"no sample is left of {self._num_inputs} inputs; dropped: {drops}")
        counts = None if self._not_taken is None else {kind: len(names) for kind, names in self._not_taken.items()}
        manifest = write_manifest(self._out, ordered, counts)
        damaged, filtered = drops["damage"] or "none", drops["policy"] or "none"
        logger.info("%d samples; damaged: %s; filtered out: %s", count, damaged, filtered)
        if self._not_taken:
            logger.info("not taken: %s (listed in %s)", self._not_taken.shown(), self._out / NOT_TAKEN)
        for name, figures in manifest["checks"].items():
            logger.info("%s: %s", name, _described(figures))
        return manifest

    def _add(self, name: str) -> None:
        path = self._out / f"{name}.json"
        try:
            sidecar = read_sidecar(path)
        except FileNotFoundError:
            return  # another process is about to make it again
        self._check_origin(sidecar)
        if name not in self.units or self.units[name].inputs != sidecar["inputs"]:
            raise ShardError(
                f"the input of {name} in {self._out} has changed since it was made; give another OUT folder"
            )
        if not is_whole(self._out, sidecar):
            with locked(self._out):
                if path.exists() and not is_whole(self._out, read_sidecar(path)):
                    path.unlink()  # its tar was lost: the unit is to be made again
            return
        damaged = [drop for drop in sidecar["dropped"] if drop["kind"] == "damage"]
        self._num_damaged += sum(drop["reason"] != BAD_LINE for drop in damaged)
        left_out = ("keys", "members", "dropped")
        self._done[name] = {key: value for key, value in sidecar.items() if key not in left_out} | {"damaged": damaged}

    def _check_origin(self, sidecar: dict[str, Any]) -> None:
        if sidecar["stage"] != self._stage:
            raise ShardError(
                f"{self._out} holds shards of data.{sidecar['stage']}; give data.{self._stage} a folder of its own"
            )
        if sidecar["config"] != self._config:
            raise ShardError(
                f"{self._out} was made with another config:\n  {changed_settings(sidecar['config'], self._config)}\n"
                "give the same options as before, or another OUT folder"
            )

    def _stop_for_damage(self) -> None:
        # Against all inputs, not those seen so far: neither the order of units nor a restart changes the verdict.
        self._write_quarantine()
        damage = total_drops(self._done.values())["damage"]
        raise ShardError(
            f"{self._num_damaged} of {self._num_inputs} inputs are damaged ({damage}), more than --max-damage "
            f"{self._max_damage}; they are listed in {self._out / QUARANTINE}. Raise --max-damage and run again, or "
            "repair or remove them and give another OUT folder"
        )

    def _write_quarantine(self) -> None:
        """One JSON line per damaged input; the file is rebuilt from the sidecars, so it never has a line twice."""
        damaged = [drop for name in self.units for drop in self._done.get(name, {"damaged": []})["damaged"]]
        lines = "".join(json.dumps(drop, ensure_ascii=False) + "\n" for drop in damaged)
        write_text(self._out / QUARANTINE, lines)

    def _write_not_taken(self) -> None:
        """One JSON line for each file that lay in the input and is none; nothing where there is none."""
        if self._not_taken:
            rows = sorted((name, kind) for kind, names in self._not_taken.items() for name in names)
            lines = (json.dumps({"source": name, "kind": kind}, ensure_ascii=False) + "\n" for name, kind in rows)
            write_text(self._out / NOT_TAKEN, "".join(lines))
        else:
            (self._out / NOT_TAKEN).unlink(missing_ok=True)


def _described(figures: dict[str, float]) -> str:
    """The sums of a check in words."""
    count = figures["count"]
    if "true" in figures:
        return f"{figures['true']} of {count} ({100 * figures['true'] / count:.1f} %)"
    if "sum" in figures:
        digits = 1 if isinstance(figures["max"], int) else 3
        return f"mean {figures['sum'] / count:.{digits}f}, at most {figures['max']}, {count} counted"
    return f"{count} counted"
