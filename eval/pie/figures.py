"""Figures of results.json from the measured edits of PIE-Bench, and the checks that they do not deceive."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.editors.titles import title_of
from eval.metrics.pixels import Estimate
from eval.pie.cases import ORIGINS, TYPE_NAMES, PieCase
from eval.pie.edits import PieRow, read_record
from eval.pie.measures import TRUTH, EditValues
from eval.pie.metrics import FORMS
from eval.published.rows import contradiction

_COSTS = ("nfe", "seconds")

_NEARLY = 1e-6
_EXACT_PSNR = 60.0
_NOISE_PSNR = 15.0
_ENOUGH = 20


def row_figures(row: PieRow, cases: Sequence[PieCase], values: Mapping[str, EditValues], edits: Path) -> dict[str, Any]:
    """The entry of one row in results.json.

    Args:
        values: measured values by key (eval.pie.measures.measure_all).
        edits: folder of the records of the edits.
    """
    records = {case.key: read_record(edits / row.name, case.key) for case in cases}
    failures = {key: record["error"] for key, record in records.items() if "error" in record}
    made = [case for case in cases if case.key in values]
    forms = _forms([values[case.key] for case in made])
    kinds = {type_id: [values[case.key] for case in made if case.type_id == type_id] for type_id in TYPE_NAMES}
    origins = {origin: [values[case.key] for case in made if case.origin == origin] for origin in ORIGINS}
    truth = [values[case.key][TRUTH] for case in made if TRUTH in values[case.key]]
    remarks = [contradiction(found["psnr"]["mean"], found["mse"]["mean"]) for found in forms.values() if found]
    return {
        "row": row.name,
        "title": row.title or _title(row.name),
        "prompts": row.prompts,
        "mask": row.mask,
        "steps": row.steps,
        "reference": row.reference,
        "n": len(made),
        "failed": len(failures),
        "failures": failures,
        "forms": forms,
        "truth": _estimates(truth) if truth else None,
        "costs": _given_costs(row, len(made)) or _costs([record for record in records.values() if "costs" in record]),
        "by_type": {type_id: _forms(found) for type_id, found in kinds.items() if found},
        "by_origin": {origin: _forms(found) for origin, found in origins.items() if found},
        "flags": [remark for remark in dict.fromkeys([row.note, *remarks]) if remark],
    }


def shared_figures(
    rows: Sequence[PieRow], values: Mapping[str, Mapping[str, EditValues]]
) -> dict[str, dict[str, Any] | None]:
    """Return by row its figures over the cases that all rows of its table have; None where no row lacks a case.

    The tables are two, of instructive rows and of all others.

    Returns:
        n: number of these cases; forms: as in `row_figures`.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for instructive in (True, False):
        table = [row.name for row in rows if (row.prompts == "instructive") == instructive]
        keys = [set(values[name]) for name in table]
        shared = sorted(set.intersection(*keys)) if keys else []
        for name in table:
            complete = all(len(mine) == len(shared) for mine in keys)
            forms = _forms([values[name][key] for key in shared])
            found[name] = None if complete else {"n": len(shared), "forms": forms}
    return found


def _title(row: str) -> str:
    """Elsewhere these references are round trips of the VAE."""
    return {"identity": "the picture itself", "truth": "the true edit"}.get(row) or title_of(row)


def _forms(values: Sequence[EditValues]) -> dict[str, Any]:
    return {form: _estimates([found[form] for found in values]) for form in FORMS}


def _estimates(columns: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean of each measure over the cases in which it is defined; a PSNR is exact where nothing differs at all."""
    names = list(columns[0]) if columns else []
    return {
        name: Estimate.of_measure(name, (column[name] for column in columns), equal=math.inf).to_dict()
        for name in names
    }


def _given_costs(row: PieRow, count: int) -> dict[str, Any] | None:
    """Seconds that someone else gives of a row's pictures; None where nobody does."""
    if row.seconds == (None, None):
        return None
    nothing = Estimate.of(()).to_dict()
    costs: dict[str, Any] = {f"{name}_{part}": nothing for part in ("invert", "edit") for name in _COSTS}
    for part, seconds in zip(("invert", "edit"), row.seconds, strict=True):
        if seconds is not None:
            costs[f"seconds_{part}"] = {"mean": seconds, "se": None, "n": count}
    return costs | {"peak_gb": None, "given": True}


def _costs(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Means over the cases but those that were a process's first, in whose time something may have been loaded.

    None for pictures that were made elsewhere.
    """
    if not records:
        return None
    timed = [record["costs"] for record in records if record["warm"]] or [record["costs"] for record in records]
    peaks = [cost[part]["peak_gb"] for cost in timed for part in ("invert", "edit")]
    costs: dict[str, Any] = {
        f"{name}_{part}": Estimate.of(cost[part][name] for cost in timed).to_dict()
        for part in ("invert", "edit")
        for name in _COSTS
    }
    return costs | {"peak_gb": max((peak for peak in peaks if peak is not None), default=None)}


@dataclass(frozen=True)
class Check:
    """Expected figure of a reference, and whether it came out so."""

    row: str
    expectation: str
    found: str
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self) | {"title": _title(self.row)}


def reference_checks(values: Mapping[str, Mapping[str, EditValues]]) -> list[Check]:
    """The unchanged picture, the true edit and random noise against what is known of them before anything is measured.

    Args:
        values: measured values by row and key.
    """
    checks = []
    for form in FORMS:
        for measure, bound in (("mse", 0.0), ("structure", _NEARLY), ("lpips", _NEARLY)):
            if found := _column(values.get("identity", {}), form, measure):
                checks.append(_at_most("identity", f"{form} {measure}", max(found), bound))
        if found := _column(values.get("identity", {}), form, "ssim"):
            checks.append(_at_most("identity", f"{form} 1 - SSIM", max(1 - value for value in found), _NEARLY))
    if found := _column(values.get("truth", {}), TRUTH, "psnr"):
        checks.append(_at_least("truth", "PSNR to the true edit", min(found), _EXACT_PSNR))
    if found := _column(values.get("noise", {}), "corrected", "psnr"):
        checks.append(_at_most("noise", "mean of the corrected PSNR", sum(found) / len(found), _NOISE_PSNR))
    checks += _agreement(values)
    return checks


def _agreement(values: Mapping[str, Mapping[str, EditValues]]) -> list[Check]:
    """CLIP has to find the target's prompt in the true edit rather than in the source, and least of all in noise."""
    found = []
    for better, worse in (("truth", "identity"), ("identity", "noise")):
        one, other = (_scores(values.get(row, {})) for row in (better, worse))
        gain = Estimate.of(score - other[key] for key, score in one.items() if key in other)
        if gain.n >= _ENOUGH:
            expectation = f"CLIP similarity to the target's prompt above that of {worse}"
            found.append(Check(better, expectation, f"{gain.mean:+.2f} ± {gain.se:.2f}", gain.mean > 2 * gain.se))
    return found


def _scores(values: Mapping[str, EditValues]) -> dict[str, float]:
    """CLIP similarity to the target's prompt by key; empty without a CLIP."""
    return {
        key: found["published"]["clip_whole"] for key, found in values.items() if "clip_whole" in found["published"]
    }


def _column(values: Mapping[str, EditValues], form: str, measure: str) -> list[float]:
    """The values that there are."""
    column = [found[form][measure] for found in values.values() if measure in found.get(form, {})]
    return [value for value in column if value == value]


def _at_most(row: str, measure: str, value: float, bound: float) -> Check:
    return Check(row, f"{measure} at most {bound:g}", f"{value:.3g}", value <= bound)


def _at_least(row: str, measure: str, value: float, bound: float) -> Check:
    return Check(row, f"{measure} at least {bound:g}", f"{value:.3g}", value >= bound)
