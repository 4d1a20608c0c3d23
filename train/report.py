"""Makes the page of a training run anew, or one of several runs with their curves on top of each other.

    python -m train.report RUN                              # RUN/report/index.html
    python -m train.report RUN --against RUN2 RUN3 --out comparison

A training writes its page itself with each checkpoint; a run that still trains may be looked at too.
"""

from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import existing, run


def report(folder: Path, against: list[Path] | None = None, out: Path | None = None) -> None:
    """Write the page.

    Args:
        folder: Run folder of a training.
        against: Further run folders, whose curves are drawn on top of its own.
        out: Folder of the page; RUN/report, or RUN/comparison for several runs.

    Raises:
        ValueError: A folder is no run, has no line of metrics yet, or is named twice.
    """
    folders = [existing(path, "RUN", "folder of a training") for path in (folder, *(against or ()))]
    if len({path.resolve() for path in folders}) < len(folders):
        raise ValueError(f"--against names a run twice: {', '.join(map(str, folders))}; give each one once")
    from train.reports.page import PAGE_FOLDER, write_comparison, write_run_page  # after the command line is understood
    from train.reports.records import read_records

    runs = [read_records(path) for path in folders]
    if len(runs) == 1:
        page = write_run_page(runs[0], out or folder / PAGE_FOLDER)
    else:
        page = write_comparison(runs, out or folder / "comparison")
    print(f"page: {page}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.report", report, arguments, positional=True)


if __name__ == "__main__":
    main()
