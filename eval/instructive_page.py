"""The page of eval.instructive: the claim, both methods' curves, pictures side by side and over the dual guidance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data.pages.charts import Series, line_chart
from data.scenes import EDIT_KINDS
from eval.editors.titles import Figures, Picture, picture_uri, render, title_of
from eval.many_step_report import colours_of
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.instructions import NUM_RESAMPLES, Comparison
from eval.scene_edits.page import edit_gallery, gallery_columns
from eval.scene_edits.trial import Trial, pixels

_GRID_KIND = "change_colour"
"""Whose first edit is shown over the whole dual guidance."""

_MARKS = {"confirmed": "yes", "not confirmed": "no", "contradicted": "contrary"}


def write_instructive_page(
    out: Path, results: Figures, edits: EditSet, trials: Mapping[str, Trial], comparisons: Sequence[Comparison]
) -> Path:
    """DIR/index.html."""
    chosen = results["strengths"]
    shown = {name: trials[name] for name in (next(iter(trials)), results["chosen"]["instruct_pix2pix"]["name"])}
    colours = colours_of(results["sweeps"])
    return render(
        "instructive.html.j2",
        out,
        title="Edits of scenes by instructions",
        results=results,
        tiles=_tiles(comparisons),
        comparisons=comparisons,
        marks=_MARKS,
        num_resamples=NUM_RESAMPLES,
        colours=colours,
        charts=[
            guidance_chart(results, "changed", 100, "edits that happened (%)", colours),
            guidance_chart(results, "clip", 1, "CLIP similarity to the target's caption", colours),
        ],
        kinds=[{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        gallery_columns=gallery_columns(shown),
        gallery=edit_gallery(edits, shown, chosen),
        **_guidance_grid(edits, {name: trials[name] for name in results["about"]["text_guidances"]}),
    )


def _tiles(comparisons: Sequence[Comparison]) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the comparisons with InstructPix2Pix's envelope."""
    at = {"clip": "equal CLIP similarity", "changed": "equal success"}
    tiles = [
        (f"{found.gain.mean:+.1f}", "dB", f"outside the edit against InstructPix2Pix at {at[found.measure]}")
        for found in comparisons[: len(at)]
    ]
    return [(comparisons[0].verdict, "", "is the claim of TurboEdit's paper"), *tiles]


def guidance_chart(results: Figures, measure: str, scale: float, label: str, colours: Mapping[str, str]) -> Markup:
    """PSNR outside against a measure: a line for each s_T over s_I, and one of TurboEdit over its strength."""
    series = []
    for name, points in results["sweeps"].items():
        knob = "s_I" if name in results["about"]["text_guidances"] else "strength"
        line = [(scale * p[measure]["mean"], p["psnr_outside"]["mean"], _point_words(knob, p)) for p in points]
        at = [p["strength"] for p in points].index(results["strengths"][name])
        series.append(Series(title_of(name), colours[name], line, at))
    return line_chart(series, label, "PSNR outside the edit (dB)")


def _point_words(knob: str, point: Figures) -> str:
    found = {name: point[name]["mean"] for name in ("changed", "clip", "psnr_outside", "kept")}
    return (
        f"{knob} {point['strength']:g}, {100 * found['changed']:.0f} % changed, CLIP {found['clip']:.2f}, "
        f"{found['psnr_outside']:.1f} dB, {100 * found['kept']:.0f} % kept"
    )


def _guidance_grid(edits: EditSet, curves: Mapping[str, Trial]) -> dict[str, Any]:
    """One edit at every s_T (rows) and s_I (columns), with whether it happened and PSNR outside."""
    index = edits.kinds.index(_GRID_KIND)
    rows = []
    for name, trial in curves.items():
        found = [(trial.images[s][index], trial.verdicts[s][index]) for s in trial.strengths]
        pictures = [
            Picture(picture_uri(image), f"{'✓' if v.changed else '✗'} {v.psnr_outside:.1f} dB", bool(v.changed))
            for image, v in found
        ]
        rows.append({"title": title_of(name), "pictures": pictures})
    ends = (pixels(side[index : index + 1])[0] for side in (edits.sources, edits.truths))
    return {
        "grid_instruction": edits.edits[index].instruction,
        "grid_columns": [f"s_I {s:g}" for s in next(iter(curves.values())).strengths],
        "grid_ends": [Picture(picture_uri(image)) for image in ends],
        "grid": rows,
    }
