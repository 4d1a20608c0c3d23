"""The whole way with SDXL-Turbo before its files are there: real commands on random weights of its size and form.

    python -m scripts.rehearsal runs/rehearsal                 # full size, 40 GB of disk: a GPU, or a CPU with bfloat16
    python -m scripts.rehearsal runs/rehearsal --size tenth    # a tenth of the width: minutes on any machine
    python -m scripts.rehearsal runs/rehearsal --images FOLDER --device cuda

Builds SDXL-Turbo's folder as the hub has it (epsilon prediction, CLIP's vocabulary, files of the variant fp16), takes
photographs of several shapes with captions, and runs data.caption, data.inspect, data.encode, train.plan, steps of a
LoRA training, a resume, three exports, and the export by stock diffusers in a process that sees nothing else. It ends
with a table of seconds and memory beside what was promised, and with status 1 if a promise is broken.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data.jobs.command import run


def rehearse(
    out: Path,
    size: Literal["full", "tenth"] = "full",
    device: str = "auto",
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto",
    images: Path | None = None,
    steps: int = 3,
    keep: bool = False,
) -> None:
    """Rehearse the way from photographs to an edit.

    Args:
        out: Folder for everything that is built; it must not exist. The table stays there.
        size: SDXL's own size, or a tenth of its width with fewer layers in its transformers.
        device: Device of all stages: auto, cpu, cuda, cuda:0 ...
        dtype: Dtype of the frozen networks; auto is float16 on a GPU, and on a CPU bfloat16 where it multiplies that
            (AMX or AVX-512), else float32.
        images: Folder of photographs with captions (.txt beside each, or metadata.jsonl); by default a few of several
            shapes are made.
        steps: Steps of the training before it is resumed for one more.
        keep: Keep what was built instead of removing all but the table and the edited photograph.

    Raises:
        ValueError: OUT exists, a stage failed, or a promise is broken.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: give another OUT, or remove it")
    if steps < 1:
        raise ValueError(f"--steps is {steps}, expected at least 1")
    if images is not None and not images.is_dir():
        raise ValueError(f"--images {images} is no folder")
    from scripts.rehearse.stages import Rehearsal

    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from a hub
    out.mkdir(parents=True)
    rehearsal = Rehearsal(out.resolve(), size, device, dtype, images, steps)
    try:
        rehearsal.run()
    finally:
        rehearsal.close(keep)
    broken = [row.name for row in rehearsal.rows if row.kept is False]
    if broken:
        raise ValueError(f"promises are broken: {', '.join(broken)}; the table is {out / 'rehearsal.md'}")
    print(f"all promises are kept; the table is {out / 'rehearsal.md'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.rehearsal", rehearse, argv, positional=True)


if __name__ == "__main__":
    main()
