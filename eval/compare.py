"""Two PIE-Bench evaluations side by side: differences case by case, each with a bootstrap interval.

    python -m eval.compare A B [--out DIR] [--row_a X --row_b Y]

A and B are folders of eval.pie_bench on the same data with the same metrics; the difference is B less A, on the cases
that both have. Without --row_a and --row_b every row is compared with the row of the same name. Prints a table; with
--out also leaves DIR/index.html, compare.json and compare.csv.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import existing, run
from eval.harness.results import write_results, write_table
from eval.metrics.intervals import LEVEL
from eval.pie.comparison import RESAMPLES, Difference, read_evaluation, require_comparable, row_differences, row_pairs

logger = logging.getLogger(__name__)


def compare_evaluations(
    a: Path, b: Path, out: Path | None = None, row_a: str | None = None, row_b: str | None = None, seed: int = 0
) -> list[Difference]:
    """Compare two evaluations of PIE-Bench case by case.

    Args:
        a: folder of eval.pie_bench
        b: another one, or the same for two of its rows
        out: folder for the page, compare.json and compare.csv; without it the table is only printed
        row_a: row of A; without it all rows that both have
        row_b: row of B to compare with it, by default the same
        seed: seed of the resampling

    Raises:
        ValueError: the folders are no evaluations, differ in what has to be equal, or share no row or case.
    """
    for option, folder in (("--a", a), ("--b", b)):
        existing(folder, option, "folder of eval.pie_bench")
    first, second = read_evaluation(a), read_evaluation(b)
    require_comparable(first, second)
    differences = [
        difference
        for pair in row_pairs(first, second, row_a, row_b)
        for difference in row_differences(first, second, pair, seed)
    ]
    print(difference_table(differences))
    if out is not None:
        from eval.pie.compare_page import write_compare_page

        settings = {"a": str(a), "b": str(b), "level": LEVEL, "resamples": RESAMPLES, "seed": seed}
        rows = [difference.to_row() for difference in differences]
        write_results(out / "compare.json", {"settings": settings, "differences": rows})
        write_table(out / "compare.csv", rows)
        logger.info("page: %s", write_compare_page(out, first, second, differences, settings))
    return differences


def difference_table(differences: Sequence[Difference]) -> str:
    """The differences as text, in the scales of the papers."""
    head = (
        "row",
        "mask",
        "form",
        "measure",
        "A",
        "B",
        "B - A",
        f"{100 * LEVEL:g} % interval",
        "n",
        "better",
        "worse",
        "",
    )
    lines: list[tuple[str, ...]] = [head]
    for d in differences:
        name = d.row_a if d.row_a == d.row_b else f"{d.row_a} / {d.row_b}"
        title = f"{d.measure.title} {d.measure.unit}".strip()
        printed = d.measure.printed
        interval = f"{printed(d.interval.low)} to {printed(d.interval.high)}"
        figures = (
            printed(d.mean_a),
            printed(d.mean_b),
            printed(d.interval.mean),
            interval,
            d.interval.n,
            d.better,
            d.worse,
        )
        lines.append((name, d.mask, d.form, title, *map(str, figures), d.verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 4 or column == len(head) - 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.compare", compare_evaluations, argv, positional=True)


if __name__ == "__main__":
    main()
