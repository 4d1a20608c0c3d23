"""SDXL-Turbo's architecture with random weights on whatever device is there: training steps, inversion, edit.

    python -m scripts.bench_full_size                                  # on a GPU at full size, else a tenth as wide
    python -m scripts.bench_full_size --micro_batches [10] --select [full,full+checkpointing,latency]

Training is the engine's on cached prompts, full and with LoRA, with and without compile and checkpointing. Latency is
from a picture to its noises, and from them and a new prompt to the edited picture. What does not fit into memory is a
row of the table. The last line printed is one JSON object; ratio is value / reference, the reference a goal at full
size.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.choices import LATENCY, TRAININGS, GeneratorDtype
from scripts.bench.results import print_results


def bench(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    size: Literal["auto", "sdxl", "reduced"] = "auto",
    precision: Literal["auto", "no", "bf16"] = "auto",
    generator_dtype: GeneratorDtype = "auto",
    micro_batches: tuple[int, ...] = (1, 4, 10),
    select: tuple[str, ...] = (*TRAININGS, LATENCY),
    steps: int = 8,
    warmup: int = 3,
    peak_tflops: float = 790.0,
) -> list[dict[str, Any]]:
    """Measure full-size trainings, and the latency of what they export.

    Args:
        device: Where everything runs; auto takes CUDA where it is.
        size: Networks; auto is sdxl on CUDA, reduced on the CPU: the same blocks, a tenth as wide, for pictures of 128
            pixels.
        precision: Precision of the encoder's forward pass; auto is bf16 on CUDA, no on the CPU.
        generator_dtype: Dtype of the frozen models; auto is float32 under no, and under bf16 the trainings' default,
            float16, or on a CPU bfloat16.
        micro_batches: Samples of a training step.
        select: Trainings by their names, and latency.
        steps: Measured steps of each training, and calls of each latency.
        warmup: Steps before the measured ones.
        peak_tflops: Peak of the device in bf16, dense, in TFLOP/s, for the share of it that is used (MFU).

    Returns:
        The results that are printed.

    Raises:
        ValueError: A name that is not known, or CUDA where there is none.
    """
    unknown = sorted(set(select) - {*TRAININGS, LATENCY})
    if unknown:
        raise ValueError(f"--select {', '.join(unknown)}: expected some of {', '.join([*TRAININGS, LATENCY])}")
    from scripts.bench.full_size import measure_full_size

    return measure_full_size(
        device, size, precision, generator_dtype, micro_batches, select, steps, warmup, peak_tflops
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_full_size", bench, argv))


if __name__ == "__main__":
    main()
