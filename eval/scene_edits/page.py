"""Edits in pictures: success against preservation over each method's strength, and results side by side."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from data.pages.charts import Series, line_chart
from data.scenes import EDIT_KINDS
from eval.editors.titles import GREY, Figures, Picture, picture_uri, title_of
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.trial import Trial, pixels

NOT_PICTURED = ("identity", "truth")
_PER_KIND = 2


def sweep_chart(results: Figures, colours: Mapping[str, str]) -> Markup:
    """A line for each method: PSNR outside the edit and share of edits that happened at every strength."""
    series = []
    for name, points in results["sweeps"].items():
        shown = [p for p in points if p["psnr_outside"]["mean"] is not None and p["changed"]["mean"] is not None]
        line = [
            (
                p["psnr_outside"]["mean"],
                100 * p["changed"]["mean"],
                f"strength {p['strength']:g}, {100 * p['changed']['mean']:.0f} % changed, "
                f"{p['psnr_outside']['mean']:.1f} dB, {100 * p['kept']['mean']:.0f} % kept",
            )
            for p in shown
        ]
        at = [p["strength"] for p in shown].index(results["strengths"][name]) if shown else None
        series.append(Series(title_of(name), colours.get(name, GREY), line, at))
    return line_chart(series, "PSNR outside the edit (dB): what is kept", "edits that happened (%)")


def edit_gallery(edits: EditSet, trials: Mapping[str, Trial], chosen: Mapping[str, float]) -> list[dict[str, Any]]:
    """The first edits of each kind that all editors were tried on: instruction, source, true edit, every result."""
    sources, truths = pixels(edits.sources), pixels(edits.truths)
    seen = min(len(trial.images[chosen[name]]) for name, trial in trials.items())
    rows = []
    for kind in EDIT_KINDS:
        for index in [i for i, found in enumerate(edits.kinds[:seen]) if found == kind][:_PER_KIND]:
            pictures = [Picture(picture_uri(sources[index])), Picture(picture_uri(truths[index]))]
            for name, trial in trials.items():
                if name in NOT_PICTURED:
                    continue
                verdict = trial.verdicts[chosen[name]][index]
                note = f"{'✓' if verdict.changed else '✗'} kept {100 * verdict.kept:.0f} %"
                image = trial.images[chosen[name]][index]
                pictures.append(Picture(picture_uri(image), note, bool(verdict.changed)))
            rows.append({"kind": kind.replace("_", " "), "text": edits.edits[index].instruction, "pictures": pictures})
    return rows


def gallery_columns(trials: Mapping[str, Trial]) -> list[str]:
    """Titles of the pictures of a row."""
    return ["source", "true edit", *(title_of(name) for name in trials if name not in NOT_PICTURED)]
