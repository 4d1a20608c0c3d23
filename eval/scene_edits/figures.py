"""Figures of results.json from the results of editors on scenes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.world.edits import EDIT_KINDS
from eval.editors.catalogue import REFERENCES
from eval.harness.results import Columns, decibel_words, mean_words
from eval.metrics.intervals import Interval
from eval.metrics.pixels import Estimate
from eval.reconstructions.fidelity import Row, by_step
from eval.reconstructions.noise import NoiseFigures
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import MEASURES
from eval.scene_edits.result import EditorResult
from eval.scene_edits.sweeps import KEPT_FLOOR, choose_strength, equal_success

CEILING_REQUIRED = 0.85
"""An edit type counts towards `changed` if the generator itself obeys the target's caption so often."""

ENOUGH_TYPES = 5
"""With fewer types `changed` says little; the report warns."""

WRITTEN = "turboedit_written"
"""The encoder with captions that a captioner wrote."""

PAIRED = ("changed", "kept", "psnr_outside", "structure", "clip")
"""Measures that are compared edit by edit."""

RIVALRY = ("changed", "psnr_outside")
"""Measures in which a baseline that is at least as good as ours in both, and better in one, is the better editor."""

_COSTS = ("nfe", "seconds")

FORMS = (
    "turboedit_paper",
    "turboedit_mask",
    "turboedit_mask_paper",
    "turboedit_mask_attention",
    "turboedit_given",
    "turboedit_given_paper",
)
"""Other forms of TurboEdit's edits: their inversion is the plain one's, so its reconstructions and noises are too."""

OURS = ("turboedit", *FORMS, WRITTEN)

Results = Mapping[str, EditorResult]


def type_success(result: EditorResult, strength: float) -> dict[str, Estimate]:
    """`changed` of each edit type."""
    return {kind: result.estimate(strength, "changed", [kind]) for kind in EDIT_KINDS}


def changed_types(ceiling: EditorResult) -> tuple[str, ...]:
    """Types that `changed` averages: those where `ceiling` reaches CEILING_REQUIRED; all if none does."""
    success = type_success(ceiling, ceiling.strengths[0])
    able = tuple(kind for kind, estimate in success.items() if estimate.mean >= CEILING_REQUIRED)
    return able or EDIT_KINDS


def choose_strengths(by_editor: Results) -> dict[str, float]:
    """The strength of each editor, by `choose_strength` on these (validation) by_editor."""
    types = changed_types(by_editor["ceiling"])
    chosen = {}
    for name, result in by_editor.items():
        changed = {s: result.estimate(s, "changed", types) for s in result.strengths}
        kept = {s: result.estimate(s, "kept") for s in result.strengths}
        chosen[name] = choose_strength(changed, kept)
    return chosen


def edit_figures(result: EditorResult, strength: float, types: Sequence[str]) -> dict[str, Any]:
    """The entry `edits.<editor>`; estimates as dicts of mean, se, n."""
    costs = {"invert": result.invert_costs, "edit": result.edit_costs[strength]}
    figures: dict[str, Any] = {"changed": result.estimate(strength, "changed", types).to_dict()}
    figures |= {name: result.estimate(strength, name).to_dict() for name in MEASURES if name != "changed"}
    for measure in _COSTS:
        for part, found in costs.items():
            # One value a batch: the standard error is that between batches.
            figures[f"{measure}_{part}"] = Estimate.of(getattr(cost, measure) for cost in found).to_dict()
    peaks = [cost.peak_gb for found in costs.values() for cost in found if cost.peak_gb is not None]
    figures["peak_gb"] = max(peaks) if peaks else None
    figures["n"] = len(result.scores[strength])
    figures["by_type"] = {
        kind: {name: result.estimate(strength, name, [kind]).to_dict() for name in MEASURES} for kind in EDIT_KINDS
    }
    return figures


def comparison_figures(by_editor: Results, heldout: Results, chosen: Mapping[str, float]) -> dict[str, Any]:
    """The entries of results.json about edits: `edits`, `heldout`, `changed_types`, `strengths`, `sweeps`."""
    types = changed_types(by_editor["ceiling"])
    ceiling = type_success(by_editor["ceiling"], chosen["ceiling"])
    reached = sum(estimate.mean >= CEILING_REQUIRED for estimate in ceiling.values())
    return {
        "edits": {name: edit_figures(result, chosen[name], types) for name, result in by_editor.items()},
        "heldout": {name: edit_figures(result, chosen[name], types) for name, result in heldout.items()},
        "changed_types": {
            "types": types,
            "ceiling": {kind: estimate.to_dict() for kind, estimate in ceiling.items()},
            "required": CEILING_REQUIRED,
            "reached_by": reached,
            "enough": reached >= ENOUGH_TYPES,
        },
        "strengths": dict(chosen),
        "strength_criterion": (
            f"the highest share of edits that happened, among strengths that keep {KEPT_FLOOR:.0%} of the untouched "
            "attributes by at least one standard error"
        ),
        "sweeps": {name: sweep_figures(result, types) for name, result in by_editor.items() if name not in REFERENCES},
    }


def sweep_figures(result: EditorResult, types: Sequence[str]) -> list[dict[str, Any]]:
    """Success, what is kept and similarity to the target's caption at every strength."""
    return [
        {
            "strength": s,
            "changed": result.estimate(s, "changed", types).to_dict(),
            "kept": result.estimate(s, "kept").to_dict(),
            "psnr_outside": result.estimate(s, "psnr_outside").to_dict(),
            "clip": result.estimate(s, "clip").to_dict(),
        }
        for s in result.strengths
    ]


def paired_figures(by_editor: Results, chosen: Mapping[str, float], ours: str) -> dict[str, Any]:
    """The entry `paired`: every editor on the edits that all were tried on, and its distance from `ours`, edit by edit.

    Returns:
        n: the number of those edits; ours; editors: by name, measure and then `value` and `difference` (to ours).
    """
    count = min(len(result.scores[chosen[name]]) for name, result in by_editor.items())

    def column(name: str, measure: str) -> list[float]:
        return [float(getattr(row, measure)) for row in by_editor[name].scores[chosen[name]][:count]]

    figures: dict[str, Any] = {}
    for name in by_editor:
        for measure in PAIRED:
            values = column(name, measure)
            difference = [a - b for a, b in zip(values, column(ours, measure), strict=True)]
            pair = {
                "value": Estimate.of_measure(measure, values).to_dict(),
                "difference": Estimate.of(difference).to_dict(),
            }
            figures.setdefault(name, {})[measure] = pair
    return {"n": count, "ours": ours, "editors": figures}


def equal_success_figures(by_editor: Results, chosen: Mapping[str, float], types: Sequence[str]) -> dict[str, Any]:
    """Ours against every baseline at equal success: `equal_success.<ours>.<baseline>`."""
    baselines = [name for name in by_editor if name not in (*OURS, *REFERENCES)]
    figures: dict[str, Any] = {}
    for ours in (name for name in OURS if name in by_editor and len(by_editor[name].strengths) > 1):
        sweep = by_editor[ours].sweep(types)
        at = by_editor[ours].strengths.index(chosen[ours])
        for name in baselines:
            found = equal_success(sweep, by_editor[name].sweep(types), at)
            figures.setdefault(ours, {})[name] = None if found is None else found.to_dict()
    return figures


def standings(by_editor: Results, chosen: Mapping[str, float], types: Sequence[str]) -> dict[str, Any]:
    """How every baseline stands to rows of ours on the same edits: `standings.<ours>.<baseline>.<measure>`.

    1 where the baseline is better, -1 where it is worse and 0 where the 95 % interval of the difference, edit by edit,
    holds zero.
    """
    baselines = [name for name in by_editor if name not in (*OURS, *REFERENCES)]

    def column(name: str, measure: str) -> list[float]:
        rows = by_editor[name].scores[chosen[name]]
        counted = measure != "changed"
        return [float(getattr(row, measure)) if counted or row.kind in types else np.nan for row in rows]

    def sign(ours: str, baseline: str, measure: str) -> int:
        pairs = zip(column(baseline, measure), column(ours, measure), strict=True)
        differences = [theirs - mine for theirs, mine in pairs]
        found = Interval.of(differences)
        known = [value for value in differences if not np.isnan(value)]
        return found.sign if np.isfinite(found.low) else int(np.sign(sum(known)))

    return {
        ours: {name: {measure: sign(ours, name, measure) for measure in RIVALRY} for name in baselines}
        for ours in OURS
        if ours in by_editor
    }


def better_in_both(signs: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Baselines, by their `standings`, that are at least as good in all measures and better in one of them."""
    return [name for name, found in signs.items() if min(found.values()) >= 0 and max(found.values()) > 0]


def equal_in_both(signs: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Baselines, by their `standings`, that are as good in all measures, as far as the edits can tell."""
    return [name for name, found in signs.items() if not any(found.values())]


def reconstruction_figures(vae: Sequence[Row], by_editor: Results) -> dict[str, Any]:
    """The entry `reconstruction`: PSNR after each step, against the image and against the VAE's round trip."""
    figures: dict[str, Any] = {
        "vae": {"psnr": Estimate.of_measure("psnr", (float(row["psnr"]) for row in vae)).to_dict()}
    }
    for name, result in by_editor.items():
        if result.reconstruction_rows and name not in FORMS:
            figures[name] = {
                f"{measure}_by_step": [
                    Estimate.of_measure(measure, values).to_dict()
                    for values in by_step(result.reconstruction_rows, name, measure)
                ]
                for measure in ("psnr", "psnr_to_vae", "latent_mse")
            }
    return figures


def below_vae(vae: Sequence[Row], rows: Sequence[Row]) -> Estimate:
    """Return by how many dB each image's last reconstruction is below the VAE's round trip, both against the image."""
    last = max(int(row["step"]) for row in rows)
    ceiling = {row["key"]: float(row["psnr"]) for row in vae}
    return Estimate.of(ceiling[row["key"]] - float(row["psnr"]) for row in rows if int(row["step"]) == last)


def noise_entries(by_editor: Results) -> NoiseFigures:
    """The entry `noise`, without FORMS."""
    return {
        name: figures
        for key, result in by_editor.items()
        if key not in FORMS
        for name, figures in result.noises.items()
    }


def edit_rows(by_editor: Results, edits: EditSet | None, split: str) -> list[dict[str, Any]]:
    """A row for each editor, strength and edit, for edits.csv; with the instructions of `edits` if given."""
    rows = []
    for name, result in by_editor.items():
        for strength in result.strengths:
            for index, scores in enumerate(result.scores[strength]):
                instruction = "" if edits is None else edits.edits[index].instruction
                row = {"split": split, "index": index, "editor": name, "strength": strength, "instruction": instruction}
                rows.append({**row, **scores.to_row()})
    return rows


def main_table(results: Mapping[str, Any]) -> str:
    """Main table as text; "rec dB" is the reconstruction's PSNR to the VAE's round trip."""
    titles = ("editor", "strength", "changed %", "kept %", "out dB", "in dB", "rec dB", "nfe", "seconds", "n")
    table = Columns(*titles)
    for name, figures in results["edits"].items():
        nfe, seconds = (sum(figures[f"{what}_{part}"]["mean"] for part in ("invert", "edit")) for what in _COSTS)
        steps = results.get("reconstruction", {}).get(name, {}).get("psnr_to_vae_by_step", [None])
        table.add(
            name,
            f"{results['strengths'][name]:g}",
            *(mean_words(figures[measure], 100) for measure in ("changed", "kept")),
            *(decibel_words(found, digits=2) for found in (figures["psnr_outside"], figures["psnr_inside"], steps[-1])),
            f"{nfe:.1f}",
            f"{seconds:.3f}",
            str(figures["n"]),
        )
    types = results["changed_types"]
    warning = (
        f"Only {types['reached_by']} of {len(EDIT_KINDS)} edit types are within the generator's reach "
        f"(ceiling at {types['required']:.0%}); `changed` is averaged over: {', '.join(types['types'])}"
    )
    return str(table) if types["enough"] else f"{table}\n{warning}"
