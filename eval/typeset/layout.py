"""A table of means as LaTeX, Markdown and CSV: the best of each column bold, the second underlined."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics.measures import Measure

_POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: "\\" + sign for sign in "&%$#_{}"
}


@dataclass(frozen=True)
class PaperLine:
    """A row of means.

    Args:
        name: name in results.json.
        title: name as people read it.
        words: what stands between the title and the figures.
        figures: mean, standard error and n by measure, unscaled.
        group: lines of one group compete; None for what is no method.
    """

    name: str
    title: str
    words: Sequence[str]
    figures: Mapping[str, Mapping[str, Any]]
    group: str | None = ""


@dataclass(frozen=True)
class PaperTable:
    """Lines and columns, with heads of the words and sentences to know about the figures."""

    heads: Sequence[str]
    columns: Sequence[Measure]
    lines: Sequence[PaperLine]
    notes: Sequence[str]

    def places(self) -> dict[tuple[str, str], int]:
        """1 for the best line of a group and 2 for the second, by line and measure; equal as printed is equal.

        A line that has nobody to compete with has no place, nor has a measure of which neither end is the better.
        """
        found: dict[tuple[str, str], int] = {}
        for column in self.columns:
            for group in {line.group for line in self.lines if line.group is not None}:
                lines = [line for line in self.lines if line.group == group]
                values = {line.name: float(text) for line in lines if (text := _mean(line, column))}
                ends = sorted(set(values.values()), reverse=column.higher)[:2]
                if column.better and len(values) > 1:
                    found |= {(name, column.name): ends.index(v) + 1 for name, v in values.items() if v in ends}
        return found


def _mean(line: PaperLine, column: Measure) -> str:
    """A mean as it is printed, or nothing."""
    estimate = line.figures.get(column.name)
    return "" if not estimate or estimate["mean"] is None else column.printed(estimate["mean"])


def _error(line: PaperLine, column: Measure) -> str:
    estimate = line.figures.get(column.name)
    return "" if not estimate or estimate.get("se") is None else column.printed(estimate["se"])


def as_markdown(table: PaperTable, errors: bool) -> str:
    """The table as Markdown (GitHub's), with its notes below."""
    marks = {1: "**{}**", 2: "<u>{}</u>"}
    cells = _cells(table, errors, marks, " ± {}", "–")
    heads = ["", *table.heads, *(" ".join(filter(None, (*column.head, _arrow(column)))) for column in table.columns)]
    rule = ["---"] * (1 + len(table.heads)) + ["---:"] * len(table.columns)
    rows = [heads, rule, *([line.title, *line.words, *found] for line, found in zip(table.lines, cells, strict=True))]
    lines = ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    return "\n".join([*lines, "", *table.notes]) + "\n"


def as_latex(table: PaperTable, errors: bool) -> str:
    """The table as a tabular with booktabs' rules, its notes as comments before it."""
    marks = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    cells = _cells(table, errors, marks, r" {{\scriptsize $\pm$ {}}}", "--")
    heads = ["", *map(_escaped, table.heads), *map(_latex_head, table.columns)]
    rows = [[*map(_escaped, (line.title, *line.words)), *found] for line, found in zip(table.lines, cells, strict=True)]
    kinds = "l" * (1 + len(table.heads)) + "r" * len(table.columns)
    return "\n".join(
        [
            *(f"% {note}" for note in table.notes),
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def csv_lines(table: PaperTable) -> list[dict[str, Any]]:
    """The table as rows of a CSV: mean, standard error and n of each measure, unscaled as in all of our CSVs."""
    rows = []
    for line in table.lines:
        row: dict[str, Any] = {"row": line.name, "title": line.title, **dict(zip(table.heads, line.words, strict=True))}
        for column in table.columns:
            estimate = line.figures.get(column.name) or {}
            row[column.name] = estimate.get("mean")
            row |= {f"{column.name}_{part}": estimate.get(part) for part in ("se", "n")}
        rows.append(row)
    return rows


def _cells(table: PaperTable, errors: bool, marks: Mapping[int, str], error: str, none: str) -> list[list[str]]:
    """Cells by line: means in the marks of their places, with errors behind them in the form `error`."""
    places = table.places()
    found = []
    for line in table.lines:
        row = []
        for column in table.columns:
            mean, deviation = _mean(line, column), _error(line, column)
            cell = marks.get(places.get((line.name, column.name), 0), "{}").format(mean) if mean else none
            row.append(cell + (error.format(deviation) if errors and mean and deviation else ""))
        found.append(row)
    return found


def _arrow(column: Measure, up: str = "↑", down: str = "↓") -> str:
    return {"higher": up, "lower": down, None: ""}[column.better]


def _latex_head(column: Measure) -> str:
    """Title, arrow and unit; the powers of ten in the way of LaTeX."""
    unit = _escaped(column.unit)
    if column.unit.startswith("×10"):
        unit = rf"$\times 10^{{{column.unit.removeprefix('×10').translate(_POWERS)}}}$"
    arrow = _arrow(column, r"$\uparrow$", r"$\downarrow$")
    return " ".join(filter(None, (_escaped(column.title), arrow, f"({unit})" if unit else "")))


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)


TEXTS: Mapping[str, Callable[[PaperTable, bool], str]] = {".tex": as_latex, ".md": as_markdown}
"""Texts of a table by the suffix of their files."""
