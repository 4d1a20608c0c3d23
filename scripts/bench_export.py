"""Memory of an export beside the exported pipeline itself, on random weights of SDXL's shape and reduced width.

    python -m scripts.bench_export

Writes a pipeline and a run folder as a training leaves it, exports it by `python -m train.export` in a process of its
own, and reads that process's highest resident memory, less that of one that has only imported what the export needs.
The last line printed is one JSON object; ratio is that memory / the pipeline in float32.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.results import print_results


def bench(
    widths: tuple[int, int, int] = (128, 256, 512), dtype: Literal["float16", "bfloat16", "float32"] = "float16"
) -> list[dict[str, Any]]:
    """Measure the memory of an export.

    Args:
        widths: Channels of the UNet's three levels; SDXL has (320, 640, 1280), 2.6 billion weights.
        dtype: Type of the stored weights.

    Returns:
        The results that are printed.
    """
    from scripts.bench.export import measure_export

    return measure_export(widths, dtype)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_export", bench, argv))


if __name__ == "__main__":
    main()
