"""TurboEdit's claim about instructions, judged along the sweeps of both methods.

Its instructive setting keeps more of the background than InstructPix2Pix at similar text similarity (table 3). So PSNR
outside the mask is compared where both have the same mean CLIP similarity, and also where as many edits happened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.metrics.intervals import Interval
from eval.scene_edits.sweeps import Floats, Sweep, equal_success, front
from eval.scene_edits.trial import Trial

CLAIM = "By instructions, TurboEdit keeps more of the background than InstructPix2Pix at similar text similarity."
SOURCE = "Wu et al. 2024, table 3"

ENVELOPE = "instruct_pix2pix"
"""The settings of InstructPix2Pix that none of its others beats in both figures on validation, as one sweep."""

NUM_RESAMPLES = 2000

Measure = Literal["clip", "changed"]
MEASURES: tuple[Measure, ...] = ("clip", "changed")
Verdict = Literal["confirmed", "not confirmed", "contradicted"]


@dataclass(frozen=True)
class Comparison:
    """PSNR outside the mask of TurboEdit and of InstructPix2Pix where both have equally much of a measure.

    Args:
        against: name of one s_T's curve, or ENVELOPE.
        measure: that is equal.
        level: the mean of it at which they are compared.
        ours, baseline: PSNR in dB.
        gain: ours - baseline in dB, resampled over the edits, the same for both.
        our_range, their_range: least and largest mean of the measure along each sweep.
    """

    against: str
    measure: Measure
    level: float
    ours: float
    baseline: float
    gain: Interval
    our_range: tuple[float, float]
    their_range: tuple[float, float]

    @property
    def overlap(self) -> bool:
        """Whether some mean of the measure is reached by both; else each is taken where it is nearest to the other."""
        return max(self.our_range[0], self.their_range[0]) <= min(self.our_range[1], self.their_range[1])

    @property
    def verdict(self) -> Verdict:
        """By this comparison alone; a method that never reaches any level of the other wins nothing."""
        if self.gain.low > 0 and self.our_range[1] >= self.their_range[0]:
            return "confirmed"
        if self.gain.high < 0 and self.their_range[1] >= self.our_range[0]:
            return "contradicted"
        return "not confirmed"

    def to_dict(self) -> dict[str, Any]:
        """JSON, but for nan."""
        return {
            "against": self.against,
            "measure": self.measure,
            "verdict": self.verdict,
            "overlap": self.overlap,
            "level": self.level,
            "ours": self.ours,
            "baseline": self.baseline,
            "gain": self.gain.to_dict(),
            "our_range": self.our_range,
            "their_range": self.their_range,
        }


def judge_claim(
    ours: Trial,
    strength: float,
    rivals: Mapping[str, Trial],
    validation: Mapping[str, Trial],
    types: Sequence[str],
) -> tuple[Comparison, ...]:
    """TurboEdit against the envelope of InstructPix2Pix's settings and against each of its curves.

    The first comparison, at equal CLIP similarity with the envelope, decides.

    Args:
        strength: of TurboEdit, whose level it is where both reach it.
        rivals: trials of one s_T each, by name; validation: those on validation, which say what the envelope is, as
            the best of many settings on the test edits themselves would be too good.
        types: of edits that `changed` counts.
    """
    at = ours.strengths.index(strength)
    found = []
    for measure in MEASURES:
        own = sweep_of((ours,), measure, types)
        everything = sweep_of(tuple(rivals.values()), measure, types)
        tried = sweep_of([validation[name] for name in rivals], measure, types)
        best = front(np.nanmean(tried.changed, 1), np.nanmean(tried.psnr, 1))
        curves = {ENVELOPE: Sweep(everything.changed[best], everything.psnr[best])}
        curves |= {name: sweep_of((trial,), measure, types) for name, trial in rivals.items()}
        found.append([compare(own, curve, at, name, measure) for name, curve in curves.items()])
    return tuple(comparison for pair in zip(*found, strict=True) for comparison in pair)


def compare(ours: Sweep, baseline: Sweep, chosen: int, against: str, measure: Measure) -> Comparison:
    """Two sweeps at the level of our `chosen` point, or at the nearest one that both reach."""
    found = equal_success(ours, baseline, chosen, NUM_RESAMPLES, within=True)
    assert found is not None, f"no edit has a {measure} and a PSNR outside its mask"
    ranges = (_range(ours.changed), _range(baseline.changed))
    return Comparison(against, measure, found.changed, found.ours, found.baseline, found.interval, *ranges)


def sweep_of(trials: Sequence[Trial], measure: Measure, types: Sequence[str]) -> Sweep:
    """The settings of all `trials` in one sweep, success or similarity against PSNR outside."""
    sweeps = [trial.sweep(types) for trial in trials]
    levels = [sweep.changed for sweep in sweeps]
    if measure == "clip":
        levels = [np.array([[v.clip for v in trial.verdicts[s]] for s in trial.strengths]) for trial in trials]
    return Sweep(np.concatenate(levels), np.concatenate([sweep.psnr for sweep in sweeps]))


def _range(values: Floats) -> tuple[float, float]:
    means = np.nanmean(values, 1)
    return float(means.min()), float(means.max())
