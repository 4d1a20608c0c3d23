"""Time of a training step beside the bare sum of its parts, measured in turns in one process.

    python -m scripts.bench_train_step --precision bf16
    python -m scripts.bench_train_step --size sdxl --cached_prompts true --precision bf16 --batch 4
    python -m scripts.bench_train_step --terms true --steps 8

The engine trains TurboEdit for some steps, then the same forward and backward passes, AdamW, clipping and average run
bare for as many, and so on. The last line printed is one JSON object; in each result ratio is value / reference.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.choices import GeneratorDtype
from scripts.bench.results import print_results


def bench(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["no", "bf16"] = "no",
    generator_dtype: GeneratorDtype = "auto",
    size: Literal["miniature", "sdxl"] = "miniature",
    batch: int = 32,
    steps: int = 40,
    block: int = 4,
    workers: int = 2,
    cached_prompts: bool = False,
    gradient_checkpointing: bool = False,
    adversary: bool = False,
    terms: bool = False,
) -> list[dict[str, Any]]:
    """Measure the engine's step against its parts on random weights and random shards.

    Args:
        device: Where the steps run; auto takes CUDA where it is.
        precision: Precision of the encoder's forward pass.
        generator_dtype: Dtype of the frozen models; auto is float32 under no, and under bf16 the trainings' default,
            float16, or on a CPU bfloat16.
        size: Networks: the miniature's student, or SDXL.
        batch: Samples of a step.
        steps: Measured steps of each side, a multiple of `block`; one more block of each warms up.
        block: Steps between two changes of side; the engine writes its metrics once a block.
        workers: The engine's reading processes.
        cached_prompts: Read prompt embeddings from the shards; sdxl has no text encoders here and needs it.
        gradient_checkpointing: Checkpoint the activations of both networks, on both sides.
        adversary: Train with an adversary on latents, on both sides.
        terms: Instead of the engine, time a step with each term of the objective beside one without; `workers` has no
            part in it.

    Returns:
        The results that are printed.

    Raises:
        ValueError: Options that do not fit together.
    """
    if batch < 1 or block < 1 or steps < block or steps % block:
        raise ValueError(
            f"--steps {steps}, --block {block}, --batch {batch}: steps must be a multiple of block, all above 0"
        )
    if size == "sdxl" and not cached_prompts:
        raise ValueError("--size sdxl has no text encoders here: add --cached_prompts true")
    if terms:
        from scripts.bench.terms import measure_terms

        return measure_terms(
            device, precision, generator_dtype, size, batch, steps, block, cached_prompts, gradient_checkpointing
        )
    from scripts.bench.train_step import measure_train_step

    return measure_train_step(
        device,
        precision,
        generator_dtype,
        size,
        batch,
        steps,
        block,
        workers,
        cached_prompts,
        gradient_checkpointing,
        adversary,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_train_step", bench, argv))


if __name__ == "__main__":
    main()
