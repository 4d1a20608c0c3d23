"""The tables and charts of PIE-Bench's page: our rows and the published ones, with what to know about each below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from data.pages.charts import Point, scatter_chart
from data.pages.page import EXACT, Figures, decibels, figure
from eval.editors.titles import GREY
from eval.metrics.measures import MEASURES, PIE_COLUMNS, PIE_FURTHER, PIE_MEASURES, SECOND_CLIP, Measure
from eval.published.rows import PublishedRow, PublishedTiming, comparison_rows, contradiction, published_rows

MASK_WORDS = {"none": "none", "automatic": "automatic", "given": "given", "unsaid": "not said"}

_NAMES = {
    "structure": "structure distance",
    "ns_lpips": "NS-LPIPS",
    "clipscore": "Clipscore",
    "preference": "share of users who prefer it",
}
"""Titles of the measures that are no abbreviations."""


@dataclass(frozen=True)
class TableLine:
    """One row of a table.

    Args:
        title, small: words on the row, and smaller ones below them.
        colour: colour of its mark in the chart; None for a published row, which has its number there.
        marks: marks of its footnotes.
        cells: cells by column.
        strong: whether it is the encoder's.
    """

    title: str
    small: str
    marks: str
    prompts: str
    mask: str
    steps: str
    cells: Sequence[Markup]
    count: str
    colour: str | None = None
    number: int | None = None
    strong: bool = False


@dataclass
class Footnotes:
    """Sentences below a table, each with its letter once."""

    notes: list[str] = field(default_factory=list)

    def marks(self, notes: Sequence[str]) -> str:
        """The letters of `notes`, new ones added."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
        return ",".join(letters(self.notes.index(note)) for note in dict.fromkeys(notes))

    @property
    def listed(self) -> list[tuple[str, str]]:
        """Letter and sentence."""
        return [(letters(index), note) for index, note in enumerate(self.notes)]


def letters(index: int) -> str:
    """a, b, ..., z, aa, ab ..."""
    first, last = divmod(index, 26)
    return (letters(first - 1) if first else "") + chr(ord("a") + last)


@dataclass(frozen=True)
class Table:
    """Lines in groups (methods, references, published), with what stands below them."""

    columns: Sequence[Measure]
    groups: Mapping[str, Sequence[TableLine]]
    footnotes: Sequence[tuple[str, str]]
    papers: Sequence[str]


def is_ours(row: str) -> bool:
    """Whether a row is the encoder's; Deutch et al. have the name too."""
    return row.startswith("turboedit") and row != "turboedit_deutch"


def figures_table(rows: Sequence[Figures], form: str, colours: Mapping[str, str], published: bool) -> Table:
    """One form of the measures for some rows.

    Args:
        rows: rows of results.json.
        published: whether the papers' rows for such prompts stand below.
    """
    notes = Footnotes()
    groups: dict[str, list[TableLine]] = {"methods": [], "references": [], "published": []}
    for row in rows:
        groups["references" if row["reference"] else "methods"].append(_line(row, form, colours, notes))
    printed = comparison_rows(any(row["prompts"] == "instructive" for row in rows)) if published else []
    for place, line in enumerate(printed, start=1):
        groups["published"].append(_published_line(line, place, notes))
    papers = dict.fromkeys(paper for line in printed for paper in line.papers)
    return Table(PIE_COLUMNS, {name: lines for name, lines in groups.items() if lines}, notes.listed, list(papers))


def _line(row: Figures, form: str, colours: Mapping[str, str], notes: Footnotes) -> TableLine:
    found = row["forms"][form]
    doubts = {name: _doubt(estimates) for name, estimates in row["forms"].items()}
    doubt = doubts[form]
    remarks = [doubt, *(flag for flag in row["flags"] if flag not in doubts.values())]
    if row["failed"]:
        reason = next(iter(row.get("failures", {}).values()), "no reason was kept")
        remarks.append(f"{row['failed']} edits failed and are in no mean. The first: {reason}")
    shared = row.get("shared")
    beside = shared["forms"][form] if shared else {}
    if shared:
        remarks.append(
            f"Some rows lack cases: the means in small type are over the {shared['n']} that all rows of this table have"
        )
    return TableLine(
        title=row["title"],
        small="",
        marks=notes.marks([remark for remark in remarks if remark]),
        prompts=row["prompts"],
        mask=MASK_WORDS[row["mask"]],
        steps="–" if row["steps"] is None else str(row["steps"]),
        cells=_doubted([_row_cell(row, found, beside, column) for column in PIE_COLUMNS], doubt),
        count=str(row["n"]),
        colour=colours.get(row["row"], GREY),
        strong=is_ours(row["row"]),
    )


def _doubt(found: Figures) -> str | None:
    """The footnote of a form's means that contradict each other, or None."""
    psnr, mse = ((found.get(measure) or {}).get("mean") for measure in ("psnr", "mse"))
    return contradiction(psnr, mse)


def _cell(estimate: Figures | None, column: Measure) -> Markup:
    if column.name in ("psnr", "psnr_inside"):
        return decibels(estimate, column.digits)
    return figure(estimate, column.scale, column.digits)


def _row_cell(row: Figures, found: Figures, beside: Figures, column: Measure) -> Markup:
    """A row's cell, with its own n where that is not the row's, and the mean over the shared cases where some lack."""
    estimate = found.get(column.name)
    cell = _cell(estimate, column)
    if estimate and estimate["mean"] is not None and estimate["n"] != row["n"]:
        cell += Markup(" <small>n {}</small>").format(estimate["n"])
    other = beside.get(column.name) or {"mean": None}
    if other["mean"] is not None:
        words = "exact" if other.get("exact") == other["n"] else column.printed(other["mean"])
        cell += Markup(" <small>shared {}</small>").format(words)
    return cell


def _doubted(cells: Sequence[Markup], doubt: str | None) -> list[Markup]:
    """Cells by column, that of the MSE struck out where it contradicts the PSNR."""
    return [
        Markup('<span class="doubt">{}</span>').format(cell) if doubt and column.name == "mse" else cell
        for cell, column in zip(cells, PIE_COLUMNS, strict=True)
    ]


def _published_line(row: PublishedRow, place: int, notes: Footnotes) -> TableLine:
    return TableLine(
        title=row.title,
        small="; ".join(row.sources),
        marks=notes.marks(row.notes),
        prompts=row.prompts,
        mask=MASK_WORDS[row.mask],
        steps="–" if row.steps is None else str(row.steps),
        cells=_doubted(
            [
                Markup(column.printed(row.values[column.name]) if column.name in row.values else "–")
                for column in PIE_COLUMNS
            ],
            contradiction(row.values.get("psnr"), row.values.get("mse")),
        ),
        count="–",
        number=place,
    )


def preservation_charts(rows: Sequence[Figures], colours: Mapping[str, str]) -> list[Markup]:
    """Background PSNR against CLIP similarity: our rows with their errors and the papers' by number, on one chart.

    On two charts where no method of ours lies among the papers' similarities: then another CLIP measured.
    """
    ours = [point for row in rows if (point := _point(row, colours))]
    instructive = any(row["prompts"] == "instructive" for row in rows)
    theirs = [
        Point(
            line.title,
            line.values["psnr"],
            line.values["clip_whole"],
            f"{line.values['psnr']:.2f} dB, CLIP {line.values['clip_whole']:.2f} ({line.sources[0]})",
            GREY,
            "ring",
            label=str(place),
        )
        for place, line in enumerate(comparison_rows(instructive), start=1)
        if "psnr" in line.values and "clip_whole" in line.values
    ]
    methods = [point.y for point in ours if point.mark == "disc"]
    low, high = min(point.y for point in theirs), max(point.y for point in theirs)
    if not methods:
        return []
    apart = max(methods) < low or min(methods) > high
    axes = "PSNR of the background (dB): what is kept", "CLIP similarity to the target prompt"
    return [scatter_chart(points, *axes) for points in ((ours, theirs) if apart else ([*ours, *theirs],))]


def _point(row: Figures, colours: Mapping[str, str]) -> Point | None:
    """A row's place in the chart, without its exact backgrounds; None without figures, or where all are exact."""
    found = row["forms"]["published"]
    psnr, clip = (found.get(measure) or {"mean": None} for measure in ("psnr", "clip_whole"))
    if psnr.get("exact"):
        psnr = psnr["others"]
    if psnr["mean"] is None or clip["mean"] is None or psnr["mean"] >= EXACT:
        return None
    return Point(
        row["title"],
        psnr["mean"],
        clip["mean"],
        f"{psnr['mean']:.2f} dB, CLIP {clip['mean']:.2f}",
        colours.get(row["row"], GREY),
        "square" if row["reference"] else "disc",
        errors=(psnr["se"] or 0.0, clip["se"] or 0.0),
    )


def truth_table(rows: Sequence[Figures]) -> tuple[list[Measure], list[tuple[Figures, list[Markup]]]]:
    """Columns and lines of what is measured against true edits; no lines where none is known."""
    known = [row for row in rows if row["truth"]]
    measures = list(dict.fromkeys(measure for row in known for measure in row["truth"]))
    columns = [PIE_MEASURES.get(m) or MEASURES[m] for m in measures]
    return columns, [(row, [_cell(row["truth"].get(c.name), c) for c in columns]) for row in known]


def type_tables(
    rows: Sequence[Figures], types: Sequence[str]
) -> list[tuple[str, Measure, list[tuple[Figures, list[Markup]]]]]:
    """(form, column, lines) of every measure by type of edit and origin; a line is a row and its cells by these."""
    tables = []
    for form in rows[0]["forms"] if rows else ():
        for column in PIE_COLUMNS:
            lines = [
                (row, [_cell(_of_type(row, type_id, form).get(column.name), column) for type_id in types])
                for row in rows
            ]
            if any(cell != "–" for _, cells in lines for cell in cells):
                tables.append((form, column, lines))
    return tables


def _of_type(row: Figures, part: str, form: str) -> Figures:
    """Figures of a type or of an origin, which former results do not have."""
    return {**row["by_type"], **row.get("by_origin", {})}.get(part, {}).get(form, {})


def origins_of(rows: Sequence[Figures]) -> list[str]:
    """The origins of pictures that are told apart."""
    return list(dict.fromkeys(origin for row in rows for origin in row.get("by_origin", {})))


def further_tables(rows: Sequence[Figures]) -> list[tuple[str, list[Measure], list[tuple[Figures, list[Markup]]]]]:
    """(form, columns, lines) of the further measures and a second CLIP's; none where nothing was asked for."""
    tables = []
    for form in rows[0]["forms"] if rows else ():
        there = {name for row in rows for name, found in row["forms"][form].items() if found["n"]}
        columns = [measure for measure in (*PIE_FURTHER, *SECOND_CLIP) if measure.name in there]
        lines = [(row, [_cell(row["forms"][form].get(column.name), column) for column in columns]) for row in rows]
        tables += [(form, columns, lines)] if columns else []
    return tables


def published_times() -> list[tuple[PublishedRow, PublishedTiming, str]]:
    """(row, timing, seconds in words) of all times that papers with PIE-Bench's figures give."""
    lines = [*comparison_rows(instructive=False), *comparison_rows(instructive=True)]
    return [(line, timing, seconds_words(timing)) for line in lines for timing in line.timings]


def other_figures() -> list[tuple[PublishedRow, str, str]]:
    """(row, figures in words, notes) of what was not measured on PIE-Bench's edits."""
    rows = [row for row in published_rows() if row.protocol not in ("pie_bench", "ablation")]
    return [(row, _figures_words(row), " ".join([*row.notes, _doubt_words(row)]).strip()) for row in rows]


def _doubt_words(row: PublishedRow) -> str:
    return contradiction(row.values.get("psnr"), row.values.get("mse")) or ""


def _figures_words(row: PublishedRow) -> str:
    steps = [] if row.steps is None else [f"{row.steps} step{'s' * (row.steps > 1)}"]
    figures = [f"{_NAMES.get(name, name.upper())} {value:.4g}" for name, value in row.values.items()]
    times = [f"{seconds_words(timing)} s ({timing.device})" for timing in row.timings]
    return ", ".join([*steps, *figures, *times]) or "no figure"


def seconds_words(timing: PublishedTiming) -> str:
    """Seconds of a published row: inversion + edit, or what is given of them."""
    if timing.total is not None:
        return f"{timing.total:g} in all"
    if timing.invert is None or timing.edit is None:
        return f"edit {timing.edit:g}" if timing.invert is None else f"inversion {timing.invert:g}"
    return f"{timing.invert:g} + {timing.edit:g}"
