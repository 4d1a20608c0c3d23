"""StyleDiffusion's style transfer: a style image's look on a content image's layout, of scenes or of your pictures.

    python -m eval.style_transfer --backbone models/miniature/teacher --out runs/style/transfer
    python -m eval.style_transfer --backbone SD --data CONTENTS --styles STYLES --num_steps 50 --guidance 7.5 --out DIR

Pairs of test scenes of different styles, or captioned pictures with captioned style images. For each share of the steps
that take the content's features: whose style the attribute reader sees and how much of the content's layout it still
finds, or of pictures CLIP's similarity to style and content image; and the structure distance to the content. Leaves
DIR/index.html, results.json and DIR/kept: what is finished is read from there when the command is started again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import at_least_one
from models.options import FitSchedule

MINIATURE_CLIP = "models/miniature/clip"


def compare_style_transfer(
    backbone: str,
    out: Path,
    num: int = 12,
    data: Path | None = None,
    styles: Path | None = None,
    num_steps: int = 20,
    guidance: float = 3.0,
    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    blocks: tuple[int, ...] = (1,),
    schedule: FitSchedule | None = None,
    attributes: Path = Path("models/miniature/attributes"),
    clip: str = MINIATURE_CLIP,
    batch: int = 12,
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
        data: Contents, a folder of pictures with captions (.txt, metadata.jsonl), shards with images, or PIE-Bench;
            null takes scenes
        styles: Style images, likewise, which the contents take in turn; null takes for each content the next one
        num_steps: DDIM steps
        guidance: Guidance of the sampling
        shares: Shares of the steps, from the noisiest on, in which the features are the content's
        blocks: Up blocks of the UNet whose features they are, 0 the coarsest
        schedule: Schedule of the fits; the official code's by default
        attributes: Folder of the reader of scenes' attributes
        clip: Folder or hub id of a CLIPModel, for the image tokens, the structure distance and the similarity of
            pictures; StyleDiffusion's is openai/clip-vit-base-patch16
        batch: Pairs at a time
        seed: Seed of the scenes
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        variant: File variant of the backbone's weights, such as fp16
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch, **{"number of shares": len(shares)})
    folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    if data is None:
        existing(attributes, "--attributes", "folder of an attribute reader")
        if styles is not None:
            raise ValueError(f"--styles is {styles}, which is for pictures: give their contents with --data")
    for option, folder in {"--data": data, "--styles": styles}.items():
        if folder is not None:
            existing(folder, option)

    from torch import Tensor

    from data.jobs.device import choose_device
    from data.world.render import SIDE
    from eval.case_edits.captioned import captioned_pictures
    from eval.harness.exports import load_scene_backbone
    from eval.harness.precision import guided_dtype
    from eval.metrics.clip import ClipSimilarity
    from eval.scene_edits.judge import load_reader
    from eval.studies.style_transfer import (
        Look,
        PictureLook,
        SceneLook,
        measure_style_transfer,
        picture_pairs,
        scene_pairs,
    )
    from models.backbone import Backbone

    place = choose_device(device)
    conditions: dict[str, Any] = {"backbone": backbone, "data": data, "styles": styles, "batch": batch}
    if data is None:
        model = load_scene_backbone(backbone, place, dtype, variant)
        pairs = scene_pairs(num, seed, place)
        look_of: Callable[[Tensor, Tensor], Look] = partial(SceneLook, load_reader(attributes, place))
        conditions["attributes"] = attributes
    else:
        model = Backbone.load(backbone, device=place, dtype=guided_dtype(dtype, backbone, place), variant=variant)
        if str(clip) == MINIATURE_CLIP and model.image_size != SIDE:
            raise ValueError(
                "--clip is the miniature's, which knows scenes alone; give another one, such as StyleDiffusion's "
                "openai/clip-vit-base-patch16"
            )
        contents = list(captioned_pictures(data, model.image_size, num))
        followed = None if styles is None else list(captioned_pictures(styles, model.image_size, num))
        pairs = picture_pairs(contents, followed, place)
        look_of = partial(PictureLook, ClipSimilarity(clip, place))
    return measure_style_transfer(
        model,
        pairs,
        look_of,
        out,
        num_steps=num_steps,
        guidance=guidance,
        shares=shares,
        blocks=blocks,
        schedule=schedule or FitSchedule(),
        clip=str(clip),
        batch=batch,
        device=place,
        conditions=conditions,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.style_transfer", compare_style_transfer, argv)


if __name__ == "__main__":
    main()
