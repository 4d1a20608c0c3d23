"""Guidance of a DDIM inversion against what it finds: how Gaussian the noise, how close the image.

After Null-text inversion (Mokady et al. 2023, appendix B).

    python -m eval.inversion_guidance --backbone models/miniature/teacher --out runs/inversion_guidance

Leaves DIR/index.html, results.json, images.csv (a row for each image and guidance) and DIR/kept: what is finished is
read from there when the command is started again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype
from eval.harness.results import about, at_least_one, finish


def evaluate_inversion_guidance(
    backbone: str,
    out: Path,
    data: Path | None = None,
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    num: int = 16,
    num_steps: int = 50,
    steps_offset: int = 1,
    batch: int = 16,
    variant: str | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Invert captioned images by DDIM under several weights of guidance, and sample them back under the same weight.

    Args:
        backbone: Diffusers folder or hub id of a many-step model
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        data: Shards with images, or a folder of pictures with captions; null for test scenes with their long captions
        guidances: Weights w; 1 is the caption's own prediction
        num: Number of images
        num_steps: DDIM steps, in either direction
        steps_offset: 1 for Stable Diffusion's timesteps, 0 for those of the official codes
        batch: Images at a time
        variant: File variant of the backbone's weights, such as fp16
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch, **{"number of guidances": len(guidances)})
    if data is not None:
        existing(data, "--data", "folder of pictures or shards")

    import hashlib

    from data.jobs.device import choose_device
    from data.jobs.kept import digest
    from data.world.render import SIDE
    from eval.harness.captioned import captioned_images, stacked
    from eval.harness.fingerprints import backbone_settings
    from eval.harness.precision import beside_float32, guided_dtype, name_of
    from eval.scene_edits.run import kept_results
    from eval.studies.inversion_guidance import (
        GAUSSIAN,
        captioned_scenes,
        guidance_figures,
        guidance_table,
        rows_at,
        write_guidance_page,
    )
    from models.backbone import Backbone
    from models.ddim import Ddim

    place = choose_device(device)
    model = Backbone.load(backbone, device=place, dtype=guided_dtype(dtype, backbone, place), variant=variant)
    ddim = Ddim(model.schedule, num_steps, steps_offset)
    if data is None and model.image_size != SIDE:
        raise ValueError(
            f"{backbone} is for pictures of {model.image_size} px, scenes have {SIDE}; give images by --data"
        )
    samples = captioned_scenes(num) if data is None else captioned_images(data, model.image_size, num)
    pieces = {}
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        pictures = hashlib.sha256(stacked(part).numpy().tobytes()).hexdigest()
        shared = [backbone_settings(model), ddim.timesteps, pictures, [(image.key, image.caption) for image in part]]
        shared += beside_float32(model.unet.dtype)
        for guidance in guidances:
            pieces[f"guidance-{guidance:g}-{digest(shared, guidance)}"] = (part, guidance)
    kept = kept_results(out)
    for piece in kept.missing({name: len(part) for name, (part, _) in pieces.items()}, "inversion guidance"):
        kept.keep(piece, rows_at(model, ddim, *pieces[piece], place))
    rows = [row for piece in pieces for row in kept.read(piece)]
    results = {
        "guidances": [guidance_figures(rows, guidance) for guidance in guidances],
        "gaussian_log_likelihood": GAUSSIAN,
        "about": about(
            place,
            backbone=backbone,
            dtype=name_of(model.unet.dtype),
            data="test scenes, long captions" if data is None else data,
            timesteps=ddim.timesteps,
            num=len(samples),
            batch=batch,
        ),
    }
    finish(out, results, guidance_table(results), {"images.csv": rows}, lambda: write_guidance_page(out, results))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.inversion_guidance", evaluate_inversion_guidance, argv)


if __name__ == "__main__":
    main()
