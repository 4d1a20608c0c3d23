"""A folder of shards against its manifest, its sidecars, and what its tars hold.

One pass over the sidecars in order, the tars beside them read by threads; what is kept grows by some tens of bytes a
sample.
"""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.inspection.findings import LISTED, Findings, Kind
from data.inspection.shard import AGAIN, BAD_SIDECAR, MIXED, Shard, inspect_shard
from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.pictures.buckets import Size
from data.shards.shard import MANIFEST, add_checks, num_several, read_sidecar

_THREADS = min(8, os.cpu_count() or 1)
_LISTED_DROPS = 500

EMPTY = Kind("the folder holds no shards", "give the OUT folder of data.caption, data.edit_pairs or data.encode")
NO_SAMPLES = Kind("there is no sample in the shards", "see what was left out and why, then make the shards again")
UNFINISHED = Kind("the stage has not finished", AGAIN)
UNLISTED = Kind("the manifest and the shards disagree", AGAIN)
BAD_MANIFEST = Kind("the manifest cannot be used", f"remove it, then {AGAIN}")
LOST_SIDECAR = Kind("a tar has lost its sidecar", AGAIN)
FOREIGN_TAR = Kind(
    "a tar does not belong to these shards", "move it out of the folder (data.caption takes a folder of foreign tars)"
)
SAME_KEY = Kind("a key comes twice", MIXED.cure)
SAME_PICTURE = Kind(
    "a picture comes more than once (the same content hash)",
    "remove the copies and make the shards again, if training should not see it more often than others",
    wrong=False,
)
TEMPORARY = Kind(
    "a temporary file lies in the folder", "wait if a stage is running on it; else its next run clears up", wrong=False
)


@dataclass(frozen=True)
class Place:
    """Place of a sample.

    Args:
        digest: number made of its key; samples with the smallest are the inspection's random sample, thus the same
            before and after data.encode.
        key: name of the sample.
        unit: the shard that holds it.
        spans: offset and size in bytes of each member in the tar, by suffix.
        size: width and height of its picture where they differ between samples; else None.
    """

    digest: int
    key: str
    unit: str
    spans: dict[str, tuple[int, int]]
    size: Size | None = None


@dataclass
class Contents:
    """Contents of a folder of shards, as its sidecars say.

    Args:
        origin: stage, config, properties, versions and arrays of the first shard with samples; of arrays whose shape
            differs between samples, all shapes that any shard has met.
        count: samples.
        num_used: inputs that made them.
        num_shards: tars.
        bytes: size of all tars.
        sidecar_bytes: size of all sidecars.
        members: (number of members, their bytes).
        drops: number of inputs that were left out, by kind and reason.
        dropped: the first of them by kind, as the sidecars list them.
        not_taken: number of files that lay in the stage's input and are none, by kind, as the manifest says.
        checks: sums of what the stage noted about samples, as in the sidecars.
        longest_key: length in bytes.
        sample: a random sample, the same on every call.
        num_pictures: different content hashes; None where not all KEY.json were read.
        sizes: number of samples by width and height of their picture, where they differ.
    """

    origin: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    num_used: int = 0
    num_shards: int = 0
    bytes: int = 0
    sidecar_bytes: int = 0
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    drops: dict[str, Counter[str]] = field(default_factory=lambda: {"damage": Counter(), "policy": Counter()})
    dropped: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"damage": [], "policy": []})
    not_taken: dict[str, int] = field(default_factory=dict)
    checks: dict[str, dict[str, float]] = field(default_factory=dict)
    longest_key: int = 0
    sample: list[Place] = field(default_factory=list)
    num_pictures: int | None = None
    sizes: Counter[Size] = field(default_factory=Counter)

    @property
    def num_several(self) -> int:
        """Samples with several captions."""
        return num_several(self.checks)

    @property
    def num_inputs(self) -> int:
        """Inputs of the stage: those that made samples, and what was left out."""
        return self.num_used + sum(reasons.total() for reasons in self.drops.values())


def inspect_folder(folder: Path, sample: int, checksums: bool, findings: Findings) -> Contents:
    """Checks a folder and adds what is wrong to `findings`; returns what it holds.

    Args:
        sample: size of the random sample.
        checksums: read every byte of the tars, and every KEY.json.

    Raises:
        ShardError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ShardError(
            f"no folder of shards at {folder}: give the OUT folder of data.caption, data.edit_pairs or data.encode"
        )
    sidecars = sorted(folder.glob("unit-*.json"))
    manifest = _read_manifest(folder, findings)
    listed = {unit["unit"]: unit for unit in manifest.get("units", [])}
    _check_names(folder, sidecars, listed, findings)
    contents = Contents(not_taken=manifest.get("not_taken", {}))
    inspect_one = partial(inspect_shard, checksums=checksums)
    keys, pictures, places = [], [], []
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(sidecars, unit="shard", desc="inspect") as bar:
        for path, shard in zip(sidecars, in_order(pool, inspect_one, sidecars, ahead=2 * _THREADS)):
            findings.extend(shard.found)
            bar.update()
            if not shard.sidecar:
                continue
            _check_against(shard.sidecar, contents, listed, findings)
            _add(contents, shard)
            keys.append(shard.keys)
            pictures.append(shard.pictures)
            places.append(path.stem)
            contents.sample += _places(shard, sample)
            if len(contents.sample) > 8 * sample:
                contents.sample = _smallest(contents.sample, sample)
    contents.sample = _smallest(contents.sample, sample)
    _check_totals(contents, manifest, findings)
    if contents.count:
        _find_copies(folder, places, keys, SAME_KEY, findings)
    if contents.count and checksums:
        contents.num_pictures = _find_copies(folder, places, pictures, SAME_PICTURE, findings)
    return contents


def _read_manifest(folder: Path, findings: Findings) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = read_sidecar(path)
        if not all({"unit", "count", "bytes", "sha256"} <= set(unit) for unit in manifest["units"]):
            raise ShardError(f"{path} lists units without their count, bytes and sha256")
        not_taken = {kind: int(count) for kind, count in dict(manifest.get("not_taken", {})).items()}
        return manifest | {
            "count": int(manifest["count"]),
            "bytes": int(manifest["bytes"]),
            "not_taken": not_taken,
        }
    except (ShardError, OSError, KeyError, TypeError, ValueError) as error:
        findings.add(BAD_MANIFEST, str(error))
        return {}


def _check_names(folder: Path, sidecars: list[Path], listed: dict[str, Any], findings: Findings) -> None:
    """What the names of the files in the folder tell."""
    units = {path.stem for path in sidecars}
    tars = {path.stem for path in folder.glob("*.tar")}
    if not units and not tars:
        findings.add(EMPTY, f"{folder}: neither unit-*.json nor *.tar")
        return
    if not (folder / MANIFEST).is_file():
        findings.add(UNFINISHED, f"{len(units)} finished units and no {MANIFEST}")
    for name in sorted(tars - units):
        ours = name in listed or (name.startswith("unit-") and name.removeprefix("unit-").isdigit())
        findings.add(LOST_SIDECAR if ours else FOREIGN_TAR, f"{name}.tar")
    if listed:
        for name in sorted(set(listed) - units - tars):
            findings.add(UNLISTED, f"{name} is listed and not there")
        for name in sorted(units - set(listed)):
            findings.add(UNLISTED, f"{name} is there and not listed")
    for path in sorted(folder.glob(".*.tmp")):
        findings.add(TEMPORARY, path.name)


def _check_against(
    sidecar: dict[str, Any], contents: Contents, listed: dict[str, dict[str, Any]], findings: Findings
) -> None:
    """A shard against the first one and against the manifest."""
    name = sidecar["unit"]
    if sidecar["count"]:
        origin = {field: sidecar[field] for field in ("stage", "config", "properties", "versions", "arrays")}
        contents.origin = contents.origin or origin
        _join_shapes(contents.origin["arrays"], origin["arrays"])
        for entry in ("stage", "config", "properties", "arrays"):
            if origin[entry] != contents.origin[entry]:
                findings.add(MIXED, f"{name} has another {entry}: {_shown(origin[entry], contents.origin[entry])}")
    if name in listed:
        for entry in ("count", "bytes", "sha256"):
            if sidecar[entry] != listed[name][entry]:
                findings.add(UNLISTED, f"{name}: {entry} {listed[name][entry]} in the manifest, {sidecar[entry]} here")


def _join_shapes(known: dict[str, Any], found: dict[str, Any]) -> None:
    """Add to both what the other has met of arrays whose shape goes with the picture's size."""
    for suffix in set(known) & set(found):
        if "shapes" in known[suffix] and "shapes" in found[suffix]:
            mine, theirs = known[suffix]["shapes"], found[suffix]["shapes"]
            mine.update({size: shape for size, shape in theirs.items() if size not in mine})
            theirs.update({size: shape for size, shape in mine.items() if size not in theirs})


def _shown(found: Any, expected: Any) -> str:
    """Two values that differ; of dicts, only the entries that do."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        found, expected = ({name: value.get(name) for name in names} for value in (found, expected))
    return f"{json.dumps(found)} instead of {json.dumps(expected)}"


def _add(contents: Contents, shard: Shard) -> None:
    sidecar = shard.sidecar
    contents.count += sidecar["count"]
    contents.num_used += _num_used(sidecar)
    contents.num_shards += sidecar["count"] > 0
    contents.bytes += sidecar["bytes"]
    contents.sidecar_bytes += shard.sidecar_bytes
    for suffix, column in sidecar["members"].items():
        sizes = [size for offset, size in column if offset >= 0]
        number, total = contents.members.get(suffix, (0, 0))
        contents.members[suffix] = (number + len(sizes), total + sum(sizes))
    for kind, reasons in sidecar["drops"].items():
        contents.drops[kind].update(reasons)
    for drop in sidecar["dropped"]:
        if len(contents.dropped[drop["kind"]]) < _LISTED_DROPS:
            contents.dropped[drop["kind"]].append(drop)
    add_checks(contents.checks, sidecar["checks"])
    contents.sizes.update(tuple(size) for size in sidecar.get("sizes", []))
    contents.longest_key = max([contents.longest_key, *(len(key) for key in sidecar["keys"])])


def _num_used(sidecar: dict[str, Any]) -> int:
    """Inputs that made the samples of a shard; data.edit_pairs makes several of one, KEY-000, KEY-001 and so on."""
    if sidecar["stage"] != "edit_pairs":
        return sidecar["count"]
    return len({key.rpartition("-")[0] for key in sidecar["keys"]})


def _places(shard: Shard, sample: int) -> list[Place]:
    """The samples of a shard that may be in the random sample."""
    sidecar = shard.sidecar
    rows = np.argsort(shard.keys, kind="stable")[:sample]
    sizes = sidecar.get("sizes")
    return [
        Place(
            int(shard.keys[row]),
            sidecar["keys"][row],
            sidecar["unit"],
            {suffix: tuple(column[row]) for suffix, column in sidecar["members"].items() if column[row][0] >= 0},
            tuple(sizes[row]) if sizes else None,
        )
        for row in map(int, rows)
    ]


def _smallest(places: list[Place], sample: int) -> list[Place]:
    return sorted(places, key=lambda place: (place.digest, place.unit))[:sample]


def _check_totals(contents: Contents, manifest: dict[str, Any], findings: Findings) -> None:
    if contents.num_shards == 0 and not any(finding.kind in (EMPTY, BAD_SIDECAR) for finding in findings.problems):
        findings.add(NO_SAMPLES, f"{contents.num_inputs} inputs, all of them left out")
    for entry in ("count", "bytes"):
        if manifest and manifest[entry] != getattr(contents, entry):
            findings.add(UNLISTED, f"{entry} {manifest[entry]:,} in the manifest, {getattr(contents, entry):,} here")


def _find_copies(folder: Path, units: list[str], digests: list[np.ndarray], kind: Kind, findings: Findings) -> int:
    """Adds each sample whose digest an earlier one has to the findings; returns the number of different digests.

    Args:
        units: names of the shards.
        digests: numbers made of the keys of each shard's samples; 0 is none.
    """
    every = np.concatenate(digests)
    rows = np.flatnonzero(every)
    _, firsts, groups = np.unique(every[rows], return_index=True, return_inverse=True)
    copies = np.flatnonzero(firsts[groups] != np.arange(len(rows)))
    ends = np.cumsum([len(found) for found in digests])

    def name(row: int) -> str:
        unit = int(np.searchsorted(ends, row, side="right"))
        keys = read_sidecar(folder / f"{units[unit]}.json")["keys"]
        return f"{units[unit]}: {keys[row - int(ends[unit])]}"  # counted from the end

    for number, copy in enumerate(map(int, copies)):
        place = f"{name(rows[copy])} and {name(rows[firsts[groups[copy]]])}" if number < LISTED else ""
        findings.add(kind, place)
    return len(firsts)
