"""Correctness of data.edit_pairs' pairs on the miniature, where both pictures can be read.

python -m scripts.miniature.measure_pairs runs/instruct/pairs
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run


def measure_pairs(shards: Path, attributes: Path = Path("models/miniature/attributes")) -> dict[str, Any]:
    """Print, as JSON, what the attribute reader finds in the pictures of pairs; all, and by the instructions' verbs.

    Args:
        shards: OUT folder of data.edit_pairs.
        attributes: Folder of the attribute reader.

    Returns:
        What is printed.
    """
    existing(shards, "SHARDS", "folder of data.edit_pairs")
    existing(attributes, "--attributes", "folder of the attribute reader")
    from scripts.miniature.pairs import pair_figures

    found = pair_figures(shards, attributes)
    print(json.dumps(found, indent=1))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.miniature.measure_pairs", measure_pairs, argv, positional=True)


if __name__ == "__main__":
    main()
