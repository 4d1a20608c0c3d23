"""StyleDiffusion as in the paper: networks of its own for every image and timestep, fitted image by image.

python -m train.stylediffusion_fit --config configs/stylediffusion/fit_miniature.yaml --out runs/fits
accelerate launch -m train.stylediffusion_fit ... (or srun) divides the images over processes; the same command goes on
where a killed one was.

OUT gets FIT.safetensors (the modulations `KEY.scale` and `KEY.shift` [steps, L, D] of its images) and FIT.json (losses,
iterations, seconds, PSNR) for every piece of `batch` images, and summary.json over all of them. `read_fit`
(train.methods.stylediffusion.fits) gives back what the exported pipeline's `invert(..., values=...)` takes.
"""

import logging
from collections.abc import Sequence

from data.jobs.command import run
from train.methods.stylediffusion.config import ImageFitsConfig

logger = logging.getLogger(__name__)


def fit_folder(config: ImageFitsConfig) -> None:
    """Fit the images of a folder of shards and log what was reached."""
    from train.methods.stylediffusion.fits import fit_images  # torch loads after the command line is understood

    summary = fit_images(config)
    unreadable = summary.pop("unreadable")
    for name, figures in summary.items():
        if figures["n"]:
            logger.info("%s: %.2f +- %.2f (n %d)", name, figures["mean"], figures["se"] or 0, figures["n"])
    if unreadable:
        logger.warning("%d images could not be read: %s", len(unreadable), ", ".join(unreadable))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.stylediffusion_fit", fit_folder, argv)


if __name__ == "__main__":
    main()
