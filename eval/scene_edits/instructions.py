"""TurboEdit's claim about instructions, judged along the sweeps of both methods.

Its instructive setting keeps more of the background than InstructPix2Pix at similar text similarity (table 3). So PSNR
outside the mask is compared where both have the same mean CLIP similarity, and also where as many edits happened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.claims.judging import Verdict, verdict
from eval.metrics.intervals import Interval
from eval.scene_edits.result import EditorResult
from eval.scene_edits.sweeps import Floats, Sweep, equal_success, front

CLAIM = "By instructions, TurboEdit keeps more of the background than InstructPix2Pix at similar text similarity."
SOURCE = "Wu et al. 2024, table 3"

ENVELOPE = "instruct_pix2pix"
"""The settings of InstructPix2Pix that none of its others beats in both figures on validation, as one sweep."""

NUM_RESAMPLES = 2000

EqualMeasure = Literal["clip", "changed"]
EQUAL_MEASURES: tuple[EqualMeasure, ...] = ("clip", "changed")


@dataclass(frozen=True)
class EqualLevel:
    """PSNR outside the mask of TurboEdit and of InstructPix2Pix where both have equally much of a measure.

    Args:
        against: Name of one s_T's curve, or ENVELOPE.
        measure: Measure that is equal.
        level: Mean of the measure at which they are compared.
        ours: PSNR of TurboEdit in dB.
        baseline: PSNR of InstructPix2Pix in dB.
        gain: Difference ours - baseline in dB, resampled over the edits, the same for both.
        our_range: Least and largest mean of the measure along TurboEdit's sweep.
        their_range: Least and largest mean of the measure along InstructPix2Pix's sweep.
    """

    against: str
    measure: EqualMeasure
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
        """Outcome of this comparison alone; a method that never reaches any level of the other wins nothing."""
        reached = {
            "confirmed": self.our_range[1] >= self.their_range[0],
            "contradicted": self.their_range[1] >= self.our_range[0],
        }
        found = verdict([self.gain])
        return found if reached.get(found, True) else "not confirmed"

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
    ours: EditorResult,
    strength: float,
    rivals: Mapping[str, EditorResult],
    validation: Mapping[str, EditorResult],
    types: Sequence[str],
) -> tuple[EqualLevel, ...]:
    """TurboEdit against the envelope of InstructPix2Pix's settings and against each of its curves.

    The first comparison, at equal CLIP similarity with the envelope, decides.

    Args:
        strength: Strength of TurboEdit, whose level it is where both reach it.
        rivals: Results of one s_T each, by name.
        validation: Results of the rivals on validation, which say what the envelope is, as the best of many settings
            on the test edits themselves would be too good.
        types: Types of edits that `changed` counts.
    """
    at = ours.strengths.index(strength)
    found = []
    for measure in EQUAL_MEASURES:
        own = sweep_of((ours,), measure, types)
        everything = sweep_of(tuple(rivals.values()), measure, types)
        tried = sweep_of([validation[name] for name in rivals], measure, types)
        best = front(np.nanmean(tried.changed, 1), np.nanmean(tried.psnr, 1))
        curves = {ENVELOPE: Sweep(everything.changed[best], everything.psnr[best])}
        curves |= {name: sweep_of((result,), measure, types) for name, result in rivals.items()}
        found.append([compare(own, curve, at, name, measure) for name, curve in curves.items()])
    return tuple(comparison for pair in zip(*found, strict=True) for comparison in pair)


def compare(ours: Sweep, baseline: Sweep, chosen: int, against: str, measure: EqualMeasure) -> EqualLevel:
    """Two sweeps at the level of our `chosen` point, or at the nearest one that both reach."""
    found = equal_success(ours, baseline, chosen, NUM_RESAMPLES, within=True)
    assert found is not None, f"no edit has a {measure} and a PSNR outside its mask"
    ranges = (_range(ours.changed), _range(baseline.changed))
    return EqualLevel(against, measure, found.changed, found.ours, found.baseline, found.interval, *ranges)


def sweep_of(by_editor: Sequence[EditorResult], measure: EqualMeasure, types: Sequence[str]) -> Sweep:
    """The settings of all `by_editor` in one sweep, success or similarity against PSNR outside."""
    sweeps = [result.sweep(types) for result in by_editor]
    levels = [sweep.changed for sweep in sweeps]
    if measure == "clip":
        levels = [np.array([[v.clip for v in result.scores[s]] for s in result.strengths]) for result in by_editor]
    return Sweep(np.concatenate(levels), np.concatenate([sweep.psnr for sweep in sweeps]))


def _range(values: Floats) -> tuple[float, float]:
    means = np.nanmean(values, 1)
    return float(means.min()), float(means.max())
