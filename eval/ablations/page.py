"""The page of eval.ablation: the paper's claims with what became of them, then every ablation's table and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.pages.page import Figures
from eval.ablations.bench import Ablation
from eval.claims.judging import ClaimResult, Outcome
from eval.editors.titles import render_page
from eval.metrics.measures import MEASURES

_OUTCOMES: tuple[Outcome, ...] = ("confirmed", "not confirmed", "not testable here")
_MARKS = {"confirmed": "yes", "not confirmed": "no", "not testable here": "untested"}


TURBOEDIT = "Wu et al. 2024 (TurboEdit)"
STYLEDIFFUSION = "Li et al. 2023 (StyleDiffusion)"


def write_ablation_page(
    out: Path,
    results: Figures,
    parts: Sequence[Ablation],
    judged_claims: Sequence[ClaimResult],
    paper: str = TURBOEDIT,
) -> Path:
    """DIR/index.html."""
    return render_page(
        "ablation.html.j2",
        out,
        {"head_of": _head},
        title=f"{'TurboEdit' if paper == TURBOEDIT else 'StyleDiffusion'}'s ablations, and what its paper claims",
        paper=paper,
        encodes="encoder" in results["about"],
        results=results,
        tiles=_tiles(judged_claims),
        claims=[_claim(result) for result in judged_claims],
        parts=parts,
        of_all=MEASURES,
        scenes="split" in results["about"],
    )


def _tiles(judged_claims: Sequence[ClaimResult]) -> list[tuple[int, str, str]]:
    """Number of claims by what became of them, and in words; they have no unit."""
    outcomes = [result.outcome for result in judged_claims]
    contradicted = sum(result.contradicted for result in judged_claims)
    verb = "is" if contradicted == 1 else "are"
    of_these = f"; {contradicted} of these {verb} contradicted" if contradicted else ""
    tiles = []
    for outcome in _OUTCOMES:
        found = outcomes.count(outcome)
        words = f"{'claim' if found == 1 else 'claims'} of the paper: {outcome}"
        tiles.append((found, "", words + of_these * (outcome == "not confirmed")))
    return tiles


def _head(measure: str, part: Ablation) -> tuple[str, ...]:
    """Title and unit of a measure, as the head of a column, and of how many edits it is where these are not all."""
    found = part.number(measure)
    return *MEASURES[measure].head, *([] if found == len(part.edits) else [f"n = {found}"])


def _claim(result: ClaimResult) -> dict[str, Any]:
    """A row of the table of claims."""
    return {
        "claim": result.claim,
        "outcome": f"{result.outcome}, contradicted" if result.contradicted else result.outcome,
        "mark": "contrary" if result.contradicted else _MARKS[result.outcome],
        "reason": result.reason,
        "tests": [{"words": words, "figures": found.words(unit), "n": found.n} for words, unit, found in result.tests],
    }


def claims_words(judged_claims: Sequence[ClaimResult]) -> str:
    """Write the claims and what became of them as text."""
    lines = []
    for result in judged_claims:
        outcome = result.outcome + (", contradicted" if result.contradicted else "")
        lines.append(f"{outcome:28}{result.claim.sentence}")
        lines += [f"{'':30}{words}: {found.words(unit)}, n = {found.n}" for words, unit, found in result.tests]
        lines += [f"{'':30}{result.reason}"] if result.reason else []
    return "\n".join(lines)
