"""Shards: one tar and one sidecar JSON per unit of work, written so that nothing half-done looks finished.

The tar goes to a temporary name, is fsynced and renamed; the sidecar, renamed last, marks it complete. Both renames
happen under the folder's lock, and not at all if another process has finished the unit meanwhile. The manifest is
rebuilt from the sidecars.
"""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.jobs.errors import ShardError
from data.jobs.files import file_digest, flush_to_disk, temporary_path, write_json
from data.jobs.sharing import Heartbeat, locked
from data.pictures.buckets import Size, size_name
from data.shards.sample import SCHEMA, check_key

FORMAT = 2
"""Version of the sidecar's layout."""

MANIFEST = "manifest.json"
_SIDECARS = "unit-*.json"
_LISTED = ("unit", "count", "bytes", "sha256")


@dataclass(frozen=True)
class Sample:
    """A sample to write.

    Args:
        key: key of the sample.
        members: bytes by suffix ("json", "png", "latent.npy").
        checks: plain JSON about it, of whose numbers, truth values and texts the sidecar holds sums.
        size: width and height of its picture in pixels, where samples differ in them.
        more_checks: checks of its other captions, whose figures are summed together with those in `checks`.
    """

    key: str
    members: Mapping[str, bytes]
    checks: Mapping[str, Any] = field(default_factory=dict)
    size: Size | None = None
    more_checks: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Drop:
    """An input that made no sample.

    Args:
        source: what was dropped: a path relative to the input folder, or a key.
        reason: a few fixed words; drops are counted by it.
        kind: "damage" (the file is broken; too much of it stops a stage) or "policy" (filtered out on purpose).
        detail: what exactly went wrong, for people.
    """

    source: str
    reason: str
    kind: Literal["damage", "policy"]
    detail: str = ""


@dataclass(frozen=True)
class Origin:
    """Origin of a shard: the stage that made it.

    Args:
        stage: name of the stage ("caption", "encode").
        config: everything that decides the bytes that come out; another config in the same folder is refused.
        versions: versions of the libraries involved; recorded, never compared.
        properties: facts about the samples that later stages and the loader need (resolution, fingerprints).
    """

    stage: str
    config: dict[str, Any]
    versions: dict[str, str]
    properties: dict[str, Any] = field(default_factory=dict)


def write_shard(
    folder: Path, unit: str, outcomes: Iterable[Sample | Drop], origin: Origin, inputs: str, texts: str = ""
) -> dict[str, Any]:
    """Writes UNIT.tar and then UNIT.json into `folder`; returns the sidecar.

    A unit whose inputs were all dropped has a sidecar and no tar. Tars are reproducible: the same samples give
    the same bytes. If another process finishes the same unit first, its shard stays and its sidecar is returned.

    Args:
        inputs: digest of the unit's inputs, to notice when they change.
        texts: digest of texts that lie beside the inputs, for the same purpose.

    Raises:
        OSError: when the shard cannot be written; nothing of it is left behind then.
    """
    temporary = temporary_path(folder, f"{unit}.tar")
    try:
        written = _write_tar(temporary, outcomes)
        sidecar = {
            "format": FORMAT,
            "sample_schema": SCHEMA,
            "unit": unit,
            "stage": origin.stage,
            "config": origin.config,
            "versions": origin.versions,
            "properties": origin.properties,
            "inputs": inputs,
            "texts": texts,
            **written,
        }
        return _commit(folder, temporary, sidecar)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tar(path: Path, outcomes: Iterable[Sample | Drop]) -> dict[str, Any]:
    """Writes the samples to a tar, fsynced; returns what a sidecar says about them."""
    from webdataset import TarWriter  # brings torch, seconds that a run with nothing to do can spare

    drops: list[Drop] = []
    keys: list[str] = []
    sizes: list[Size] = []
    layouts: dict[str, dict[str, Any]] = {}
    checks: dict[str, dict[str, float]] = {}
    with path.open("wb") as stream:
        heartbeat = Heartbeat(path)
        with TarWriter(stream, encoder=False, mtime=0, compress=False) as writer:
            for outcome in outcomes:
                heartbeat.beat()
                if isinstance(outcome, Drop):
                    drops.append(outcome)
                    continue
                check_key(outcome.key)
                _note_layouts(layouts, outcome)
                for found in (outcome.checks, *outcome.more_checks):
                    _note_checks(checks, found)
                writer.write({"__key__": outcome.key, **outcome.members})
                keys.append(outcome.key)
                if outcome.size is not None:
                    sizes.append(outcome.size)
    flush_to_disk(path)
    return {
        **({"sizes": sizes} if sizes else {}),
        "count": len(keys),
        "drops": count_drops(drops),
        "dropped": [vars(drop) for drop in drops],
        "checks": dict(sorted(checks.items())),
        "arrays": layouts,
        "bytes": path.stat().st_size if keys else 0,
        "sha256": file_digest(path) if keys else "",
        "keys": keys,
        "members": _member_offsets(path, keys),
    }


def _commit(folder: Path, temporary: Path, sidecar: dict[str, Any]) -> dict[str, Any]:
    """Gives the tar and its sidecar their names, unless the unit is there; returns the sidecar that is there then."""
    tar, final = folder / f"{sidecar['unit']}.tar", folder / f"{sidecar['unit']}.json"
    with locked(folder):
        if final.exists():
            found = read_sidecar(final)
            if is_whole(folder, found):
                return found
            final.unlink()  # it describes another tar than the one that comes now
        if sidecar["keys"]:
            temporary.replace(tar)
        else:
            tar.unlink(missing_ok=True)
        write_json(final, sidecar)
    return sidecar


def _member_offsets(tar: Path, keys: list[str]) -> dict[str, list[tuple[int, int]]]:
    """(Offset, size) in bytes by suffix for each key, (-1, 0) where a key has no such member."""
    rows = {key: row for row, key in enumerate(keys)}
    if len(rows) != len(keys):
        doubled = [key for key, count in Counter(keys).items() if count > 1]
        raise ShardError(f"these keys came twice in one unit: {doubled[:5]}")
    found: dict[str, list[tuple[int, int]]] = {}
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            key, suffix = member.name.split(".", 1)
            column = found.setdefault(suffix, [(-1, 0)] * len(keys))
            column[rows[key]] = (member.offset_data, member.size)
    return found


def _note_layouts(layouts: dict[str, dict[str, Any]], sample: Sample) -> None:
    """Keeps dtype and shape of each .npy member; one unit holds one layout per suffix and size of picture."""
    for suffix, content in sample.members.items():
        if not suffix.endswith(".npy"):
            continue
        layout = npy_layout(content)
        if sample.size is None:
            expected = layouts.setdefault(suffix, layout)
        else:
            held = layouts.setdefault(suffix, {"dtype": layout["dtype"], "shapes": {}})
            expected = layout_at(held, sample.size) or layout
            held["shapes"][size_name(sample.size)] = expected["shape"]
        if layout != expected:
            raise ShardError(f"{sample.key}.{suffix} is {layout}, the samples before it in this unit are {expected}")


def layout_at(layout: Mapping[str, Any], size: Size | None) -> dict[str, Any] | None:
    """{"dtype", "shape"} of an array in samples of a size; None if no such sample was seen."""
    if "shape" in layout:
        return dict(layout)
    shape = layout["shapes"].get(size_name(size)) if size else None
    return None if shape is None else {"dtype": layout["dtype"], "shape": shape}


def _note_checks(sums: dict[str, dict[str, float]], checks: Mapping[str, Any], prefix: str = "") -> None:
    """Add the figures of one sample to their sums.

    Sums are {name: {"count", "sum", "max"}}, for truth values {"count", "true"}, for texts {"count"}. The elements of
    lists and dicts have names of their own.
    """
    for name, value in checks.items():
        name = f"{prefix}{name}"
        if isinstance(value, Mapping):
            _note_checks(sums, value, f"{name}.")
        elif isinstance(value, list | tuple):
            _note_checks(sums, {str(number): element for number, element in enumerate(value, 1)}, f"{name}.")
        elif isinstance(value, bool):
            add_checks(sums, {name: {"count": 1, "true": int(value)}})
        elif isinstance(value, int | float):
            add_checks(sums, {name: {"count": 1, "sum": value, "max": value}})
        elif value is not None:
            add_checks(sums, {name: {"count": 1}})


def add_checks(sums: dict[str, dict[str, float]], more: Mapping[str, Mapping[str, float]]) -> None:
    """Adds the sums of some samples' checks to those of others, in place."""
    for name, figures in more.items():
        known = sums.setdefault(name, {})
        for figure, value in figures.items():
            before = known.get(figure)
            known[figure] = value if before is None else max(before, value) if figure == "max" else before + value


def num_several(checks: Mapping[str, Mapping[str, float]]) -> int:
    """Number of samples with several captions, by the sums of their checks."""
    return int(checks.get("captions", {}).get("count", 0))


def npy_layout(content: bytes) -> dict[str, Any]:
    """{"dtype", "shape"} of the array in the bytes of an .npy file."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def count_drops(drops: Iterable[Drop]) -> dict[str, dict[str, int]]:
    """{"damage": {reason: count}, "policy": {reason: count}}, reasons sorted."""
    counts: dict[str, Counter[str]] = {"damage": Counter(), "policy": Counter()}
    for drop in drops:
        counts[drop.kind][drop.reason] += 1
    return {kind: dict(sorted(by_reason.items())) for kind, by_reason in counts.items()}


def read_sidecar(path: Path) -> dict[str, Any]:
    """Reads one sidecar, or a manifest.

    Raises:
        ShardError: for a file that is neither, or one of another format or sample schema.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        versions = (found["format"], found["sample_schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is not the sidecar of a shard ({error!r}); make the shards again") from error
    if versions != (FORMAT, SCHEMA):
        raise ShardError(
            f"{path} has sidecar format and sample schema {versions}, this code reads {(FORMAT, SCHEMA)}: "
            "make the shards again with this version"
        )
    return found


def read_sidecars(folder: Path) -> dict[str, dict[str, Any]]:
    """The sidecars of a folder by unit name, sorted."""
    return {path.stem: read_sidecar(path) for path in sorted(folder.glob(_SIDECARS))}


def read_samples(folder: Path, sidecar: dict[str, Any]) -> Iterator[Sample | Drop]:
    """All members of all samples of a shard; what is not there in full is a drop of the kind "damage"."""
    tar = folder / f"{sidecar['unit']}.tar"
    try:
        stream = tar.open("rb")
    except OSError as error:
        yield from (Drop(key, "shard cannot be opened", "damage", str(error)) for key in sidecar["keys"])
        return
    with stream:
        sizes = sidecar.get("sizes") or [None] * len(sidecar["keys"])
        for row, (key, size_of) in enumerate(zip(sidecar["keys"], sizes, strict=True)):
            spans = {suffix: column[row] for suffix, column in sidecar["members"].items() if column[row][0] >= 0}
            members = {suffix: os.pread(stream.fileno(), size, offset) for suffix, (offset, size) in spans.items()}
            if all(len(members[suffix]) == size for suffix, (_, size) in spans.items()):
                yield Sample(key, members, size=tuple(size_of) if size_of else None)
            else:
                yield Drop(key, "truncated shard", "damage", str(tar))


def is_whole(folder: Path, sidecar: dict[str, Any]) -> bool:
    """Whether the tar that a sidecar describes is there in full length."""
    if sidecar["count"] == 0:
        return True
    tar = folder / f"{sidecar['unit']}.tar"
    return tar.is_file() and tar.stat().st_size == sidecar["bytes"]


def write_manifest(
    folder: Path, sidecars: Mapping[str, dict[str, Any]], not_taken: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Rebuilds manifest.json, which marks the whole folder as finished, from sidecars; returns it.

    Args:
        not_taken: number of files that lay in the stage's input and are none, by kind.
    """
    some = next(iter(sidecars.values()))
    manifest = {
        "format": FORMAT,
        "sample_schema": SCHEMA,
        "stage": some["stage"],
        "config": some["config"],
        "properties": some["properties"],
        "count": sum(sidecar["count"] for sidecar in sidecars.values()),
        "bytes": sum(sidecar["bytes"] for sidecar in sidecars.values()),
        "drops": total_drops(sidecars.values()),
        "checks": total_checks(sidecars.values()),
        "units": [{name: sidecar[name] for name in _LISTED} for sidecar in sidecars.values()],
    } | ({"not_taken": dict(sorted(not_taken.items()))} if not_taken is not None else {})
    write_json(folder / MANIFEST, manifest)
    return manifest


def total_drops(sidecars: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Drops by kind and reason, summed over sidecars."""
    counts: dict[str, Counter[str]] = {"damage": Counter(), "policy": Counter()}
    for sidecar in sidecars:
        for kind, by_reason in sidecar["drops"].items():
            counts[kind].update(by_reason)
    return {kind: dict(sorted(by_reason.items())) for kind, by_reason in counts.items()}


def total_checks(sidecars: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures about samples, summed over sidecars: {name: {"count", "sum", "max"}}, or {"count", "true"}."""
    sums: dict[str, dict[str, float]] = {}
    for sidecar in sidecars:
        add_checks(sums, sidecar["checks"])
    return dict(sorted(sums.items()))


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder whose stage has finished, checked against the names of the files in the folder.

    Raises:
        ShardError: for a folder that is missing, holds no shards, holds tars without sidecars, or whose stage
            has not finished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(f"no folder of shards at {folder}: give the OUT folder of a data stage")
    tars = {path.stem for path in folder.glob("*.tar")}
    units = {path.stem for path in folder.glob(_SIDECARS)}
    bare = sorted(tars - units)
    if bare:
        raise ShardError(
            f"{folder} holds tars without a sidecar, e.g. {bare[0]}.tar: foreign tars, or a stage that was killed; "
            "run the stage that makes this folder again with the same command"
        )
    if not units:
        raise ShardError(f"{folder} holds no shards (looked for unit-*.tar with unit-*.json); run data.caption first")
    if not (folder / MANIFEST).is_file():
        raise ShardError(
            f"{folder} has {len(units)} finished units and no {MANIFEST}: its stage has not finished; "
            "run it again with the same command"
        )
    manifest = read_sidecar(folder / MANIFEST)
    listed = {unit["unit"] for unit in manifest["units"]}
    if listed != units:
        lost, new = sorted(listed - units)[:3], sorted(units - listed)[:3]
        raise ShardError(
            f"{folder}/{MANIFEST} and the sidecars disagree (listed and not there: {lost}; "
            f"there and not listed: {new}); run the stage again with the same command"
        )
    return manifest
