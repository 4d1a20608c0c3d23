"""The page of a comparison on scenes: figures, success against preservation over strength, results side by side."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from markupsafe import Markup

from data.pages.charts import Series, line_chart
from data.pages.page import EXACT, Figures, Picture, number, picture_uri
from data.world.edits import EDIT_KINDS
from eval.editors.catalogue import REFERENCES
from eval.editors.titles import COLOURS, GREY, render_page, title_of
from eval.reconstructions.page import reconstruction_chart
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.figures import OURS, better_in_both, equal_in_both
from eval.scene_edits.instructions import NUM_RESAMPLES, EqualLevel
from eval.scene_edits.protocol import SceneComparison
from eval.scene_edits.result import EditorResult, pixels

Tile = tuple[str, str, str]
"""A figure, its unit and what it is: one of the first things to know."""

NOT_PICTURED = ("identity", "truth")
"""References whose pictures stand under other headings: the source and the true edit."""

_PER_KIND = 2
_RECONSTRUCTED = 8
_GRID_KIND = "change_colour"
"""Kind whose first edit is shown over the whole dual guidance."""

_MARKS = {"confirmed": "yes", "not confirmed": "no", "contradicted": "contrary"}
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


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each editor; they come again after twenty."""
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}


# --- the three pages -------------------------------------------------------------------------------------------------


def write_scene_page(out: Path, results: Figures, found: SceneComparison) -> Path:
    """Write DIR/index.html of eval.scenes."""
    return _write(
        out,
        results,
        found,
        title="Edits of scenes against the truth",
        tiles=_encoder_tiles(results),
        standing_words=_standing_words(results),
        charts=[sweep_chart(results, COLOURS)],
        reconstruction_chart=reconstruction_chart(results),
        **_reconstructions(found.edits, found.test, all_steps_of="turboedit"),
    )


def write_many_step_page(out: Path, results: Figures, found: SceneComparison) -> Path:
    """Write DIR/index.html of eval.many_step."""
    colours = colours_of(results["sweeps"])
    return _write(
        out,
        results,
        found,
        title="Many-step editors on scenes",
        ours="stylediffusion",
        colours=colours,
        charts=[sweep_chart(results, colours)],
        **_reconstructions(found.edits, found.test),
    )


def write_instructive_page(
    out: Path, results: Figures, found: SceneComparison, comparisons: Sequence[EqualLevel]
) -> Path:
    """Write DIR/index.html of eval.instructive."""
    colours = colours_of(results["sweeps"])
    curves = {name: found.test[name] for name in results["about"]["text_guidances"]}
    return _write(
        out,
        results,
        found,
        pictured=(next(iter(found.test)), results["chosen"]["instruct_pix2pix"]["name"]),
        title="Edits of scenes by instructions",
        tiles=_claim_tiles(comparisons),
        colours=colours,
        charts=[
            guidance_chart(results, "changed", 100, "edits that happened (%)", colours),
            guidance_chart(results, "clip", 1, "CLIP similarity to the target's caption", colours),
        ],
        comparisons=comparisons,
        marks=_MARKS,
        num_resamples=NUM_RESAMPLES,
        **_guidance_grid(found.edits, curves),
    )


def _write(
    out: Path, results: Figures, found: SceneComparison, pictured: Sequence[str] | None = None, **values: Any
) -> Path:
    """Write a page with the parts that all have; `pictured` are the editors of the gallery, all by default."""
    shown = found.test if pictured is None else {name: found.test[name] for name in pictured}
    shared = {
        "tiles": [],
        "kinds": [{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        "gallery_columns": gallery_columns(shown),
        "gallery": edit_gallery(found.edits, shown, found.strengths),
    }
    return render_page("scene_edits.html.j2", out, results=results, **(shared | values))


# --- tiles -----------------------------------------------------------------------------------------------------------


def _encoder_tiles(results: Figures) -> list[Tile]:
    """The encoder's figures, each with the strongest baseline's beside it."""
    tiles = []
    steps = results["reconstruction"].get("turboedit", {}).get("psnr_to_vae_by_step")
    if steps:
        others = _baselines(results["reconstruction"])
        beside = _strongest({name: found["psnr_to_vae_by_step"][-1]["mean"] for name, found in others.items()}, 1, "dB")
        words = f"PSNR to the VAE's round trip after {len(steps)} steps"
        tiles.append((number(steps[-1]["mean"], 1), "dB", words + beside))
    ours, others = results["edits"]["turboedit"], _baselines(results["edits"])
    for measure, words in (("changed", "of the edits happened"), ("kept", "of the other attributes were kept")):
        beside = _strongest({name: found[measure]["mean"] for name, found in others.items()}, 100, "%")
        tiles.append((number(100 * ours[measure]["mean"], 0), "%", words + beside))
    for row in ("turboedit", "turboedit_paper"):
        gains = {name: found["gain"] for name, found in results["equal_success"].get(row, {}).items() if found}
        if gains:
            strongest = min(gains, key=lambda name: gains[name]["mean"])
            gain, error = gains[strongest]["mean"], gains[strongest]["se"]
            words = f"± {error:.1f} outside the edit at equal success, against the strongest, {title_of(strongest)}"
            tiles.append((f"{gain:+.1f}", "dB", words + (", in the paper's form" if row != "turboedit" else "")))
    return tiles


def _baselines(figures: Figures) -> dict[str, Any]:
    """Entries of what is neither ours nor a reference."""
    return {name: found for name, found in figures.items() if name not in ("vae", *OURS, *REFERENCES)}


def _strongest(means: Mapping[str, float | None], scale: float, unit: str) -> str:
    """Words on the baseline with the highest mean; none where nothing is compared."""
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return ""
    best = max(known, key=lambda name: known[name])
    if unit == "dB" and known[best] >= EXACT:
        return f"; the strongest baseline, {title_of(best)}: exact"
    return f"; the strongest baseline, {title_of(best)}: {number(scale * known[best], 0 if unit == '%' else 1)} {unit}"


def _standing_words(results: Figures) -> list[str]:
    """Sentences on the baselines that are better than, or as good as, rows of ours."""
    sentences = []
    for row in (name for name in ("turboedit", "turboedit_paper") if results["standings"].get(name)):
        signs = results["standings"][row]
        for names, words in (
            (better_in_both(signs), "at least as good as {} in both within errors and better in one beyond them"),
            (equal_in_both(signs), "as good as {} in both within errors"),
        ):
            listed = f": {', '.join(title_of(name) for name in names)}" if names else ""
            verb = "is" if len(names) == 1 else "are"
            sentences.append(f"{len(names)} of {len(signs)} baselines {verb} {words.format(title_of(row))}{listed}.")
    return sentences


def _claim_tiles(comparisons: Sequence[EqualLevel]) -> list[Tile]:
    """Tiles of the comparisons with InstructPix2Pix's envelope, which come first."""
    at = {"clip": "equal CLIP similarity", "changed": "equal success"}
    tiles = [
        (f"{found.gain.mean:+.1f}", "dB", f"outside the edit against InstructPix2Pix at {at[found.measure]}")
        for found in comparisons[: len(at)]
    ]
    return [(comparisons[0].verdict, "", "is the claim of TurboEdit's paper"), *tiles]


# --- charts ----------------------------------------------------------------------------------------------------------


def sweep_chart(results: Figures, colours: Mapping[str, str]) -> Markup:
    """Draw a line for each method: PSNR outside the edit and share of edits that happened at every strength."""
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


def guidance_chart(results: Figures, measure: str, scale: float, label: str, colours: Mapping[str, str]) -> Markup:
    """Draw PSNR outside against a measure: a line for each s_T over s_I, and one of TurboEdit over its strength."""
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


# --- pictures --------------------------------------------------------------------------------------------------------


def gallery_columns(by_editor: Mapping[str, EditorResult]) -> list[str]:
    """Titles of the pictures of a row of `edit_gallery`."""
    return ["source", "true edit", *(title_of(name) for name in by_editor if name not in NOT_PICTURED)]


def edit_gallery(
    edits: EditSet, by_editor: Mapping[str, EditorResult], chosen: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The first edits of each kind that all editors were run on: instruction, source, true edit, every result."""
    sources, truths = pixels(edits.sources), pixels(edits.truths)
    seen = min(len(result.images[chosen[name]]) for name, result in by_editor.items())
    rows = []
    for kind in EDIT_KINDS:
        for index in [i for i, found in enumerate(edits.kinds[:seen]) if found == kind][:_PER_KIND]:
            pictures = [Picture(picture_uri(sources[index])), Picture(picture_uri(truths[index]))]
            for name, result in by_editor.items():
                if name in NOT_PICTURED:
                    continue
                scores = result.scores[chosen[name]][index]
                note = f"{'✓' if scores.changed else '✗'} kept {100 * scores.kept:.0f} %"
                image = result.images[chosen[name]][index]
                pictures.append(Picture(picture_uri(image), note, bool(scores.changed)))
            rows.append({"kind": kind.replace("_", " "), "text": edits.edits[index].instruction, "pictures": pictures})
    return rows


def _reconstructions(
    edits: EditSet, by_editor: Mapping[str, EditorResult], all_steps_of: str | None = None
) -> dict[str, Any]:
    """Columns and pictures of the first sources: image, VAE's round trip, last step of each editor, all of one's."""
    made = {name: result.reconstructions for name, result in by_editor.items() if result.reconstructions}
    shown = [
        (name, step) for name, steps in made.items() for step in sorted(steps)[0 if name == all_steps_of else -1 :]
    ]
    several = any(len(steps) > 1 for steps in made.values())
    titles = [f"{title_of(name)}, {step}" if several else title_of(name) for name, step in shown]
    count = min((len(pictures) for steps in made.values() for pictures in steps.values()), default=0)
    identity = by_editor["identity"].images[by_editor["identity"].strengths[0]]
    rows = []
    for index, image in enumerate(pixels(edits.sources[: min(_RECONSTRUCTED, count)])):
        pictures = [image, identity[index], *(made[name][step][index] for name, step in shown)]
        words = shorten(edits.source_prompts[index], 160, placeholder=" …")
        rows.append({"text": words, "pictures": [Picture(picture_uri(p)) for p in pictures]})
    return {"reconstruction_columns": ["image", "VAE", *titles], "reconstruction_gallery": rows}


def _guidance_grid(edits: EditSet, curves: Mapping[str, EditorResult]) -> dict[str, Any]:
    """One edit at every s_T (rows) and s_I (columns), with whether it happened and PSNR outside."""
    index = edits.kinds.index(_GRID_KIND)
    rows = []
    for name, result in curves.items():
        found = [(result.images[s][index], result.scores[s][index]) for s in result.strengths]
        pictures = [
            Picture(picture_uri(image), f"{'✓' if row.changed else '✗'} {row.psnr_outside:.1f} dB", bool(row.changed))
            for image, row in found
        ]
        rows.append({"title": title_of(name), "pictures": pictures})
    ends = (pixels(side[index : index + 1])[0] for side in (edits.sources, edits.truths))
    return {
        "grid_instruction": edits.edits[index].instruction,
        "grid_columns": [f"s_I {s:g}" for s in next(iter(curves.values())).strengths],
        "grid_ends": [Picture(picture_uri(image)) for image in ends],
        "grid": rows,
    }
