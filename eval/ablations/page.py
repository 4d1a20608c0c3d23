"""The page of eval.ablation: the paper's claims with what became of them, then every ablation's table and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.pages.page import Figures
from eval.ablations.bench import Ablation
from eval.claims.judging import Finding
from eval.editors.titles import render_page
from eval.metrics.measures import MEASURES

_MARKS = {"confirmed": "yes", "not confirmed": "no", "not testable here": "untested"}


def write_ablation_page(out: Path, results: Figures, parts: Sequence[Ablation], findings: Sequence[Finding]) -> Path:
    """DIR/index.html."""
    return render_page(
        "ablation.html.j2",
        out,
        title="TurboEdit's ablations, and what its paper claims",
        results=results,
        tiles=_tiles(findings),
        claims=[_claim(finding) for finding in findings],
        parts=parts,
        of_all=MEASURES,
    )


def _tiles(findings: Sequence[Finding]) -> list[tuple[int, str]]:
    """Number of claims by what became of them, and in words."""
    outcomes = [finding.outcome for finding in findings]
    contradicted = sum(finding.contradicted for finding in findings)
    return [
        (outcomes.count("confirmed"), "claims of the paper are confirmed"),
        (outcomes.count("not confirmed"), f"are not confirmed; {contradicted} of these are contradicted"),
        (outcomes.count("not testable here"), "are not testable here"),
    ]


def _claim(finding: Finding) -> dict[str, Any]:
    """A row of the table of claims."""
    return {
        "claim": finding.claim,
        "outcome": f"{finding.outcome}, contradicted" if finding.contradicted else finding.outcome,
        "mark": "contrary" if finding.contradicted else _MARKS[finding.outcome],
        "reason": finding.reason,
        "tests": [{"words": words, "figures": found.words(unit), "n": found.n} for words, unit, found in finding.tests],
    }


def findings_words(findings: Sequence[Finding]) -> str:
    """Write the claims and what became of them as text."""
    lines = []
    for finding in findings:
        outcome = finding.outcome + (", contradicted" if finding.contradicted else "")
        lines.append(f"{outcome:28}{finding.claim.sentence}")
        lines += [f"{'':30}{words}: {found.words(unit)}, n = {found.n}" for words, unit, found in finding.tests]
        lines += [f"{'':30}{finding.reason}"] if finding.reason else []
    return "\n".join(lines)
