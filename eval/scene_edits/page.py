"""Edits in pictures: success against preservation over each method's strength, and results side by side."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data.pages.charts import Series, line_chart
from data.pages.page import Figures, Picture, number, picture_uri
from data.world.edits import EDIT_KINDS
from eval.editors.titles import COLOURS, GREY, render_page, title_of
from eval.reconstructions.page import reconstruction_chart
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.instructions import NUM_RESAMPLES, Comparison
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


_TEMPLATE = "report.html.j2"


_GALLERY_ROWS = 8


def write_scene_report(out: Path, results: Figures, edits: EditSet, trials: Mapping[str, Trial]) -> Path:
    """The page of eval.scenes, DIR/index.html."""
    chosen = results["strengths"]
    return render_page(
        _TEMPLATE,
        out,
        title="Edits of scenes against the truth",
        results=results,
        tiles=_tiles(results),
        sweep_chart=sweep_chart(results, COLOURS),
        kinds=[{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        gallery_columns=gallery_columns(trials),
        gallery=edit_gallery(edits, trials, chosen),
        **_reconstruction_parts(results, _scene_reconstructions(edits, trials)),
    )


def _tiles(results: Figures) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the first things to know about the encoder."""
    tiles = []
    steps = results["reconstruction"].get("turboedit", {}).get("psnr_to_vae_by_step")
    if steps:
        tiles.append((number(steps[-1]["mean"], 1), "dB", f"PSNR to the VAE's round trip after {len(steps)} steps"))
    ours = results["edits"]["turboedit"]
    tiles.append((number(100 * ours["changed"]["mean"], 0), "%", "of the edits happened"))
    tiles.append((number(100 * ours["kept"]["mean"], 0), "%", "of the other attributes were kept"))
    for baseline in ("ddim", "sdedit"):
        found = results["equal_success"]["turboedit"][baseline]
        if found:
            gain = f"{found['gain']['mean']:+.1f}"
            tiles.append((gain, "dB", f"outside the edit at equal success, against {title_of(baseline)}"))
    return tiles


def _scene_reconstructions(
    edits: EditSet, trials: Mapping[str, Trial]
) -> list[tuple[str, Mapping[str, list[np.ndarray]]]]:
    """Captions and pictures of the first sources: the image, the VAE's round trip, each editor's steps."""
    made = min((len(p) for trial in trials.values() for p in trial.reconstructions.values()), default=0)
    images = pixels(edits.sources[: min(_GALLERY_ROWS, made)])
    identity = trials["identity"].images[trials["identity"].strengths[0]]
    rows: list[tuple[str, Mapping[str, list[np.ndarray]]]] = []
    for index, image in enumerate(images):
        row = {"image": [image], "vae": [identity[index]]}
        for name, trial in trials.items():
            if trial.reconstructions:
                row[name] = [pictures[index] for _, pictures in sorted(trial.reconstructions.items())]
        rows.append((edits.source_prompts[index], row))
    return rows


def _reconstruction_parts(
    results: Figures, rows: Sequence[tuple[str, Mapping[str, list[np.ndarray]]]]
) -> dict[str, Any]:
    """Chart, columns and pictures of the section on reconstruction."""
    columns = ["image", "VAE"]
    if rows:
        pictured = {name: len(pictures) for name, pictures in rows[0][1].items() if name not in ("image", "vae")}
        columns += [f"{title_of(name)}, {s}" for name, steps in pictured.items() for s in _shown_steps(name, steps)]
    gallery = [
        {
            "text": caption,
            "pictures": [
                Picture(picture_uri(pictures[step - 1]))
                for name, pictures in row.items()
                for step in _shown_steps(name, len(pictures))
            ],
        }
        for caption, row in rows
    ]
    return {
        "reconstruction_chart": reconstruction_chart(results),
        "reconstruction_columns": columns,
        "reconstruction_gallery": gallery,
    }


def _shown_steps(name: str, steps: int) -> list[int]:
    """All steps of ours, the last of a baseline."""
    return list(range(1, steps + 1)) if name == "turboedit" else [steps]


_PALETTE = (
    "#0b5fa5",
    "#e07b1f",
    "#2a9d5c",
    "#9a5bc2",
    "#d6478f",
    "#13a3a3",
    "#7d8a3c",
    "#b8402f",
    "#5b8def",
    "#c2a300",
    "#6b4c3b",
    "#3b4553",
    "#8c6d1f",
    "#e5989b",
    "#4b7f52",
    "#a0c4ff",
    "#5e3c99",
    "#ff9f1c",
    "#2f4b7c",
    "#c9ada7",
)


_ROWS = 6


def write_many_step_report(out: Path, results: Figures, edits: EditSet, trials: Mapping[str, Trial]) -> Path:
    """The page of eval.many_step, DIR/index.html."""
    colours = colours_of(results["sweeps"])
    return render_page(
        "many_step.html.j2",
        out,
        title="Many-step editors on scenes",
        results=results,
        ours="stylediffusion",
        colours=colours,
        sweep_chart=sweep_chart(results, colours),
        kinds=[{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        gallery_columns=gallery_columns(trials),
        gallery=edit_gallery(edits, trials, results["strengths"]),
        **_reconstructions(edits, trials),
    )


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each editor; they come again after twenty."""
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}


def _reconstructions(edits: EditSet, trials: Mapping[str, Trial]) -> dict[str, Any]:
    """Columns and pictures of the first sources: the image, its round trip, each editor's last step."""
    identity = trials["identity"].images[trials["identity"].strengths[0]]
    made = {
        name: trial.reconstructions[max(trial.reconstructions)]
        for name, trial in trials.items()
        if trial.reconstructions
    }
    seen = min((len(pictures) for pictures in made.values()), default=0)
    rows = []
    for index, image in enumerate(pixels(edits.first(min(_ROWS, seen)).sources)):
        pictures = [image, identity[index], *(pictures[index] for pictures in made.values())]
        rows.append({"text": edits.source_prompts[index], "pictures": [Picture(picture_uri(p)) for p in pictures]})
    return {
        "reconstruction_columns": ["image", "VAE", *(title_of(name) for name in made)],
        "reconstruction_gallery": rows,
    }


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
    return render_page(
        "instructive.html.j2",
        out,
        title="Edits of scenes by instructions",
        results=results,
        tiles=_claim_tiles(comparisons),
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


def _claim_tiles(comparisons: Sequence[Comparison]) -> list[tuple[str, str, str]]:
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
