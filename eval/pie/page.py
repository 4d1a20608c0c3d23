"""The page of a PIE-Bench evaluation: tables with the published rows, charts, and every case in pictures, in one file.

The file opens from disk and loads nothing: pictures are data URIs, and its content policy forbids the rest.
"""

import base64
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data.pages.page import Figures, number
from eval.editors.titles import GREY, render_page
from eval.metrics.measures import PIE_COLUMNS
from eval.pie.gallery import LOSSLESS_SIDE, PageCase, PageEdit, Pictures, case_rows, gallery
from eval.pie.tables import (
    MASK_WORDS,
    figures_table,
    further_tables,
    is_ours,
    origins_of,
    other_figures,
    preservation_charts,
    published_times,
    truth_table,
    type_tables,
)
from eval.scene_edits.page import colours_of

__all__ = ["PageCase", "PageEdit", "case_rows", "write_pie_page"]

logger = logging.getLogger(__name__)

LARGE_MB = 100
"""Pages from this size on are slow to open."""

BUDGET_MB = 150
"""A page is not to be larger, as far as that can be foreseen."""

_BYTES_A_PIXEL = 0.25
"""Quality of photographs as WebP in base64."""

_LEAST_SIDE = 96

_SCRIPT = Path(__file__).parents[1] / "templates" / "pie.js"
_FORM_WORDS = {
    "published": "As PIE-Bench's official code computes it: both pictures are black inside the mask and the average is "
    "over the whole frame, so a large mask looks better; LPIPS has SqueezeNet; DINO gets levels of 0 to 255 as if they "
    "were in [0, 1]; CLIP edited sees the frame black outside the mask; the frame's border counts as edited.",
    "corrected": "Over the background alone, with DINO's input as it was trained, and CLIP edited on the square around "
    "the mask. For comparing rows here with each other, not with the papers.",
}


def write_pie_page(out: Path, results: Mapping[str, Any], cases: Iterable[PageCase], side: int = 256) -> Path:
    """OUT/index.html of an evaluation.

    Args:
        results: content of results.json: about, rows, types, left_out, bad_annotations; where there are such, checks
            of the references, and in about.differs the reasons why figures do not compare with published ones.
        cases: cases with the pictures' files, which are read here.
        side: pixels of the longer side of pictures in the page, at the most; fewer where so many pictures would make
            the page larger than BUDGET_MB.

    Raises:
        ValueError: a case has an edit of a row that results do not have.
    """
    cases = list(cases)
    names = [row["row"] for row in results["rows"]]
    if strange := sorted({edit.row for case in cases for edit in case.edits} - set(names)):
        raise ValueError(f"cases have edits of {', '.join(strange)}; results have the rows {', '.join(names)}")
    side = affordable_side(side, cases)
    pictures = Pictures(side)
    rows, about = results["rows"], results["about"]
    colours = colours_of(row["row"] for row in rows if not row["reference"])
    colours |= {row["row"]: GREY for row in rows if row["reference"]}
    types = [type_id for type_id in results["types"] if any(type_id in row["by_type"] for row in rows)]
    origins = origins_of(rows)
    by_type = type_tables(rows, [*types, *origins])
    drawn = gallery(cases, rows, pictures)
    script = _SCRIPT.read_text(encoding="utf-8")
    truth_columns, truth_lines = truth_table(rows)
    page = render_page(
        "pie.html.j2",
        out,
        title="PIE-Bench",
        results=results,
        lead=_lead(results, len(cases)),
        tiles=_tiles(rows, len(cases), len(types)),
        differs=about.get("differs", []),
        facts=_facts(about),
        checks=results.get("checks", []),
        device=about.get("device", "one machine"),
        our_rows=[row["row"] for row in rows if is_ours(row["row"])],
        sections=_sections(rows, colours),
        form_words=_FORM_WORDS,
        mask_words=MASK_WORDS,
        forms=list(rows[0]["forms"]) if rows else [],
        truth_columns=truth_columns,
        truth_lines=truth_lines,
        types=types,
        type_names=[*(results["types"][type_id] for type_id in types), *origins],
        further=further_tables(rows),
        type_tables=by_type,
        type_columns=[column for column in PIE_COLUMNS if any(column is found for _, found, _ in by_type)],
        published_times=published_times(),
        elsewhere=other_figures(),
        identity=any(row["row"] == "identity" for row in rows),
        pictures=[Markup(uri) for uri in pictures.uris],
        data=_page_data(results, drawn, pictures),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    _tell_size(page, len(cases), side)
    return page


def affordable_side(side: int, cases: Sequence[PageCase]) -> int:
    """`side`, or the largest side in pixels at which the page's photographs stay within BUDGET_MB, at least 96."""
    count = sum(2 + sum(1 + (edit.reconstruction is not None) for edit in case.edits) for case in cases)
    affordable = int((BUDGET_MB * 1e6 / (_BYTES_A_PIXEL * max(1, count))) ** 0.5)
    if affordable >= side:
        return side
    chosen = min(side, max(_LEAST_SIDE, affordable))
    logger.warning(
        "%d pictures are shown at %d px, not %d, to keep the page below %d MB", count, chosen, side, BUDGET_MB
    )
    return chosen


def _lead(results: Mapping[str, Any], count: int) -> str:
    """Sentence on what was run."""
    rows = results["rows"]
    methods = sum(not row["reference"] for row in rows)
    return f"{count} cases, {methods} rows of editors and {len(rows) - methods} references."


def _tiles(rows: Sequence[Figures], count: int, types: int) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the first things to know: of the encoder's first row, else of the first."""
    tiles = [(str(count), "cases", f"of {types} types of edit")]
    row = next(iter(sorted((r for r in rows if not r["reference"]), key=lambda r: not is_ours(r["row"]))), None)
    if row is None:
        return tiles
    means = {measure: estimate["mean"] for measure, estimate in row["forms"]["published"].items()}
    for measure, unit, words in (
        ("psnr", "dB", "PSNR of the background"),
        ("clip_whole", "", "CLIP similarity to the target prompt"),
    ):
        if means.get(measure) is not None:
            found = row["forms"]["published"][measure]
            exact = f", {found['exact']} of {found['n']} exact" if found.get("exact") else ""
            beside = exact + _strongest(rows, row, measure, unit)
            tiles.append((number(means[measure], 2), unit, f"{words}, {row['title']}, mask: {row['mask']}{beside}"))
    seconds = row["costs"] and row["costs"]["seconds_edit"]["mean"]
    if seconds is not None:
        tiles.append((number(seconds, 3), "s", f"an edit after inversion, {row['title']}"))
    return tiles


def _strongest(rows: Sequence[Figures], ours: Figures, measure: str, unit: str) -> str:
    """Words on the best row in a measure that is not the encoder's, of those with such a mask; none without any."""
    found = [r for r in rows if not r["reference"] and not is_ours(r["row"]) and r["mask"] == ours["mask"]]
    means = {r["title"]: r["forms"]["published"].get(measure, {}).get("mean") for r in found if r is not ours}
    known = {title: mean for title, mean in means.items() if mean is not None}
    if not known:
        return ""
    best = max(known, key=lambda title: known[title])
    return f"; the highest of another method with such a mask: {known[best]:.2f} {unit}".rstrip() + f", {best}"


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and words of everything that `about` says, but for what the page's head does."""
    facts = []
    for name, value in about.items():
        if name == "metrics":
            facts += [(f"metric: {metric}", str(words)) for metric, words in value.items()]
        elif name not in ("differs", "training") and value not in (None, "", [], {}):
            facts.append((name.replace("_", " "), _words(value)))
    return facts


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _sections(rows: Sequence[Figures], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Tables and chart of descriptive and of instructive prompts, where there are rows of such."""
    sections = []
    for title, words, kinds in (
        (
            "Descriptive prompts",
            "The editor is given prompts of source and target: short, the benchmark's own, or long, which say more.",
            ("short", "long"),
        ),
        (
            "Instructive prompts",
            "The editor is given the picture and an order; where it needs prompts, a captioner writes them and changes "
            "them by the order.",
            ("instructive",),
        ),
    ):
        chosen = [row for row in rows if row["prompts"] in kinds]
        if chosen:
            tables = {form: figures_table(chosen, form, colours, form == "published") for form in chosen[0]["forms"]}
            charts = preservation_charts(chosen, colours)
            sections.append({"title": title, "words": words, "tables": tables, "charts": charts})
    return sections


def _page_data(results: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], pictures: Pictures) -> dict[str, Any]:
    """Data that the page's script reads."""
    return {
        "rows": [{name: row[name] for name in ("title", "reference", "prompts", "mask")} for row in results["rows"]],
        "columns": [
            {
                "measure": c.name,
                "title": c.title,
                "unit": c.unit,
                "scale": c.scale,
                "digits": c.digits,
                "higher": c.higher,
            }
            for c in PIE_COLUMNS
        ],
        "forms": list(dict.fromkeys(form for case in cases for edit in case["edits"] for form in edit["values"])),
        "types": results["types"],
        "identity": any(row["row"] == "identity" for row in results["rows"]),
        "small": pictures.largest <= LOSSLESS_SIDE,
        "cases": cases,
    }


def _tell_size(page: Path, count: int, side: int) -> None:
    megabytes = page.stat().st_size / 1e6
    if megabytes >= LARGE_MB:
        logger.warning(
            "the page is %.0f MB for %d cases at %d px and will open slowly; smaller pictures or fewer rows help",
            megabytes,
            count,
            side,
        )
    else:
        logger.info("the page is %.1f MB for %d cases at %d px", megabytes, count, side)
