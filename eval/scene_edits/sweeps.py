"""How strong to edit, and how methods compare at equal success: choices along sweeps over strength."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.metrics.intervals import Interval
from eval.metrics.pixels import Estimate

KEPT_FLOOR = 0.9
"""Share of the untouched attributes that a method has to keep for its strength to be eligible."""

Floats = NDArray[np.float64]
Setting = TypeVar("Setting")
"""A strength, or whatever else is to be chosen."""


def choose_strength(changed: Mapping[Setting, Estimate], kept: Mapping[Setting, Estimate]) -> Setting:
    """The strength with the highest `changed` among those that keep KEPT_FLOOR by at least one standard error.

    The margin is there because the choice is made on few edits. Ties go to the strength that keeps more; where no
    strength is eligible, the one that keeps most is taken.
    """
    eligible = [s for s, estimate in kept.items() if estimate.mean - _known(estimate.se) >= KEPT_FLOOR]
    if not eligible:
        return max(kept, key=lambda s: kept[s].mean)
    return max(eligible, key=lambda s: (changed[s].mean, kept[s].mean))


def _known(se: float) -> float:
    return 0.0 if np.isnan(se) else se


@dataclass(frozen=True)
class Sweep:
    """One method on N edits at S strengths: `changed` (nan where a type does not count) and `psnr` outside, [S, N].

    Another measure that grows with the strength may stand in the place of `changed`.
    """

    changed: Floats
    psnr: Floats


@dataclass(frozen=True)
class EqualSuccess:
    """PSNR outside the mask of two methods where both change equally much.

    Args:
        changed: Share of edits that happened at which they are compared.
        ours, baseline: PSNR in dB.
        gain: ours - baseline in dB, its standard error from resampling the edits.
        interval: Interval of the gain, from the same resamples.
    """

    changed: float
    ours: float
    baseline: float
    gain: Estimate
    interval: Interval

    def to_dict(self) -> dict[str, object]:
        """JSON."""
        return {"changed": self.changed, "ours": self.ours, "baseline": self.baseline, "gain": self.gain.to_dict()}


def psnr_at(success: float, changed: Floats, psnr: Floats) -> float:
    """The best PSNR at which a method changes `success` of the edits, from means [S] of its sweep.

    Points that another point beats in both are left out; between the others it is interpolated linearly. Below the
    least success it is that of the best point there is.

    Raises ValueError if the method never changes so much.
    """
    if success > changed.max():
        raise ValueError(f"the method changes at most {changed.max():.3f} of the edits, not {success:.3f}")
    points = front(changed, psnr)
    return float(np.interp(success, changed[points], psnr[points]))


def front(changed: Floats, psnr: Floats) -> list[int]:
    """The points [S] that no other beats in both, from the least changed on."""
    order = np.lexsort((-psnr, -changed))  # most changed first
    found: list[int] = []
    for point in order:
        if not found or psnr[point] > psnr[found[-1]]:
            found.append(int(point))
    return found[::-1]


def equal_success(
    ours: Sweep, baseline: Sweep, chosen: int, num_resamples: int = 400, seed: int = 0, within: bool = False
) -> EqualSuccess | None:
    """Two methods at the success of our `chosen` strength, or at the most that both reach; None if nothing counts.

    Args:
        chosen: index of our strength in the sweep.
        num_resamples: bootstrap samples over the edits (the same edits for both methods).
        within: never below the least success of either, where their sweeps overlap.
    """
    countable = ~np.isnan(ours.changed[chosen])
    if not countable.any() or np.isnan(ours.psnr).all():
        return None

    def compare(rows: NDArray[np.integer]) -> tuple[float, float, float]:
        means = [(np.nanmean(s.changed[:, rows], 1), np.nanmean(s.psnr[:, rows], 1)) for s in (ours, baseline)]
        level = float(means[0][0][chosen])
        if within:
            level = max(level, *(float(changed.min()) for changed, _ in means))
        level = min(level, *(float(changed.max()) for changed, _ in means))
        return level, psnr_at(level, *means[0]), psnr_at(level, *means[1])

    num = ours.changed.shape[1]
    everyone = np.arange(num)
    level, high, low = compare(everyone)
    rng = np.random.default_rng(seed)
    # Types take turns in a set, so a resample that misses all countable edits does not occur in sets of a useful size.
    resamples = rng.integers(num, size=(num_resamples, num))
    gains = [b - c for _, b, c in (compare(rows) for rows in resamples if countable[rows].any())]
    gain, error = high - low, float(np.std(gains, ddof=1))
    return EqualSuccess(level, high, low, Estimate(gain, error, num), Interval.around(gain, gains, num))
