"""StyleDiffusion's style transfer on scenes: a style image's look on a content image's layout.

    python -m eval.style_transfer --backbone models/miniature/teacher --out runs/style/transfer

Pairs of test scenes of different styles. For each share of the steps that take the content's features: whose style the
attribute reader sees, how much of the content's layout it still finds, and the structure distance to the content.
Leaves DIR/index.html, results.json and DIR/kept: what is finished is read from there when the command is started again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import at_least_one
from models.options import FitSchedule


def compare_style_transfer(
    backbone: str,
    out: Path,
    num: int = 12,
    num_steps: int = 20,
    guidance: float = 3.0,
    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    blocks: tuple[int, ...] = (1,),
    schedule: FitSchedule | None = None,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path = Path("models/miniature/clip"),
    seed: int = 0,
    dtype: Dtype = "auto",
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Fit the style images, then sample them with more and more of the content's decoder features.

    Args:
        backbone: Folder or hub id of a Stable Diffusion pipeline
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        num: Number of pairs
        num_steps: DDIM steps
        guidance: Guidance of the sampling
        shares: Shares of the steps, from the noisiest on, in which the features are the content's
        blocks: Up blocks of the UNet whose features they are, 0 the coarsest
        schedule: Schedule of the fits; the official code's by default
        attributes: Folder of the attribute reader
        clip: Folder of a CLIPModel, for the image tokens and the structure distance
        seed: Seed of the scenes
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        variant: File variant of the backbone's weights, such as fp16
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, **{"number of shares": len(shares)})
    folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from eval.studies.style_transfer import measure_style_transfer

    return measure_style_transfer(
        backbone,
        out,
        num=num,
        num_steps=num_steps,
        guidance=guidance,
        shares=shares,
        blocks=blocks,
        schedule=schedule or FitSchedule(),
        attributes=attributes,
        clip=clip,
        seed=seed,
        dtype=dtype,
        variant=variant,
        device=device,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.style_transfer", compare_style_transfer, argv)


if __name__ == "__main__":
    main()
