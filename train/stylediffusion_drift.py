r"""Whole inversions by StyleDiffusion's amortised mappers: how far sampling leaves the pivots, and what it ends with.

    python -m train.stylediffusion_drift --mappers runs/style/run
    python -m train.stylediffusion_drift --mappers "[RUN, EXPORT]" --data SHARDS --num_steps 30 --guidance 7.5

The last line printed is one JSON object: for each mapper PSNR to the VAE's round trip, the root mean squared error of
the latent to its pivot after each step, and by what factor that grows from the first step to the last; the same of
DDIM by the text alone; and the gain in dB over the first mapper, image by image.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.results import at_least_one

logger = logging.getLogger(__name__)


def measure_mappers(
    mappers: tuple[str, ...],
    data: Path | None = None,
    num: int = 64,
    num_steps: int | None = None,
    guidance: float | None = None,
    batch: int = 16,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Invert captioned images and sample them back, each mapper at the steps and the guidance of its training.

    Args:
        mappers: run folders of train.stylediffusion, of which the newest checkpoint is taken, or their exports
        data: shards with images or a folder of pictures with captions, held out from training; null for test scenes
        num: number of images
        num_steps: DDIM steps in the place of those of the trainings
        guidance: guidance in the place of that of the trainings
        batch: images at a time
        device: device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch, **{"number of mappers": len(mappers)})
    if data is not None:
        existing(data, "--data", "folder of pictures or shards")

    from data.jobs.device import choose_device
    from data.world.render import SIDE
    from eval.harness.captioned import captioned_images
    from eval.studies.inversion_guidance import captioned_scenes
    from train.methods.stylediffusion.trained import drift_figures, gain, open_mapper

    place = choose_device(device)
    found: list[dict[str, Any]] = []
    for name in mappers:
        trained, backbone = open_mapper(name, place)
        if data is None and backbone.image_size != SIDE:
            raise ValueError(
                f"{name} is for pictures of {backbone.image_size} px, scenes have {SIDE}; give images by --data"
            )
        images = captioned_scenes(num) if data is None else captioned_images(data, backbone.image_size, num)
        steps, weight = num_steps or trained.num_steps, trained.guidance if guidance is None else guidance
        figures = {"mapper": name, **drift_figures(trained, backbone, images, steps, weight, batch)}
        figures["gain"] = gain(figures, found[0] if found else figures)
        logger.info("%s, %d steps, guidance %g: %s", name, steps, weight, _words(figures))
        found.append(figures)
    return found


def _words(figures: dict[str, Any]) -> str:
    rows = []
    for title in ("mapped", "ddim"):
        psnr, first, last = (figures[title][name]["mean"] for name in ("psnr_to_vae", "first_error", "last_error"))
        rows.append(
            f"{title} {psnr:.2f} dB to the VAE, error {first:.4f} after the first step, {last:.4f} after the last"
        )
    gained = figures["gain"]
    rows.append(f"{gained['mean']:+.2f} +- {gained['se'] or 0:.2f} dB over the first mapper")
    return "; ".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print(json.dumps(run("train.stylediffusion_drift", measure_mappers, argv)))


if __name__ == "__main__":
    main()
