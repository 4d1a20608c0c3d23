"""Shards of an earlier version, which named what made them in the terms of its libraries, get the names of today."""

import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.jobs.errors import ShardError
from data.jobs.files import write_json
from data.jobs.sharing import locked
from data.shards.shard import Drop, Origin, Sample, is_whole, read_samples, read_sidecar, read_sidecars

logger = logging.getLogger(__name__)

NUM_COMPARED = 4
"""Samples that are encoded anew."""

TOLERANCE = 0.01
"""Largest difference of an array from the stored one as a share of its norm. Storage in float16 makes 0.0005 of it at
most, and another device may round its products to as many digits."""

_NETWORKS = ("vae", "unet", "text_encoders", "clip")
"""Options of a config that are fingerprints."""


def renew(out: Path, origin: Origin, encode: Callable[[str, int], Iterator[Sample | Drop]]) -> None:
    """Give the shards of an earlier version today's fingerprints, if they hold what today's networks make.

    Does nothing to other folders, and to those that were made with other options, which `run_stage` refuses.

    Args:
        out: folder of the shards, which need not be there.
        origin: what they would be made with today.
        encode: (unit, number) -> that many of the unit's outcomes, made anew.

    Raises:
        ShardError: the networks make other arrays than the stored ones.
    """
    renew_names(out, origin, _is_former, _NETWORKS, lambda sidecar: _compare(out, sidecar, encode))


def renew_names(
    out: Path,
    origin: Origin,
    is_former: Callable[[Mapping[str, Any]], bool],
    names: Collection[str],
    compare: Callable[[dict[str, Any]], None],
) -> None:
    """Give the sidecars of an earlier version today's names of what made them.

    Does nothing to other folders, and to those that were made with other options, which `run_stage` refuses.

    Args:
        out: folder of the shards, which need not be there.
        origin: what they would be made with today.
        is_former: whether a sidecar is of the earlier version.
        names: options of a config that are such names.
        compare: raises ShardError if what a sidecar's shard holds is not what is made today.
    """
    first = min(out.glob("unit-*.json"), default=None)
    if first is None or not is_former(read_sidecar(first)):
        return
    with locked(out):
        former = {name: sidecar for name, sidecar in read_sidecars(out).items() if is_former(sidecar)}
        if not former or not all(_fits(sidecar["config"], origin.config, names) for sidecar in former.values()):
            return
        filled = next((sidecar for sidecar in former.values() if sidecar["count"] and is_whole(out, sidecar)), None)
        if filled:
            compare(filled)
        # The first one is the last one written: as long as it is of the earlier version there is work left.
        for name in sorted(former, reverse=True):
            renewed = {"config": origin.config, "properties": origin.properties}
            write_json(out / f"{name}.json", {**former[name], **renewed})
    logger.info("%s was made by an earlier version: compared with what is made today, and given its names", out)


def _is_former(sidecar: Mapping[str, Any]) -> bool:
    from models.fingerprints import is_former_fingerprint  # torch and diffusers take seconds

    return sidecar["stage"] == "encode" and is_former_fingerprint(sidecar["properties"].get("vae_fingerprint"))


def _fits(former: Mapping[str, Any], today: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether two configs say the same, but for the `names` of what made the shards."""
    return former.keys() == today.keys() and all(
        (former[name] is None) == (today[name] is None) if name in names else former[name] == today[name]
        for name in former
    )


def _compare(out: Path, sidecar: dict[str, Any], encode: Callable[[str, int], Iterator[Sample | Drop]]) -> None:
    """Raises ShardError if stored arrays differ from what is made today."""
    stored = {item.key: item for item in islice(read_samples(out, sidecar), NUM_COMPARED) if isinstance(item, Sample)}
    compared = 0
    # As many outcomes as there were inputs up to the last one: some of them may have been dropped.
    for made in encode(sidecar["unit"], NUM_COMPARED + len(sidecar["dropped"])):
        if isinstance(made, Drop) or made.key not in stored:
            continue
        for suffix in sorted(suffix for suffix in made.members if suffix.endswith(".npy")):
            difference = _difference(made.members[suffix], stored[made.key].members.get(suffix))
            compared += 1
            if not difference <= TOLERANCE:
                raise ShardError(
                    f"{out} was made by an earlier version and by other networks than these: {made.key}.{suffix} "
                    f"differs by {difference:.1%} from what is made now (up to {TOLERANCE:.0%} is storage); give the "
                    "networks that made it, or another OUT folder"
                )
    if not compared:
        raise ShardError(
            f"{out} was made by an earlier version, and none of the first samples of {sidecar['unit']} can be made "
            "again to compare them; give another OUT folder"
        )


def _difference(made: bytes, stored: bytes | None) -> float:
    """Distance of two arrays as a share of the first one's norm; infinite where there is no second."""
    if stored is None:
        return float("inf")
    a, b = (np.load(io.BytesIO(content), allow_pickle=False).astype(np.float64) for content in (made, stored))
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1.0))
