"""Shards read through before a training: whether their bytes are those that a stage wrote."""

import logging
from collections.abc import Sequence
from pathlib import Path

from data.jobs.files import file_digest
from data.jobs.progress import Progress
from data.jobs.sharing import Ranks
from data.shards.shard import read_manifest

logger = logging.getLogger(__name__)


def damaged_shards(folder: str | Path, ranks: Ranks) -> list[str]:
    """Read a rank's share of the shards, every n-th, and compare them with the checksums of their manifest.

    Returns:
        Names of the tars that are gone, cannot be read, or hold other bytes than were written.

    Raises:
        ShardError: for a folder that is missing or unfinished.
    """
    units = {unit["unit"]: unit for unit in read_manifest(folder)["units"] if unit["count"]}
    mine = list(units)[ranks.rank :: ranks.world_size]
    found = []
    with Progress("checksums", dict.fromkeys(mine, 1), shown=ranks.rank == 0, unit="shard") as progress:
        progress.note(())
        for name in mine:
            try:
                whole = file_digest(Path(folder) / f"{name}.tar") == units[name]["sha256"]
            except OSError as error:
                logger.warning("%s.tar cannot be read: %s", name, error.strerror)
                whole = False
            if not whole:
                found.append(f"{name}.tar")
            progress.tick()
    return found


def damage_words(folder: str | Path, damaged: Sequence[str]) -> str:
    """The damaged shards of a folder in a sentence that says what to do."""
    more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    return (
        f"data.verify: {', '.join(damaged[:3])}{more} in {folder} do not hold what was written; remove each with the "
        ".json of its name and run the stage that made the folder again, or copy it anew"
    )
