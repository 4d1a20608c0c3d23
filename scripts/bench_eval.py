"""PIE-Bench's metrics in batches, the sources shared by several editors, beside the metrics called edit by edit.

    python -m scripts.bench_eval
    python -m scripts.bench_eval --size real --cases 4 --batch 4

The reference works as the official script does: for each edit and measure both pictures go through the network by
themselves, the prompt is encoded anew, pictures are prepared one at a time. Networks (random weights), forms and
measures are the same on both sides, and so must the values be. The last line printed is one JSON object; ratio is
value / reference, the reference the metrics' one by one.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.results import print_results


def bench(
    size: Literal["tiny", "real"] = "tiny",
    cases: int = 8,
    editors: int = 4,
    batch: int = 8,
    rounds: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[dict[str, Any]]:
    """Measure the metrics of edits in batches and case by case.

    Args:
        size: Tiny networks and pictures of 64 pixels, or DINO's, CLIP's and PIE-Bench's own sizes.
        cases: Source pictures.
        editors: Edits of each source.
        batch: Pictures at a time.
        rounds: Rounds of both, in turns; the medians count.
        device: Where the networks run; auto takes CUDA where it is.

    Returns:
        The results that are printed.

    Raises:
        ValueError: A value differs, or a number is below 1.
    """
    if min(cases, editors, batch, rounds) < 1:
        raise ValueError(f"cases {cases}, editors {editors}, batch {batch}, rounds {rounds}: all must be at least 1")
    from scripts.bench.eval import measure_metrics

    return measure_metrics(size, cases, editors, batch, rounds, device)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_eval", bench, argv))


if __name__ == "__main__":
    main()
