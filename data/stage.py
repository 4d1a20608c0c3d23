"""A stage turns units of sorted inputs into shards, one shard per unit, and can be killed and run again.

Units that an earlier run finished with the same config are skipped; another config is refused. Several runs of one
command at the same time share its units.
"""

import hashlib
import json
import logging
import os
import platform
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data import shards
from data.shards import Drop, Origin, Sample, ShardError

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Unit:
    """A piece of work that makes one shard.

    Args:
        name: name of the shard, `unit-000012`.
        items: the inputs, sorted.
        inputs: digest that changes when the inputs do.
    """

    name: str
    items: Sequence[Any]
    inputs: str


def divide(keys: Sequence[str], items: Sequence[Any], unit_size: int) -> list[Unit]:
    """Divides sorted inputs into units of `unit_size`; `keys` name the items.

    Raises:
        ShardError: for keys that are not sorted and distinct, or a unit size below one.
    """
    if unit_size < 1:
        raise ShardError(f"--unit-size is {unit_size}, expected at least 1")
    if any(a >= b for a, b in pairwise(keys)):
        raise ShardError("the inputs of a stage must be sorted and distinct")
    units = []
    for number, start in enumerate(range(0, len(keys), unit_size)):
        digest = hashlib.sha256("\n".join(keys[start : start + unit_size]).encode("utf-8", "surrogateescape"))
        units.append(Unit(f"unit-{number:06d}", items[start : start + unit_size], digest.hexdigest()))
    return units


def run_stage(
    units: Sequence[Unit],
    out: Path,
    process: Callable[[Unit], Iterable[Sample | Drop]],
    origin: Origin,
    max_damage: float,
) -> dict[str, Any]:
    """Makes the shards of all units that are not there yet, then the manifest; returns the manifest.

    Args:
        out: folder of the shards; made if missing, used again if an earlier run of the same stage left it.
        process: turns a unit into one outcome per input, in the order of its items.
        max_damage: share of damaged inputs over which the stage stops.

    Raises:
        ShardError: for another stage, config or input in the same folder, too much damage, or no sample left.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards.remove_leftovers(out)
    done = _finished_units(units, shards.read_sidecars(out), out, origin)
    num_inputs = sum(len(unit.items) for unit in units)
    num_damaged = 0
    num_done = sum(len(unit.items) for unit in units if unit.name in done)
    if done:
        logger.info("%d of %d units are there already; going on with the rest", len(done), len(units))
    with tqdm(total=num_inputs, initial=num_done, unit="image", desc=origin.stage) as bar:
        for unit in _from_own_start(units):
            if unit.name not in done:
                # Another run of the same command may have made it in the meantime: several share the work.
                found = _finished_units([unit], shards.read_sidecars(out, f"{unit.name}.json"), out, origin)
                if found:
                    bar.update(len(unit.items))
                    done |= found
                else:
                    outcomes = _ticking(process(unit), bar)
                    done[unit.name] = shards.write_shard(out, unit.name, outcomes, origin, unit.inputs)
            num_damaged += sum(done[unit.name]["drops"]["damage"].values())
            if num_damaged > max_damage * num_inputs:
                _stop_for_damage(done, out, num_inputs, max_damage)
    ordered = {unit.name: done[unit.name] for unit in units}
    _write_quarantine(out, ordered)
    _report(ordered)
    if not any(sidecar["count"] for sidecar in ordered.values()):
        raise ShardError(f"no sample is left of {num_inputs} inputs; dropped: {shards.total_drops(ordered.values())}")
    return shards.write_manifest(out, ordered)


def library_versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of some packages, for the record."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The entries in which two flat configs differ, one `name: before -> now` a line."""
    names = sorted(set(before) | set(now))
    changed = [name for name in names if before.get(name) != now.get(name)]
    return "\n".join(f"  {name}: {json.dumps(before.get(name))} -> {json.dumps(now.get(name))}" for name in changed)


def _from_own_start(units: Sequence[Unit]) -> list[Unit]:
    """The units from a place on that differs between processes, so that runs at the same time seldom meet."""
    start = random.Random(f"{platform.node()} {os.getpid()}").randrange(len(units))
    return [*units[start:], *units[:start]]


def _ticking(outcomes: Iterable[Sample | Drop], bar: tqdm) -> Iterator[Sample | Drop]:
    for outcome in outcomes:
        yield outcome
        bar.update()


def _finished_units(
    units: Sequence[Unit], sidecars: dict[str, dict[str, Any]], out: Path, origin: Origin
) -> dict[str, dict[str, Any]]:
    """Sidecars of the units that are complete; refuses a folder that something else made."""
    planned = {unit.name: unit for unit in units}
    config = json.loads(json.dumps(origin.config))
    finished = {}
    for name, sidecar in sidecars.items():
        if sidecar["stage"] != origin.stage:
            raise ShardError(
                f"{out} holds shards of data.{sidecar['stage']}; give data.{origin.stage} a folder of its own"
            )
        if sidecar["config"] != config:
            raise ShardError(
                f"{out} was made with another config:\n{difference(sidecar['config'], config)}\n"
                "give the same options as before, or another OUT folder"
            )
        if name not in planned or planned[name].inputs != sidecar["inputs"]:
            raise ShardError(f"the input of {name} in {out} has changed since it was made; give another OUT folder")
        if shards.is_whole(out, sidecar):
            finished[name] = sidecar
    return finished


def _stop_for_damage(done: dict[str, dict[str, Any]], out: Path, num_inputs: int, max_damage: float) -> None:
    # Against all inputs, not those seen so far: neither the order of units nor a restart changes the verdict.
    _write_quarantine(out, done)
    damage = shards.total_drops(done.values())["damage"]
    raise ShardError(
        f"{sum(damage.values())} of {num_inputs} inputs are damaged ({damage}), more than --max-damage {max_damage}; "
        f"they are listed in {out / QUARANTINE}. Repair or remove them, or raise --max-damage and run again"
    )


def _write_quarantine(out: Path, done: dict[str, dict[str, Any]]) -> None:
    """One JSON line per damaged input; the file is rebuilt from the sidecars, so it never has a line twice."""
    damaged = [drop for sidecar in done.values() for drop in sidecar["dropped"] if drop["kind"] == "damage"]
    shards.write_text(out / QUARANTINE, "".join(json.dumps(drop, ensure_ascii=False) + "\n" for drop in damaged))


def _report(done: dict[str, dict[str, Any]]) -> None:
    drops = shards.total_drops(done.values())
    count = sum(sidecar["count"] for sidecar in done.values())
    logger.info(
        "%d samples; damaged: %s; filtered out: %s", count, drops["damage"] or "none", drops["policy"] or "none"
    )
