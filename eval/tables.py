"""Tables of an evaluation's means for a paper: LaTeX, Markdown and CSV, best bold and second underlined.

    python -m eval.tables DIR [--rows '[turboedit, ddim]'] [--measures '[psnr, ssim]'] [--part natural] [--errors true]

DIR is the folder of eval.pie_bench, of eval.scenes and its like, or of eval.reconstruction. Leaves OUT/means.tex, .md
and .csv. eval.pie_bench writes these itself with the defaults, beside evaluation_result.csv in its official layout.
"""

from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import existing, run


def tabulate_means(
    folder: Path,
    out: Path | None = None,
    form: str = "published",
    part: str | None = None,
    rows: list[str] | None = None,
    measures: list[str] | None = None,
    errors: bool = False,
    references: bool = False,
) -> list[Path]:
    """Write the means of a finished evaluation as tables; returns their paths.

    Args:
        folder: folder of the evaluation
        out: folder of the tables; tables in the evaluation's folder by default
        form: form of PIE-Bench's measures, published or corrected
        part: only edits of one type (its number or name), or of natural or artificial pictures
        rows: names of the rows, in their order; all methods by default
        measures: names of the measures, in their order; all that have figures by default
        errors: put standard errors behind the means; the CSV always has them
        references: keep rows that are no methods (identity, truth, noise ...), where --rows does not choose

    Raises:
        ValueError: the folder is no finished evaluation, or lacks what is asked for.
    """
    existing(folder, "folder", "folder of an evaluation")
    from eval.typeset.files import write_means

    paths = write_means(folder, out or folder / "tables", form, part, rows, measures, errors, references)
    print(paths[1].read_text(encoding="utf-8"))
    print("\n".join(map(str, paths)))
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.tables", tabulate_means, argv, positional=True)


if __name__ == "__main__":
    main()
