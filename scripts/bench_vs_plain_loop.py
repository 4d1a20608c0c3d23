"""Training with the engine beside the same training as a plain script in the manner of diffusers' examples arranges it.

    python -m scripts.bench_vs_plain_loop
    python -m scripts.bench_vs_plain_loop --size sdxl --batch 10 --gradient_checkpointing true

The plain loop computes the same losses from the same samples, draws and weights. It keeps the frozen models in float32,
encodes the text in every step, collates sample by sample, has torch's default AdamW and diffusers' EMAModel, and reads
its figures with .item() in every step. Both run in turns in one process, each built anew. The last line printed is one
JSON object; ratio is value / reference, the reference the plain loop's.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.choices import GeneratorDtype
from scripts.bench.results import print_results


def bench(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    size: Literal["miniature", "reduced", "sdxl"] = "miniature",
    precision: Literal["auto", "no", "bf16"] = "auto",
    generator_dtype: GeneratorDtype = "auto",
    batch: int = 16,
    steps: int = 20,
    warmup: int = 3,
    rounds: int = 3,
    lr: float = 1e-5,
    gradient_checkpointing: bool = False,
) -> list[dict[str, Any]]:
    """Measure the engine's loop and a plain one.

    Args:
        device: Where both run; auto takes CUDA where it is.
        size: Networks: the miniature's student with its weights, or SDXL-Turbo's architecture, reduced or not, with
            random weights.
        precision: Precision of the forward passes; auto is bf16 on CUDA, no on the CPU.
        generator_dtype: Dtype of the engine's frozen models; auto is float32 under no, and under bf16 the trainings'
            default, float16, or on a CPU bfloat16.
        batch: Samples of a step.
        steps: Measured steps of each loop in each round.
        warmup: Steps before the measured ones.
        rounds: Rounds, of which the medians count.
        lr: Learning rate of both.
        gradient_checkpointing: Checkpoint the activations of both networks, in both loops.

    Returns:
        The results that are printed.

    Raises:
        ValueError: The two loops do not have the same losses.
    """
    from scripts.bench.vs_plain_loop import measure_loops

    return measure_loops(
        device, size, precision, generator_dtype, batch, steps, warmup, rounds, lr, gradient_checkpointing
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_vs_plain_loop", bench, argv))


if __name__ == "__main__":
    main()
