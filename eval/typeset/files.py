"""The files of tables that an evaluation leaves: means as LaTeX, Markdown and CSV, and PIE-Bench's own layout."""

import json
from collections.abc import Sequence
from pathlib import Path

from data.jobs.files import write_text
from eval.harness.results import write_table
from eval.typeset.layout import TEXTS, csv_lines
from eval.typeset.official import write_official
from eval.typeset.sources import read_means


def write_means(
    folder: Path,
    out: Path,
    form: str = "published",
    part: str | None = None,
    rows: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    errors: bool = False,
    references: bool = False,
) -> list[Path]:
    """Write OUT/means.tex, .md and .csv of an evaluation, means_PART.* for a part; returns their paths.

    Raises:
        ValueError: see `read_means`.
    """
    table = read_means(folder, form, part, rows, measures, references)
    out.mkdir(parents=True, exist_ok=True)
    name = "_".join(["means", *([] if form == "published" else [form]), *([part.replace(" ", "_")] if part else [])])
    for suffix, text in TEXTS.items():
        write_text(out / f"{name}{suffix}", text(table, errors))
    write_table(out / f"{name}.csv", csv_lines(table))
    return [out / f"{name}{suffix}" for suffix in (*TEXTS, ".csv")]


def write_pie_tables(folder: Path, out: Path) -> None:
    """Write the means of all cases and of natural and artificial ones apart, and evaluation_result.csv."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    origins = dict.fromkeys(origin for row in results["rows"] for origin in row.get("by_origin", {}))
    for part in (None, *origins):
        write_means(folder, out, part=part, references=all(row["reference"] for row in results["rows"]))
    write_official(folder, out, [row["row"] for row in results["rows"] if row["reference"]])
