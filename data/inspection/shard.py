"""One shard: its sidecar, its tar, and the KEY.json in it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.inspection.findings import Kind
from data.jobs.errors import ShardError
from data.shards.sample import IMAGES, SOURCE_IMAGES, SampleInfo
from data.shards.shard import file_digest, read_sidecar

AGAIN = "run the command that made this folder again, with the same options: it makes what is missing"
"""What to do about shards that are not there or not whole."""

_ANEW = f"remove these tars and the .json beside them, then {AGAIN}"

MIXED = Kind("the shards were not made together", "make them again together into another folder")
BAD_SIDECAR = Kind(
    "a sidecar cannot be used",
    f"remove it, then {AGAIN}; if another version of this code made the shards, {MIXED.cure}",
)
LOST_TAR = Kind("a tar is missing", AGAIN)
WRONG_SIZE = Kind("a tar has not the size that its sidecar says (cut short, or another file)", AGAIN)
WRONG_CHECKSUM = Kind("a tar's bytes have changed since it was written", _ANEW)
UNREADABLE = Kind("a tar cannot be read", f"repair the disk, or {_ANEW}")
BAD_JSON = Kind("a KEY.json is not what this code reads", f"if the checksums are right, {MIXED.cure}; else {_ANEW}")
LOST_MEMBER = Kind("a sample lacks a member that others have", MIXED.cure)

_FORM = {
    "unit": str,
    "stage": str,
    "config": dict,
    "versions": dict,
    "properties": dict,
    "arrays": dict,
    "count": int,
    "drops": dict,
    "dropped": list,
    "checks": dict,
    "bytes": int,
    "sha256": str,
    "keys": list,
    "members": dict,
}
"""What a sidecar is made of."""


@dataclass(frozen=True)
class Shard:
    """Facts about one shard.

    Args:
        sidecar: the shard's sidecar; empty if that cannot be used.
        sidecar_bytes: size of that file.
        found: what is wrong, and where.
        keys: digests of the samples' keys, uint64 [count].
        pictures: digests of their content hashes, uint64 [count], 0 for none; empty where no KEY.json was read.
    """

    sidecar: dict[str, Any]
    sidecar_bytes: int
    found: list[tuple[Kind, str]]
    keys: np.ndarray
    pictures: np.ndarray


def inspect_shard(path: Path, checksums: bool) -> Shard:
    """Checks the shard of a sidecar.

    Args:
        path: place of the sidecar, UNIT.json, with UNIT.tar beside it.
        checksums: read every byte of the tar, and every KEY.json.
    """
    nothing = np.empty(0, np.uint64)
    try:
        sidecar = read_sidecar(path)
        _check_types(path, sidecar)
        _check_form(path, sidecar)
    except (ShardError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        return Shard({}, 0, [(BAD_SIDECAR, str(error) or repr(error))], nothing, nothing)
    keys = np.array([hash64(key.encode()) for key in sidecar["keys"]], np.uint64)
    size = path.stat().st_size
    fault = _fault_of_tar(path.with_suffix(".tar"), sidecar, checksums)
    if fault is not None:
        return Shard(sidecar, size, [fault], keys, nothing)
    found = _lost_members(sidecar)
    pictures = nothing
    if checksums and sidecar["count"]:
        faults, pictures = _check_jsons(path.with_suffix(".tar"), sidecar)
        found += faults
    return Shard(sidecar, size, found, keys, pictures)


def _check_types(path: Path, sidecar: dict[str, Any]) -> None:
    """Raises ShardError, KeyError or AttributeError for a sidecar whose entries are missing or of other types."""
    for name, kind in _FORM.items():
        if not isinstance(sidecar[name], kind):
            raise ShardError(f"{path.name}: {name} is {sidecar[name]!r}, expected a {kind.__name__}")
    for figures in (*sidecar["drops"].values(), *sidecar["checks"].values()):
        if not all(isinstance(value, int | float) for value in figures.values()):
            raise ShardError(f"{path.name}: {figures} are no numbers")
    for layout in sidecar["arrays"].values():
        shapes = layout["shapes"].values() if "shapes" in layout else [layout["shape"]]
        if not layout["dtype"] or not all(isinstance(shape, list) for shape in shapes):
            raise ShardError(f"{path.name}: arrays without a shape")
    if not all(len(size) == 2 and all(isinstance(side, int) for side in size) for size in sidecar.get("sizes", [])):
        raise ShardError(f"{path.name}: sizes of pictures that are no width and height")


def _check_form(path: Path, sidecar: dict[str, Any]) -> None:
    """Raises ShardError, KeyError, TypeError or ValueError for a sidecar that contradicts itself."""
    if sidecar["unit"] != path.stem:
        raise ShardError(f"{path.name} describes {sidecar['unit']}")
    columns = [sidecar["keys"], *sidecar["members"].values(), sidecar.get("sizes") or sidecar["keys"]]
    lengths = {*map(len, columns), int(sidecar["count"])}
    if len(lengths) != 1:
        raise ShardError(f"{path.name} says {sidecar['count']} samples and lists {sorted(lengths)}")
    if sidecar["count"] and "json" not in sidecar["members"]:
        raise ShardError(f"{path.name} lists no KEY.json")
    for column in sidecar["members"].values():
        for offset, size in column:
            if offset + size > sidecar["bytes"]:
                raise ShardError(f"{path.name} lists a member beyond the end of its tar")
    kinds = {*sidecar["drops"], *(drop["kind"] for drop in sidecar["dropped"] if drop["source"] and drop["reason"])}
    if not kinds <= {"damage", "policy"}:
        raise ShardError(f"{path.name} lists inputs that were left out as {sorted(kinds)}")


def _fault_of_tar(tar: Path, sidecar: dict[str, Any], checksums: bool) -> tuple[Kind, str] | None:
    """What is wrong with a tar as a whole."""
    if not sidecar["count"]:
        return None
    if not tar.is_file():
        return LOST_TAR, tar.name
    size = tar.stat().st_size
    if size != sidecar["bytes"]:
        return WRONG_SIZE, f"{tar.name}: {size:,} bytes instead of {sidecar['bytes']:,}"
    try:
        changed = checksums and file_digest(tar) != sidecar["sha256"]
    except OSError as error:
        return UNREADABLE, f"{tar.name}: {error.strerror}"
    return (WRONG_CHECKSUM, tar.name) if changed else None


def _lost_members(sidecar: dict[str, Any]) -> list[tuple[Kind, str]]:
    """The samples that lack a member; a picture may have any of the suffixes for pictures."""
    held: dict[str, np.ndarray] = {}
    for suffix, column in sidecar["members"].items():
        what = "picture" if suffix in IMAGES else "source picture" if suffix in SOURCE_IMAGES else suffix
        there = np.array([offset >= 0 for offset, _ in column])
        held[what] = held[what] | there if what in held else there
    return [
        (LOST_MEMBER, f"{sidecar['unit']}: {sidecar['keys'][row]} has no {what}")
        for what, there in held.items()
        for row in np.flatnonzero(~there)
    ]


def _check_jsons(tar: Path, sidecar: dict[str, Any]) -> tuple[list[tuple[Kind, str]], np.ndarray]:
    """Faults in the KEY.json of a shard, and digests of the content hashes that they hold (0 for none)."""
    found = []
    pictures = np.zeros(sidecar["count"], np.uint64)
    with tar.open("rb") as stream:
        for row, (key, (offset, size)) in enumerate(zip(sidecar["keys"], sidecar["members"]["json"], strict=True)):
            if offset < 0:
                continue
            try:
                pictures[row] = hash64(read_info(os.pread(stream.fileno(), size, offset), key).content_hash.encode())
            except ValueError as error:
                found.append((BAD_JSON, f"{sidecar['unit']}: {key}: {error}"))
    return found, pictures


def read_info(content: bytes, key: str) -> SampleInfo:
    """KEY.json of a sample.

    Raises:
        ValueError: if it is not what this code reads, or another sample's.
    """
    try:
        info = SampleInfo.from_json(content)
    except TypeError as error:
        raise ValueError(f"its size or crop is no list ({error})") from error
    if info.key != key:
        raise ValueError(f"it is that of {info.key!r}")
    if not all(isinstance(text, str) for text in (info.caption, info.caption_raw, info.content_hash, info.source)):
        raise ValueError("its caption, content hash or source is no text")
    lengths = (len(info.original_size), len(info.crop))
    if lengths != (2, 4) or not all(isinstance(pixels, int) for pixels in (*info.original_size, *info.crop)):
        raise ValueError(f"its size is {info.original_size} and its crop {info.crop}, expected 2 and 4 whole numbers")
    if not isinstance(info.checks, dict):
        raise ValueError(f"its checks are {info.checks!r}, expected an object")
    return info


def hash64(content: bytes) -> int:
    """Eight bytes that are as good as different for different contents."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
