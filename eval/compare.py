"""Two PIE-Bench evaluations side by side: differences case by case, each with a bootstrap interval.

    python -m eval.compare A B [--out DIR] [--row_a X --row_b Y]

A and B are folders of eval.pie_bench on the same data with the same metrics; the difference is B less A, on the cases
that both have. Without --row_a and --row_b every row is compared with the row of the same name. Prints a table; with
--out also leaves DIR/index.html, compare.json and compare.csv.
"""

from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import existing, run
from eval.harness.results import Columns, finish
from eval.metrics.intervals import LEVEL
from eval.pie.comparison import RESAMPLES, Difference, read_evaluation, require_comparable, row_differences, row_pairs


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
        finish(
            out,
            {"settings": settings, "differences": rows},
            None,
            {"compare.csv": rows},
            lambda: write_compare_page(out, first, second, differences, settings),
            "compare.json",
        )
    return differences


def difference_table(differences: Sequence[Difference]) -> str:
    """Write the differences as text, in the scales of the papers."""
    interval = f"{100 * LEVEL:g} % interval"
    table = Columns("row", "mask", "form", "measure", "A", "B", "B - A", interval, "n", "better", "worse", "")
    for d in differences:
        printed = d.measure.printed
        table.add(
            d.row_a if d.row_a == d.row_b else f"{d.row_a} / {d.row_b}",
            d.mask,
            d.place,
            f"{d.measure.title} {d.measure.unit}".strip(),
            printed(d.mean_a),
            printed(d.mean_b),
            printed(d.interval.mean),
            f"{printed(d.interval.low)} to {printed(d.interval.high)}",
            str(d.interval.n),
            str(d.better),
            str(d.worse),
            d.verdict,
        )
    return str(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.compare", compare_evaluations, argv, positional=True)


if __name__ == "__main__":
    main()
