"""Speed and memory of the data path: the loader beside stock webdataset, and the caption stage without a model.

    python -m scripts.bench_data
    python -m scripts.bench_data --parts '[loader]' --workers 0 --rounds 9

Two sides that are compared take turns on the same files in one process, and medians over the rounds are reported. The
last line printed is one JSON object; in each result ratio is value / reference.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.results import print_results


def bench(
    parts: tuple[Literal["loader", "memory", "decode", "stage"], ...] = ("loader", "memory", "decode", "stage"),
    samples: int = 8192,
    prompt_samples: int = 2048,
    batch: int = 64,
    workers: int = 2,
    rounds: int = 5,
    flat_samples: int = 100_000,
    pictures: int = 128,
) -> list[dict[str, Any]]:
    """Measure the data path on random shards and made photographs, in a temporary folder.

    Args:
        parts: Parts of the data path to measure.
        samples: Samples in the shards with latents alone (34 KB each).
        prompt_samples: Samples in the shards with latents and prompt embeddings (352 KB each).
        batch: Samples of a batch.
        workers: Reading processes of either side; 0 reads in this process.
        rounds: Measurements of each side.
        flat_samples: Samples that the memory test reads.
        pictures: Photographs of each size.

    Returns:
        The results that are printed.

    Raises:
        ValueError: Sizes that do not fit together.
    """
    if min(samples, prompt_samples, flat_samples) < 2 * batch or workers < 0 or rounds < 1 or pictures < 1:
        raise ValueError(
            f"--samples {samples}, --prompt_samples {prompt_samples}, --flat_samples {flat_samples}: each must be at "
            f"least two batches of {batch}; --workers {workers} at least 0, --rounds {rounds} and --pictures "
            f"{pictures} at least 1"
        )
    from scripts.bench.data import measure_data_path

    return measure_data_path(parts, samples, prompt_samples, batch, workers, rounds, flat_samples, pictures)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_data", bench, argv))


if __name__ == "__main__":
    main()
