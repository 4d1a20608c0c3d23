"""Checks a folder of shards before GPUs are spent on it, and writes a page that shows what is in it.

    python -m data.inspect SHARDS [--out DIR] [--backbone stabilityai/sdxl-turbo] [--global-batch 256]

The exit status is 0 if training can start, 1 if something is wrong, 2 for wrong options.
"""

from collections.abc import Sequence
from pathlib import Path

from data.inspection.config import InspectConfig
from data.jobs.command import existing, run


def inspect(shards: str, config: InspectConfig) -> None:
    """Inspect a folder of shards: the summary on the terminal, the page beside the shards.

    Args:
        shards: OUT folder of data.caption, data.edit_pairs or data.encode.

    Raises:
        ShardError: if there is no such folder.
        CaptionerError, ValueError or OSError: if there is no such backbone.
        SystemExit: with status 1 if something is wrong with the shards.
    """
    existing(shards, "SHARDS", "folder made by data.caption, data.edit_pairs or data.encode")
    from data.inspection.checks import inspect_shards, terminal_report  # torch takes seconds
    from data.inspection.page import write_page

    found = inspect_shards(shards, config)
    page = write_page(found, Path(config.out or Path(shards) / "inspection"))
    print(terminal_report(found))
    print(f"page: {page}")
    if found.findings.problems:
        raise SystemExit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point.

    Raises:
        SystemExit: with status 1 if something is wrong, 2 for wrong options.
    """
    run("data.inspect", inspect, arguments, positional=True)


if __name__ == "__main__":
    main()
