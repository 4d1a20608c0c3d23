"""Samples that a run could not read: counted by reason, listed in a file, and too much of it stops the run."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# A share says nothing about the first few samples: they count as so many. What would stop a run after them stops it at
# once, before a checkpoint holds what was learned from the substitutes.
_MIN_SAMPLES = 100


class LoaderHealth:
    """Counts the samples that the loader had to replace.

    Args:
        max_bad_share: share of replaced samples over which `record` raises; the first 100 samples count as 100. With 0
            the first replaced sample stops the run.
        quarantine: JSON-lines file that lists each replaced key once; None to list nothing.
    """

    def __init__(self, max_bad_share: float = 0.01, quarantine: str | Path | None = None) -> None:
        self.max_bad_share = max_bad_share
        self.quarantine = Path(quarantine) if quarantine is not None else None
        self.num_samples = 0
        self.reasons: Counter[str] = Counter()
        self._listed = self._read_listed()

    def record(self, batch: dict[str, Any]) -> None:
        """Counts a batch of `data.loader.batches`.

        Raises:
            ValueError: when more than `max_bad_share` of the samples had to be replaced.
        """
        self.num_samples += len(batch["key"])
        for key, reason in batch["substituted"]:
            self.reasons[reason] += 1
            self._list(key, reason)
        num_bad = self.reasons.total()
        if num_bad > self.max_bad_share * max(self.num_samples, _MIN_SAMPLES):
            raise ValueError(
                f"{num_bad} of {self.num_samples} samples could not be read ({dict(self.reasons)}), more than "
                f"data.max_bad_share {self.max_bad_share}; make the shards again, or raise data.max_bad_share"
                + (f". They are listed in {self.quarantine}" if self.quarantine else "")
            )

    def _read_listed(self) -> set[str]:
        if self.quarantine is None or not self.quarantine.is_file():
            return set()
        *lines, cut_off = self.quarantine.read_text("utf-8").split("\n")
        if cut_off:  # by the death of an earlier run; the next line must not be glued to it
            with self.quarantine.open("a", encoding="utf-8") as stream:
                stream.write("\n")
        return {record["key"] for line in lines if (record := _parse(line))}

    def _list(self, key: str, reason: str) -> None:
        if key in self._listed:
            return
        self._listed.add(key)
        logger.warning("sample %s could not be read (%s); another one takes its place", key, reason)
        if self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            with self.quarantine.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "reason": reason}) + "\n")


def _parse(line: str) -> dict[str, str] | None:
    """A line of the quarantine file; None if it was cut off."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
