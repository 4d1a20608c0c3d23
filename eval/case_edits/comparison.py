"""Many-step editors on cases: what is kept against how far edits go, at every strength; nobody chooses one.

Without the truth nobody can say which edits happened, so there is no strength at which methods are equally successful.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from data.pages.charts import Series, line_chart
from data.pages.page import Figures, Picture
from eval.case_edits.cases import case_edits
from eval.case_edits.judge import CaseJudge
from eval.case_edits.subjects import lacking, most_missing
from eval.case_edits.wanted import Wanted, usable_cases
from eval.editors.catalogue import REFERENCES
from eval.editors.editor import Editor
from eval.editors.titles import GREY, render_page, title_of
from eval.harness.results import Columns, decibel_words, finish, mean_words
from eval.metrics.measures import MEASURES
from eval.metrics.pixels import Estimate
from eval.pie.gallery import small_uri
from eval.reconstructions.fidelity import Row, round_trip, vae_rows
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.figures import below_vae, noise_entries, reconstruction_figures
from eval.scene_edits.judge import Judge
from eval.scene_edits.page import colours_of
from eval.scene_edits.result import EditorResult, pixels
from eval.scene_edits.run import RunSetup, run_editors

logger = logging.getLogger(__name__)

COLUMNS = (
    "psnr_outside",
    "lpips_outside",
    "psnr_inside",
    "psnr_whole",
    "lpips_whole",
    "clip",
    "direction",
    "structure",
)
"""Measures of each editor at each strength."""

PICTURED = 12
"""Cases, from the first on, whose pictures are shown."""

_PICTURE_SIDE = 256


@dataclass(frozen=True)
class CaseComparison:
    """Results of all editors, by name, on some edits."""

    edits: EditSet
    results: dict[str, EditorResult]
    vae: list[Row]

    def figures(self) -> dict[str, Any]:
        """The entries `edits`, `reconstruction` and `noise` of results.json."""
        reconstruction = reconstruction_figures(self.vae, self.results) if self.vae else {}
        for name, result in self.results.items():
            if result.reconstruction_rows:
                reconstruction[name]["below_vae"] = below_vae(self.vae, result.reconstruction_rows).to_dict()
        return {
            "edits": {name: _editor_figures(result) for name, result in self.results.items()},
            "reconstruction": reconstruction,
            "noise": noise_entries(self.results),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each editor, strength and edit, for edits.csv."""
        rows = []
        for name, result in self.results.items():
            for strength in result.strengths:
                for edit, scores in zip(self.edits.edits, result.scores[strength], strict=False):
                    known = {measure: getattr(scores, measure) for measure in COLUMNS}
                    row = {"editor": name, "strength": strength, "key": getattr(edit, "key", ""), "kind": edit.kind}
                    rows.append({**row, "instruction": edit.instruction, **known})
        return rows

    def reconstruction_rows(self) -> list[Row]:
        """Rows of the VAE's round trip and of all editors' reconstructions."""
        return [*self.vae, *(row for result in self.results.values() for row in result.reconstruction_rows)]


def report_cases(
    out: Path,
    wanted: Wanted,
    editors: Sequence[Editor],
    setup_of: Callable[[Judge, int | None], RunSetup],
    judge: CaseJudge,
    conditions: Mapping[str, Any],
    left_out: Mapping[str, str],
    num_reconstructions: int,
    device: torch.device,
) -> dict[str, Any]:
    """Compare editors on the cases of a folder, and write the report.

    Args:
        wanted: The cases.
        setup_of: Gives what all runs share, for a judge and a number of pictures that are remembered.
        conditions: Entries of `about`.
        left_out: Reasons why some editors cannot run, by name.

    Raises:
        ValueError: No case can be used, or, behind the report, more are left out than there are.
    """
    found, refused = usable_cases(wanted)
    cases = case_edits(found.cases, device)
    sentences = lacking(cases, judge, refused)
    for sentence in sentences:
        logger.warning("%s", sentence)
    comparison = compare_cases(editors, cases, setup_of(judge, PICTURED), num_reconstructions)
    of_cases = {"data": str(wanted.data), "cases": len(cases), "left_out": refused, "metrics": dict(judge.models.about)}
    results = {
        **comparison.figures(),
        "left_out": dict(left_out),
        "lacking": sentences,
        "about": {**conditions, **of_cases},
    }
    tables = {"edits.csv": comparison.rows(), "reconstructions.csv": comparison.reconstruction_rows()}
    finish(out, results, comparison_words(results), tables, lambda: write_comparison_page(out, results, comparison))
    if missing := most_missing(found.cases, refused):
        raise ValueError(f"the report is written, but most is missing: {missing}; the page says why")
    return results


def compare_cases(
    editors: Sequence[Editor], edits: EditSet, setup: RunSetup, num_reconstructions: int
) -> CaseComparison:
    """Run editors on all cases at all their strengths; the true edit is a reference where it is known."""
    compared = [editor for editor in editors if editor.name != "truth" or edits.has_truths]
    results = run_editors(compared, edits, setup, "cases", num_reconstructions=num_reconstructions)
    keys = sorted({str(row["key"]) for result in results.values() for row in result.reconstruction_rows})
    vae: list[Row] = []
    for number, part in enumerate(edits.first(len(keys)).batches(setup.batch)):
        named = keys[number * setup.batch : number * setup.batch + len(part)]
        vae += vae_rows(round_trip(setup.backbone, part.sources), {}, named)
    return CaseComparison(edits, results, vae)


def _editor_figures(result: EditorResult) -> dict[str, Any]:
    """Figures of one editor at each of its strengths, and its costs."""
    sweep = []
    for strength in result.strengths:
        point: dict[str, Any] = {"strength": strength}
        point |= {name: result.estimate(strength, name).to_dict() for name in COLUMNS}
        for what in ("nfe", "seconds"):
            costs = result.edit_costs[strength]
            point[f"{what}_edit"] = Estimate.of(getattr(cost, what) for cost in costs).to_dict()
        sweep.append(point)
    inverted = {
        f"{what}_invert": Estimate.of(getattr(cost, what) for cost in result.invert_costs).to_dict()
        for what in ("nfe", "seconds")
    }
    return {"sweep": sweep, "n": len(result.scores[result.strengths[0]]), **inverted}


def comparison_words(results: Figures) -> str:
    """The main figures as text: each editor at each strength."""
    table = Columns("editor", "strength", "PSNR outside", "PSNR to source", "CLIP", "target - source", "n")
    for name, found in results["edits"].items():
        for point in found["sweep"]:
            cells = (decibel_words(point["psnr_outside"]), decibel_words(point["psnr_whole"]))
            texts = (mean_words(point[measure], digits=2) for measure in ("clip", "direction"))
            table.add(name, f"{point['strength']:g}", *cells, *texts, str(found["n"]))
    return str(table)


def write_comparison_page(out: Path, results: Figures, found: CaseComparison) -> Path:
    """Write DIR/index.html."""
    methods = [name for name in results["edits"] if name not in REFERENCES]
    colours = colours_of(methods)
    shown = [name for name in COLUMNS if _measured(results, name)]
    kept = "psnr_outside" if "psnr_outside" in shown else "psnr_whole"
    columns, gallery = _gallery(found)
    pictured, reconstructed = _reconstructions(found)
    return render_page(
        "case_comparison.html.j2",
        out,
        title="Many-step editors on pictures",
        results=results,
        ours="stylediffusion",
        colours=colours,
        shown=shown,
        of_all=MEASURES,
        heads=[MEASURES[name].head for name in shown],
        chart=_chart(results, methods, kept, colours) if "direction" in shown else None,
        columns=columns,
        gallery=gallery,
        reconstruction_columns=pictured,
        reconstruction_gallery=reconstructed,
    )


def _measured(results: Figures, measure: str) -> bool:
    """Whether any editor has a figure for a measure."""
    points = [point for found in results["edits"].values() for point in found["sweep"]]
    return any(point[measure]["mean"] is not None for point in points)


def _chart(results: Figures, methods: Sequence[str], kept: str, colours: Mapping[str, str]) -> Markup:
    """Draw a line for each method over its strengths: what is kept, and how far edits go."""
    series = []
    for name in methods:
        line = [
            (
                point[kept]["mean"],
                point["direction"]["mean"],
                f"strength {point['strength']:g}, {point['direction']['mean']:.2f}, {point[kept]['mean']:.1f} dB",
            )
            for point in results["edits"][name]["sweep"]
            if point[kept]["mean"] is not None
        ]
        series.append(Series(title_of(name), colours.get(name, GREY), line))
    return line_chart(series, f"{MEASURES[kept].title} (dB): what is kept", MEASURES["direction"].title)


def _gallery(found: CaseComparison) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the first cases: source, true edit where it is known, every method at its middle strength."""
    methods = {name: result for name, result in found.results.items() if name not in ("identity", "truth")}
    middle = {name: result.strengths[len(result.strengths) // 2] for name, result in methods.items()}
    edits = found.edits
    columns = ["source", *(["true edit"] if edits.has_truths else [])]
    for name, result in methods.items():
        columns.append(f"{title_of(name)}, {middle[name]:g}" if len(result.strengths) > 1 else title_of(name))
    count = min(len(result.images[middle[name]]) for name, result in methods.items())
    rows = []
    for index in range(min(count, PICTURED)):
        begun = [edits.sources, edits.truths] if edits.has_truths else [edits.sources]
        pictures = [_picture(pixels(images[index : index + 1])[0]) for images in begun]
        pictures += [_picture(result.images[middle[name]][index]) for name, result in methods.items()]
        edit = edits.edits[index]
        words = shorten(edit.instruction or edits.target_prompts[index], 160, placeholder=" …")
        rows.append({"kind": edit.kind, "text": words, "pictures": pictures})
    return columns, rows


def _reconstructions(found: CaseComparison) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the first sources: the picture and every editor's reconstruction."""
    made = {name: result.reconstructions[1] for name, result in found.results.items() if result.reconstructions}
    count = min((len(pictures) for pictures in made.values()), default=0)
    rows = []
    for index in range(count):
        pictures = [pixels(found.edits.sources[index : index + 1])[0], *(images[index] for images in made.values())]
        words = shorten(found.edits.source_prompts[index], 160, placeholder=" …")
        rows.append({"text": words, "pictures": [_picture(picture) for picture in pictures]})
    return ["source", *(title_of(name) for name in made)], rows


def _picture(levels: np.ndarray) -> Picture:
    return Picture(small_uri(Image.fromarray(levels), _PICTURE_SIDE))
