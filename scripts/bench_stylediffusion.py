r"""Time of fitting StyleDiffusion to images, beside the same loop as the official code arranges it.

    python -m scripts.bench_stylediffusion
    python -m scripts.bench_stylediffusion --backbone runwayml/stable-diffusion-v1-5 \
      --clip openai/clip-vit-base-patch16 --attention_side 16

The official arrangement: CLIP and the mapping network run in every cross-attention layer of every evaluation with
mapped values, conditional and unconditional passes are apart, softmax maps are made in all layers, and images are
fitted one after the other. Both sides start from the same weights and make the same iterations, in turns in one
process. Before anything is timed their losses have to agree in every step at a learning rate at which rounding does not
send them apart. The last line printed is one JSON object; the ratio of a time or of memory is reference / value, above
1 is faster or smaller.
"""

from collections.abc import Sequence
from typing import Any, Literal

from data.jobs.command import run
from scripts.bench.results import print_results


def bench(
    backbone: str = "models/miniature/teacher",
    clip: str = "models/miniature/clip",
    images: int = 4,
    steps: int = 5,
    iterations: int = 10,
    rounds: int = 3,
    attention_side: int = 8,
    guidance: float = 3.0,
    device: str = "auto",
    only: Literal["official", "official_clip_once", "ours_one_by_one", "ours"] | None = None,
    variant: str | None = None,
) -> list[dict[str, Any]]:
    """Measure StyleDiffusion's fit of some images on both sides.

    Args:
        backbone: Folder or hub id of a Stable Diffusion.
        clip: Folder or hub id of the CLIP that gives the image tokens.
        images: Images, which are fitted side by side by us, one after the other by the reference.
        steps: DDIM steps.
        iterations: Iterations of the first step, falling as in the official schedule.
        rounds: Measurements of each side, in turns; the medians count.
        attention_side: Side of the attention maps that are compared.
        guidance: Classifier-free guidance of sampling.
        device: Where everything runs; auto takes CUDA where it is.
        only: One side alone, for its peak of memory.
        variant: File variant of the backbone's weights, such as fp16.

    Returns:
        The results that are printed.

    Raises:
        ValueError: The two sides do not reach the same losses.
    """
    from scripts.bench.stylediffusion import measure_fits

    return measure_fits(
        backbone, clip, images, steps, iterations, rounds, attention_side, guidance, device, only, variant
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_stylediffusion", bench, argv))


if __name__ == "__main__":
    main()
