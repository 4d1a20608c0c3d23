"""Divides a finished folder of shards into training and validation, by what its pictures are.

    python -m data.split SHARDS OUT --validation 0.02      # OUT/train and OUT/validation, 2 % of the samples
    python -m data.split SHARDS OUT --validation 500       # 500 samples

SHARDS is the OUT folder of data.caption, data.edit_pairs or data.encode; both sides are folders of the same kind. Equal
pictures, pairs of one caption, and files named after another (a.jpg, a-1.jpg) lie on one side. Run the same command
again after a kill.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from data.jobs.command import run
from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.shards.sample import SampleInfo
from data.shards.shard import MANIFEST, Drop, Origin, Sample, read_manifest, read_samples, read_sidecar
from data.shards.sides import Placed, SplitConfig, divide_sides
from data.shards.stage import NOT_TAKEN, QUARANTINE, Unit, divide, run_stage

logger = logging.getLogger(__name__)

_THREADS = min(8, os.cpu_count() or 1)
_OF_SHARDS = (MANIFEST, QUARANTINE, NOT_TAKEN, "inspection")
"""What lies in a folder of shards beside the units."""


def split_shards(source: str | Path, out: str | Path, config: SplitConfig) -> dict[str, dict[str, Any]]:
    """Write OUT/train and OUT/validation; returns their manifests by these names.

    Args:
        source: finished folder of shards, captioned, encoded or of edit pairs.
        out: folder of the two; new, or left by the same command.
        config: options of the split.

    Raises:
        ShardError: for a folder that holds no finished shards, a side that would be empty, or something else in the
            folder of a side; see also `data.shards.stage.run_stage`.
    """
    folder = Path(source)
    manifest = read_manifest(folder)
    sides = {name: Path(out) / name for name in ("train", "validation")}
    for side in sides.values():
        _check_room(side, folder)
    found = divide_sides(_placed(folder, manifest), config)
    if found.num_together:
        words = "%d samples stay with others to which they belong; the largest group has %d"
        logger.info(words, found.num_together, found.num_largest)
    contents = {unit["unit"]: bytes.fromhex(unit["sha256"]) for unit in manifest["units"]}
    unit_size = max(unit["count"] for unit in manifest["units"])
    manifests = {}
    for name, samples in (("train", found.train), ("validation", found.validation)):
        keys = [f"{placed.unit} {placed.row:09d}" for placed in samples]
        units = divide(keys, samples, unit_size, [contents[placed.unit] for placed in samples])
        logger.info("%s: %d of %d samples to %s", name, len(samples), manifest["count"], sides[name])
        manifests[name] = run_stage(
            units,
            sides[name],
            partial(_copied, folder, manifest["stage"] if manifest["checks"] else None),
            _origin(folder, manifest, config, name),
            config.max_damage,
            counted="sample",
            title=name,
        )
    return manifests


def _check_room(side: Path, source: Path) -> None:
    """Raises ShardError for a folder that is the input, or holds what no split has left there."""
    if side.resolve() == source.resolve():
        raise ShardError(f"SHARDS {source} is a side of OUT itself; give another OUT folder")
    names = sorted(path.name for path in side.iterdir()) if side.is_dir() else []
    strange = [name for name in names if not name.startswith((".", "unit-")) and name not in _OF_SHARDS]
    if strange:
        raise ShardError(f"{side} holds other things already, such as {strange[0]}; give another OUT folder")


def _placed(folder: Path, manifest: dict[str, Any]) -> list[Placed]:
    """All samples of a folder, in its order."""
    units = sorted(unit["unit"] for unit in manifest["units"] if unit["count"])
    with ThreadPoolExecutor(_THREADS) as pool:
        shards = in_order(pool, partial(_of_shard, folder), units, ahead=2 * _THREADS)
        return [placed for shard in shards for placed in shard]


def _of_shard(folder: Path, unit: str) -> list[Placed]:
    """The samples of a shard, of which KEY.json alone is read."""
    sidecar = read_sidecar(folder / f"{unit}.json")
    jsons = {**sidecar, "members": {"json": sidecar["members"]["json"]}}
    infos = [_info(sample) for sample in read_samples(folder, jsons)]
    return [
        Placed(unit, row, info.content_hash, info.source) if isinstance(info, SampleInfo) else Placed(unit, row, "", "")
        for row, info in enumerate(infos)
    ]


def _info(sample: Sample | Drop) -> SampleInfo | Drop:
    """KEY.json of a sample, or why it cannot be read."""
    if isinstance(sample, Drop):
        return sample
    try:
        info = SampleInfo.from_json(sample.members["json"])
    except (KeyError, TypeError, ValueError) as error:
        return Drop(sample.key, "bad json", "damage", str(error))
    return info if info.key == sample.key else Drop(sample.key, "another sample's json", "damage", info.key)


def _copied(folder: Path, noted_by: str | None, unit: Unit) -> Iterator[Sample | Drop]:
    """The samples of a new shard as they are stored, with what the stage `noted_by` noted about them, if anything."""
    for name, placed in groupby(unit.items, key=lambda sample: sample.unit):
        rows = [sample.row for sample in placed]
        for sample in read_samples(folder, read_sidecar(folder / f"{name}.json"), rows):
            info = _info(sample)
            if isinstance(sample, Drop):
                yield sample
            elif isinstance(info, Drop):
                yield info
            else:
                checks, more = _noted(info, noted_by)
                yield Sample(sample.key, sample.members, checks, sample.size, more)


def _noted(info: SampleInfo, noted_by: str | None) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """What a stage has noted about a sample, and about its other captions."""
    if noted_by is None:
        return {}, ()
    if noted_by == "encode":
        return ({"captions": 1 + len(info.other_captions)} if info.other_captions else {}), ()
    return info.checks, tuple(other.checks for other in info.other_captions)


def _origin(folder: Path, manifest: dict[str, Any], config: SplitConfig, side: str) -> Origin:
    """What made the samples, and that they are one side of a split: for later stages they are what they were."""
    split = {
        "side": side,
        "validation": config.validation,
        "together": config.together,
        "seed": config.seed,
        **({"of": manifest["config"]["split"]} if "split" in manifest["config"] else {}),
    }
    made_by = read_sidecar(folder / f"{manifest['units'][0]['unit']}.json")["versions"]
    return Origin(manifest["stage"], {**manifest["config"], "split": split}, made_by, manifest["properties"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.split", split_shards, arguments, positional=True)


if __name__ == "__main__":
    main()
