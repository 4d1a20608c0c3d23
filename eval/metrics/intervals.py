"""Bootstrap interval of a mean over edits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values with its interval at LEVEL; nan where there are too few values (1 and 2)."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], num_resamples: int = 10_000, seed: int = 0) -> "Interval":
        """Interval of the mean of the values that are not nan, by percentiles of resampled means (Efron 1979).

        Differences between two settings of the same edits give a paired interval: what makes an edit hard in both
        falls out of it.
        """
        kept = np.asarray(values, dtype=float)
        kept = kept[~np.isnan(kept)]
        if len(kept) < 2:
            return cls(float(kept[0]) if len(kept) else np.nan, np.nan, np.nan, len(kept))
        rng = np.random.default_rng(seed)
        means = kept[rng.integers(len(kept), size=(num_resamples, len(kept)))].mean(1)
        return cls.around(float(kept.mean()), means, len(kept))

    @classmethod
    def around(cls, value: float, resampled: Sequence[float] | NDArray[np.float64], n: int) -> "Interval":
        """Interval of any figure of `n` edits, by the percentiles of that figure in resamples of them."""
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(resampled, (tail, 100 - tail))
        return cls(value, float(low), float(high), n)

    @property
    def sign(self) -> int:
        """1 where the interval lies above 0, -1 where it lies below, 0 where it holds 0 or is not known."""
        return int(self.low > 0) - int(self.high < 0)

    def words(self, unit: str) -> str:
        """Mean and interval as people read them, signed."""
        if math.isnan(self.low):
            return "no interval"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] {unit}".rstrip()

    def to_dict(self) -> dict[str, float | int]:
        """JSON, but for nan."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}
