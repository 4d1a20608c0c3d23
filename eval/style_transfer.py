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
from eval.harness.results import about, at_least_one, finish
from models.options import FitSchedule


def compare_style_transfer(
    backbone: Path,
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
    device: str = "auto",
) -> dict[str, Any]:
    """Fit the style images, then sample them with more and more of the content's decoder features.

    Args:
        backbone: Folder of a Stable Diffusion pipeline
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
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, **{"number of shares": len(shares)})
    existing(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from dataclasses import asdict
    from functools import partial

    import numpy as np

    from data.jobs.kept import KeptFolder, digest
    from data.pages.page import Picture, picture_uri
    from data.world.captions import long_caption
    from eval.editors.few_steps import decode_latents
    from eval.editors.titles import render_page
    from eval.harness.exports import choose_device, load_scene_backbone
    from eval.harness.fingerprints import backbone_settings, network_fingerprint
    from eval.metrics.clip import ClipSimilarity
    from eval.metrics.pixels import Estimate
    from eval.metrics.structure import Structure
    from eval.scene_edits.edit_set import rendered
    from eval.scene_edits.judge import load_reader
    from eval.scene_edits.result import pixels, read_arrays, write_arrays
    from eval.studies.style_transfer import (
        fitted_values,
        load_values,
        pivots_of,
        readings,
        save_values,
        shares_words,
        style_pairs,
    )
    from models.clip import ImageTokens
    from models.ddim import Ddim, matching
    from models.options import StyleObjective
    from models.style_transfer import transfer_style
    from models.stylediffusion import GuidedStep

    schedule = schedule or FitSchedule()
    place = choose_device(device)
    model = load_scene_backbone(backbone, place)
    reader, judge = load_reader(attributes, place), ClipSimilarity(str(clip), place)
    structure = Structure(judge.model.vision_model, judge.pixels)
    tokens = ImageTokens.load(str(clip), place)
    contents, styles = zip(*style_pairs(num, seed), strict=True)
    content, style = rendered(contents).to(place), rendered(styles).to(place)
    side = max(8, model.unet.config.sample_size // 4)
    step = GuidedStep(model, Ddim(model.schedule, num_steps), StyleObjective(guidance, attention_side=side))

    kept = KeptFolder(out / "kept")
    scenes = [repr(pair) for pair in zip(contents, styles, strict=True)]
    decided_by = [backbone_settings(model), tokens.fingerprint, scenes, num_steps, guidance, asdict(schedule)]
    fit = f"fit-{digest(decided_by)}"
    for _ in kept.missing({fit: num}, "style images"):
        values = fitted_values(step, tokens, style, styles, schedule)
        kept.keep(fit, {}, {".safetensors": partial(save_values, values=values)})
    values = load_values(kept.path(fit, ".safetensors"), place)
    pivots, content_prompt = pivots_of(step, content, contents)
    style_prompt = model.encode_text([long_caption(scene) for scene in styles])
    null = matching(model.encode_text([""]), style_prompt)
    trips = [decode_latents(model, model.encode_image(images)) for images in (content, style)]
    before, look = (reader.read(images) for images in trips)
    similarity = structure.similarity(trips[0])
    judges = [network_fingerprint(reader), network_fingerprint(judge.model)]
    pieces = {f"share-{share:g}-{digest(decided_by, judges, blocks, share)}": share for share in shares}
    for piece in kept.missing(dict.fromkeys(pieces, num), "style transfer"):
        prompts = (content_prompt, style_prompt, null)
        latent = transfer_style(model, step.ddim, pivots, *prompts, values, guidance, blocks, pieces[piece])
        images = decode_latents(model, latent)
        found = readings(reader, images, before, look)
        found["structure"] = structure.distance(images, similarity).tolist()
        pictures = {"pictures": np.stack(pixels(images))}
        kept.keep(piece, found, {".npz": partial(write_arrays, arrays=pictures)})
    results = {
        "shares": [
            {"share": share} | {name: Estimate.of(found).to_dict() for name, found in kept.read(piece).items()}
            for piece, share in pieces.items()
        ],
        "about": about(
            place,
            backbone=backbone,
            num_steps=num_steps,
            guidance=guidance,
            blocks=blocks,
            schedule=schedule,
            seed=seed,
            n=num,
        ),
    }
    made = [read_arrays(kept.path(piece, ".npz"))["pictures"] for piece in pieces]
    rows = [
        [Picture(picture_uri(image)) for image in row]
        for row in zip(pixels(content), pixels(style), *made, strict=True)
    ]
    values_of_page = {
        "title": "Style transfer on scenes",
        "results": results,
        "columns": ["content", "style", *(f"features in {share:.0%}" for share in shares)],
        "rows": rows,
    }
    finish(
        out,
        results,
        shares_words(results),
        page=lambda: render_page("style_transfer.html.j2", out, **values_of_page),
    )
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.style_transfer", compare_style_transfer, argv)


if __name__ == "__main__":
    main()
