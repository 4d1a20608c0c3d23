"""Shards: one tar and one sidecar JSON per unit of work, written so that nothing half-done looks finished.

The tar goes to a temporary name, is fsynced and renamed; the sidecar, renamed last, marks it complete.
The manifest is rebuilt from the sidecars.
"""

import hashlib
import io
import json
import os
import socket
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import webdataset

from data.sample import SCHEMA, check_key

FORMAT = 1
"""Version of the sidecar's layout."""

MANIFEST = "manifest.json"
_LISTED = ("unit", "count", "bytes", "sha256")
_STALE_SEC = 24 * 3600


class ShardError(ValueError):
    """Shards cannot be made or used, for a reason that the user can change."""


@dataclass(frozen=True)
class Sample:
    """A sample to write: its key, and the bytes of its members by suffix ("json", "png", "latent.npy")."""

    key: str
    members: Mapping[str, bytes]


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
    """What made a shard.

    Args:
        stage: name of the stage ("caption", "encode").
        config: everything that decides the bytes that come out; another config in the same folder is refused.
        versions: of the libraries involved; recorded, never compared.
        properties: facts about the samples that later stages and the loader need (resolution, fingerprints).
    """

    stage: str
    config: dict[str, Any]
    versions: dict[str, str]
    properties: dict[str, Any] = field(default_factory=dict)


def write_shard(
    folder: Path, unit: str, outcomes: Iterable[Sample | Drop], origin: Origin, inputs: str
) -> dict[str, Any]:
    """Writes UNIT.tar and then UNIT.json into `folder`; returns the sidecar.

    A unit whose inputs were all dropped has a sidecar and no tar. Tars are reproducible: the same samples give
    the same bytes.

    Args:
        inputs: digest of the unit's inputs, to notice when they change.
    """
    drops: list[Drop] = []
    keys: list[str] = []
    layouts: dict[str, dict[str, Any]] = {}
    temporary = temporary_path(folder, f"{unit}.tar")
    with temporary.open("wb") as stream:
        with webdataset.TarWriter(stream, encoder=False, mtime=0, compress=False) as writer:
            for outcome in outcomes:
                if isinstance(outcome, Drop):
                    drops.append(outcome)
                    continue
                check_key(outcome.key)
                _note_layouts(layouts, outcome)
                writer.write({"__key__": outcome.key, **outcome.members})
                keys.append(outcome.key)
        stream.flush()
        os.fsync(stream.fileno())
    sidecar = {
        "format": FORMAT,
        "sample_schema": SCHEMA,
        "unit": unit,
        "stage": origin.stage,
        "config": origin.config,
        "versions": origin.versions,
        "properties": origin.properties,
        "inputs": inputs,
        "count": len(keys),
        "drops": count_drops(drops),
        "dropped": [vars(drop) for drop in drops],
        "arrays": layouts,
        "bytes": temporary.stat().st_size if keys else 0,
        "sha256": file_digest(temporary) if keys else "",
        "keys": keys,
        "members": _member_offsets(temporary, keys),
    }
    tar = folder / f"{unit}.tar"
    if keys:
        temporary.replace(tar)
    else:
        temporary.unlink()
        tar.unlink(missing_ok=True)
    write_json(folder / f"{unit}.json", sidecar)
    return sidecar


def _member_offsets(tar: Path, keys: list[str]) -> dict[str, list[tuple[int, int]]]:
    """By suffix, (offset, size) in bytes for each key, (-1, 0) where a key has no such member."""
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
    """Keeps dtype and shape of each .npy member; one unit holds one layout per suffix."""
    for suffix, content in sample.members.items():
        if not suffix.endswith(".npy"):
            continue
        layout = npy_layout(content)
        expected = layouts.setdefault(suffix, layout)
        if layout != expected:
            raise ShardError(f"{sample.key}.{suffix} is {layout}, the samples before it in this unit are {expected}")


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
    """Reads one sidecar.

    Raises:
        ShardError: for a file that is no sidecar, or one of another format or sample schema.
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


def read_sidecars(folder: Path, pattern: str = "unit-*.json") -> dict[str, dict[str, Any]]:
    """The sidecars of a folder by unit name, sorted; all of them, or those whose file name fits `pattern`."""
    return {path.stem: read_sidecar(path) for path in sorted(folder.glob(pattern))}


def read_samples(folder: Path, sidecar: dict[str, Any]) -> Iterator[Sample | Drop]:
    """All members of all samples of a shard; what is not there in full is a drop of the kind "damage"."""
    tar = folder / f"{sidecar['unit']}.tar"
    try:
        stream = tar.open("rb")
    except OSError as error:
        yield from (Drop(key, "shard cannot be opened", "damage", str(error)) for key in sidecar["keys"])
        return
    with stream:
        for row, key in enumerate(sidecar["keys"]):
            spans = {suffix: column[row] for suffix, column in sidecar["members"].items() if column[row][0] >= 0}
            members = {suffix: os.pread(stream.fileno(), size, offset) for suffix, (offset, size) in spans.items()}
            if all(len(members[suffix]) == size for suffix, (_, size) in spans.items()):
                yield Sample(key, members)
            else:
                yield Drop(key, "truncated shard", "damage", str(tar))


def is_whole(folder: Path, sidecar: dict[str, Any]) -> bool:
    """Whether the tar that a sidecar describes is there in full length."""
    if sidecar["count"] == 0:
        return True
    tar = folder / f"{sidecar['unit']}.tar"
    return tar.is_file() and tar.stat().st_size == sidecar["bytes"]


def write_manifest(folder: Path, sidecars: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Rebuilds manifest.json, which marks the whole folder as finished, from sidecars; returns it."""
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
        "units": [{name: sidecar[name] for name in _LISTED} for sidecar in sidecars.values()],
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def total_drops(sidecars: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Drops by kind and reason, summed over sidecars."""
    return count_drops(Drop(**drop) for sidecar in sidecars for drop in sidecar["dropped"])


def read_finished(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Sidecars by unit of a folder whose stage has finished: what the next stage and the loader start from.

    Raises:
        ShardError: for a folder that is missing, holds no shards, holds tars without sidecars, or whose stage
            has not finished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(f"no folder of shards at {folder}: give the OUT folder of data.caption or data.encode")
    tars = {path.stem for path in folder.glob("*.tar")}
    sidecars = read_sidecars(folder)
    bare = sorted(tars - set(sidecars))
    if bare:
        raise ShardError(
            f"{folder} holds tars without a sidecar, e.g. {bare[0]}.tar: foreign tars, or a stage that was killed; "
            "run the stage that makes this folder again with the same command"
        )
    if not sidecars:
        raise ShardError(f"{folder} holds no shards (looked for unit-*.tar with unit-*.json); run data.caption first")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ShardError(
            f"{folder} has {len(sidecars)} finished units and no {MANIFEST}: its stage has not finished; "
            "run it again with the same command"
        )
    listed = {unit["unit"] for unit in json.loads(manifest.read_text("utf-8"))["units"]}
    if listed != set(sidecars):
        lost, new = sorted(listed - set(sidecars))[:3], sorted(set(sidecars) - listed)[:3]
        raise ShardError(
            f"{folder}/{MANIFEST} and the sidecars disagree (listed and not there: {lost}; "
            f"there and not listed: {new}); run the stage again with the same command"
        )
    return sidecars


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically: temporary name, fsync, rename, fsync of the folder."""
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text atomically: temporary name, fsync, rename, fsync of the folder.

    File names that are not UTF-8 reach here as lone surrogates; they are written as JSON escapes them.
    """
    temporary = temporary_path(path.parent, path.name)
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of processes that are gone: dead ones of this machine, and any older than a day."""
    for path in folder.glob(".*.tmp"):
        host, pid = path.name.split(".")[-3:-1]
        dead = host == _host() and not Path(f"/proc/{pid}").exists() if Path("/proc").is_dir() else False
        if dead or time.time() - path.stat().st_mtime > _STALE_SEC:
            path.unlink(missing_ok=True)


def temporary_path(folder: Path, name: str) -> Path:
    """Where a file is written before it is renamed to `name`."""
    # A leading dot keeps `*.tar` and `*.json` from matching; host and process keep two runs apart.
    return folder / f".{name}.{_host()}.{os.getpid()}.tmp"


def _host() -> str:
    return socket.gethostname().split(".")[0] or "host"
