"""Time, memory and losses of a TurboEdit training with each memory and speed option, beside the plain one.

    python -m scripts.bench_options
    python -m scripts.bench_options --size sdxl --precision bf16 --batch 2 --select [plain,lora,adamw8bit]

The engine trains the same steps once for each option, one after the other in one process: the miniature's student with
its weights, or SDXL's UNet with random ones, on random latents. It prints a table; the last line is one JSON object, in
each result ratio is value / reference, and the reference is the plain run's.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.choices import OPTIONS, GeneratorDtype
from scripts.bench.results import print_results


def bench(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["no", "bf16"] = "no",
    generator_dtype: GeneratorDtype = "auto",
    size: Literal["miniature", "sdxl"] = "miniature",
    batch: int = 8,
    steps: int = 50,
    lr: float = 1e-5,
    select: tuple[str, ...] = tuple(OPTIONS),
) -> list[dict[str, Any]]:
    """Measure the memory and speed options of a TurboEdit training.

    Args:
        device: Where everything runs; auto takes CUDA where it is.
        precision: Precision of the encoder's forward pass, in all runs.
        generator_dtype: Dtype of the frozen models, in all runs; auto is float32 under no, and under bf16 the
            trainings' default, float16, or on a CPU bfloat16.
        size: Networks: the miniature's student, or SDXL.
        batch: Samples of a step.
        steps: Steps of each run.
        lr: Learning rate; the larger, the faster rounding grows in the losses.
        select: Options to measure; plain is always among them.

    Returns:
        The results that are printed.

    Raises:
        ValueError: An option that is not known, no step at all, or CUDA where there is none.
    """
    unknown = sorted(set(select) - set(OPTIONS))
    if unknown:
        raise ValueError(f"--select {', '.join(unknown)}: expected some of {', '.join(OPTIONS)}")
    if batch < 1 or steps < 1:
        raise ValueError(f"--batch {batch}, --steps {steps}: expected at least 1")
    from scripts.bench.options import measure_options

    return measure_options(device, precision, generator_dtype, size, batch, steps, lr, select)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_options", bench, argv))


if __name__ == "__main__":
    main()
