"""How a claim is judged: by differences between settings, each with the interval of its mean."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eval.metrics.intervals import Interval

Outcome = Literal["confirmed", "not confirmed", "not testable here"]
Verdict = Literal["confirmed", "not confirmed", "contradicted"]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper.

    Args:
        id: Name in results.json.
        sentence: The claim in our words.
        source: Section, figure or table of the paper.
        needs: Requirements of its test, said where they are missing.
    """

    id: str
    sentence: str
    source: str
    needs: str = ""


@dataclass(frozen=True)
class Comparison:
    """A comparison of two settings, such as one test of a claim.

    Args:
        words: Sentence that says what is compared with what.
        unit: Unit of `values`.
        values: One value an edit, positive where a claim is right; nan where an edit does not count.
    """

    words: str
    unit: str
    values: Sequence[float]

    @property
    def interval(self) -> Interval:
        """The mean value with its interval."""
        return Interval.of(self.values)


@dataclass(frozen=True)
class ClaimResult:
    """The outcome of a claim with the tests that decide it.

    Args:
        contradicted: Whether a comparison came out on the other side, its interval as well.
        tests: Words, unit and interval of each comparison.
        reason: Why a claim is not testable here.
    """

    claim: Claim
    outcome: Outcome
    contradicted: bool = False
    tests: tuple[tuple[str, str, Interval], ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON, but for nan."""
        return {
            "id": self.claim.id,
            "sentence": self.claim.sentence,
            "source": self.claim.source,
            "outcome": self.outcome,
            "contradicted": self.contradicted,
            "reason": self.reason,
            "tests": [{"words": words, "unit": unit, **interval.to_dict()} for words, unit, interval in self.tests],
        }


def verdict(intervals: Iterable[Interval], side: int = 1) -> Verdict:
    """Say "confirmed" if every interval lies on the claimed side of 0, "contradicted" if one lies on the other side.

    Args:
        intervals: One interval or more; one that is not known lies on no side.
        side: 1 where values above 0 are claimed, -1 for values below.
    """
    signs = [interval.sign * side for interval in intervals]
    if min(signs) > 0:
        return "confirmed"
    return "contradicted" if min(signs) < 0 else "not confirmed"


def judged(evidence: Mapping[str, Sequence[Comparison]], claims: Iterable[Claim]) -> list[ClaimResult]:
    """Judge each claim by the comparisons that `evidence` holds by the claim's id.

    A claim is confirmed if the interval of every comparison lies above 0, and not confirmed otherwise; contradicted if
    one lies below. Without comparisons, or with too few edits for an interval, it is not testable here.

    Raises:
        ValueError: There is evidence on a claim that is not there.
    """
    claims = tuple(claims)
    if unknown := sorted(set(evidence) - {claim.id for claim in claims}):
        raise ValueError(f"there is evidence on {', '.join(unknown)}, which nobody claims")
    return [_judged(claim, evidence.get(claim.id, ())) for claim in claims]


def _judged(claim: Claim, comparisons: Sequence[Comparison]) -> ClaimResult:
    if not comparisons:
        return ClaimResult(
            claim, "not testable here", reason=f"needs {claim.needs}" if claim.needs else "not among the parts"
        )
    tests = tuple((found.words, found.unit, found.interval) for found in comparisons)
    if unmeasured := [words for words, _, interval in tests if not interval.n]:
        return ClaimResult(claim, "not testable here", reason=f"not measured here: {'; '.join(unmeasured)}")
    if any(math.isnan(interval.low) for _, _, interval in tests):
        return ClaimResult(
            claim, "not testable here", tests=tests, reason="too few edits with a figure for an interval"
        )
    found = verdict(interval for _, _, interval in tests)
    return ClaimResult(claim, "confirmed" if found == "confirmed" else "not confirmed", found == "contradicted", tests)
