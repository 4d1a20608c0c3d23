"""The guidance at which a backbone obeys its captions best: attributes that samples show as their captions say.

    python -m eval.caption_accuracy --backbone models/miniature/teacher --out DIR

Leaves DIR/caption_accuracy.json, prints the table, and keeps what is finished in DIR/kept for when the command is
started again. A comparison of editors takes its guidance from here, so that it is fixed before any edit is seen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import at_least_one

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5)


def caption_accuracy(
    backbone: str,
    out: Path,
    guidances: tuple[float, ...] = GUIDANCES,
    num_steps: int = 20,
    num: int = 200,
    attributes: Path = Path("models/miniature/attributes"),
    batch: int = 40,
    seed: int = 0,
    variant: str | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Sample from captions of validation scenes at several guidances and read the pictures.

    Args:
        backbone: Folder or hub id of a Stable Diffusion pipeline
        out: Folder of caption_accuracy.json; the same options go on where they were interrupted
        guidances: Guidances that are tried, on the same captions and noises
        num_steps: DDIM steps
        num: Number of captions
        attributes: Folder of the attribute reader
        batch: Pictures at a time
        seed: Seed of the scenes
        variant: File variant of the backbone's weights, such as fp16
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch, **{"number of guidances": len(guidances)})
    folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from eval.studies.caption_accuracy import measure_caption_accuracy

    return measure_caption_accuracy(
        backbone,
        out,
        guidances,
        num_steps=num_steps,
        num=num,
        attributes=attributes,
        batch=batch,
        seed=seed,
        variant=variant,
        dtype=dtype,
        device=device,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.caption_accuracy", caption_accuracy, argv)


if __name__ == "__main__":
    main()
