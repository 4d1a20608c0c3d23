"""Memory of an export beside the bytes that it writes, on random weights of SDXL's shape.

    python -m scripts.bench_export                # a hundredth of SDXL: a minute on two cores
    python -m scripts.bench_export --full true    # SDXL itself: 20 GB of disk, 15 GB of memory, ten minutes

Writes SDXL-Turbo's folder and a run folder as a training leaves it, exports it by `python -m train.export` in a process
of its own, and reads that process's highest resident memory, less that of the imported libraries. The last line printed
is one JSON object; ratio is that memory / the bytes that are written.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.results import print_results


def bench(
    full: bool = False,
    widths: tuple[int, int, int] = (128, 256, 512),
    rank: int = 16,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    encoder_only: bool = False,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Measure the memory of an export.

    Args:
        full: Take SDXL's own sizes, 2.6 billion weights in a UNet.
        widths: Channels of the UNet's three levels unless it is `full`; SDXL has (320, 640, 1280).
        rank: Rank of the run's adapters; 0 has trained all weights.
        dtype: Type of the stored weights.
        encoder_only: Export the encoder alone.
        device: Device on which the export is tried out.

    Returns:
        The results that are printed.
    """
    from scripts.bench.export import measure_export

    options = (f"--encoder_only={str(encoder_only).lower()}", f"--device={device}")
    return measure_export(None if full else widths, rank, dtype, *options)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_export", bench, argv))


if __name__ == "__main__":
    main()
