"""Make the miniature: scenes, tokenizer, VAE, CLIP, attribute reader, teacher, students, LLaVA, proposer, figures.

    python -m scripts.miniature.make OUT --work WORK                 # many hours on two cores, half an hour on a GPU
    python -m scripts.miniature.make OUT --work WORK --quick true    # minutes: proves the recipe, learns little

Each part is a run folder under --work, so a killed command goes on where it was; a part that is finished is skipped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data.jobs.command import run

STEPS: tuple[str, ...] = (
    "scenes",
    "vae",
    "encode",
    "clip",
    "attributes",
    "teacher",
    "student",
    "student_epsilon",
    "student_flow",
    "teacher_lora",
    "llava",
    "proposer",
    "card",
)


def make(
    out: Path,
    work: Path = Path("runs/miniature"),
    quick: bool = False,
    steps: tuple[str, ...] = STEPS,
    processes: int = 2,
    precision: Literal["no", "bf16"] = "no",
) -> None:
    """Make the miniature.

    Args:
        out: Folder of the miniature.
        work: Folder for scenes, shards and runs.
        quick: Take a few training steps of everything, to prove the recipe.
        steps: Steps to take, in this order: scenes vae encode clip attributes teacher student student_epsilon
            student_flow teacher_lora llava proposer card.
        processes: Processes of the data stages and of the loader.
        precision: Precision of the forward passes.

    Raises:
        ValueError: There is no step of that name.
    """
    for step in steps:
        if step not in STEPS:
            raise ValueError(f"--steps {step!r}: expected some of {', '.join(STEPS)}")
    from scripts.miniature.steps import take_steps

    take_steps(steps, out, work, quick, processes, precision)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.miniature.make", make, argv, positional=True)


if __name__ == "__main__":
    main()
