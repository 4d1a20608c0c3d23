"""What a run could not read: counted by reason, listed in a file, and too much of it stops the run."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# A share says nothing about the first few samples.
_MIN_SAMPLES = 100


class LoaderHealth:
    """Counts the samples that the loader had to replace.

    Args:
        max_bad_share: share of replaced samples over which `record` raises, once 100 samples were read.
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
        if self.num_samples >= _MIN_SAMPLES and num_bad > self.max_bad_share * self.num_samples:
            raise ValueError(
                f"{num_bad} of {self.num_samples} samples could not be read ({dict(self.reasons)}), more than "
                f"data.max_bad_share {self.max_bad_share}; make the shards again, or raise data.max_bad_share"
                + (f". They are listed in {self.quarantine}" if self.quarantine else "")
            )

    def _read_listed(self) -> set[str]:
        if self.quarantine is None or not self.quarantine.is_file():
            return set()
        lines = self.quarantine.read_text("utf-8").split("\n")[:-1]  # a killed run may leave half a last line
        return {json.loads(line)["key"] for line in lines if line}

    def _list(self, key: str, reason: str) -> None:
        if key in self._listed:
            return
        self._listed.add(key)
        logger.warning("sample %s could not be read (%s); another one takes its place", key, reason)
        if self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            with self.quarantine.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "reason": reason}) + "\n")
