"""StyleDiffusion's style transfer on scenes: a style image's look on a content image's layout.

    python -m eval.style_transfer --backbone models/miniature/teacher --out runs/style/transfer

Pairs of test scenes of different styles. For each share of the steps that take the content's features: whose style the
attribute reader sees, how much of the content's layout it still finds, and the structure distance to the content.
Leaves DIR/index.html and results.json.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.jobs.command import run
from data.pages.page import Picture, picture_uri
from data.world.captions import long_caption
from data.world.description import Scene
from data.world.splits import sample_scene
from eval.editors.few_steps import decode_latents
from eval.editors.titles import render_page
from eval.harness.exports import choose_device, load_scene_backbone
from eval.harness.results import write_results
from eval.metrics.attributes import AttributeReader, attribute_type
from eval.metrics.clip import ClipSimilarity
from eval.metrics.pixels import Estimate
from eval.metrics.structure import Structure
from eval.scene_edits.edit_set import rendered
from eval.scene_edits.judge import load_reader
from eval.scene_edits.trial import pixels
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots, matching
from models.options import FitSchedule, StyleObjective
from models.style_transfer import transfer_style
from models.stylediffusion import GuidedStep, fit_modulations
from models.text import Prompt
from models.value_mapper import Modulation

logger = logging.getLogger(__name__)

LOOK = ("style", "background")
"""Attributes that the style image decides."""
LAYOUT = ("layout", "shape", "size", "pose")
"""Attributes that the content image decides."""

Reading = Mapping[str, Tensor]


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
        backbone: folder of a Stable Diffusion pipeline
        out: folder of the report
        num: number of pairs
        num_steps: of DDIM
        guidance: of the sampling
        shares: of the steps, from the noisiest on, in which the features are the content's
        blocks: up blocks of the UNet whose features they are, 0 the coarsest
        schedule: of the fits; the official code's by default
        attributes: folder of the attribute reader
        clip: folder of a CLIPModel, for the image tokens and the structure distance
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    if num < 1 or not shares:
        raise ValueError(f"num is {num} and there are {len(shares)} shares; expected at least 1 of both")
    place = choose_device(device)
    model = load_scene_backbone(backbone, place)
    reader, judge = load_reader(attributes, place), ClipSimilarity(str(clip), place)
    structure = Structure(judge.model.vision_model, judge.pixels)
    pairs = style_pairs(num, seed)
    contents, styles = ([pair[side] for pair in pairs] for side in (0, 1))
    content, style = rendered(contents).to(place), rendered(styles).to(place)

    side = max(8, model.unet.config.sample_size // 4)
    step = GuidedStep(model, Ddim(model.schedule, num_steps), StyleObjective(guidance, attention_side=side))
    pivots, content_prompt = _pivots(step, content, contents)
    style_prompt, null, values = _fitted(step, ImageTokens.load(str(clip), place), style, styles, schedule)
    trips = [decode_latents(model, model.encode_image(images)) for images in (content, style)]
    before, look = (reader.read(images) for images in trips)
    similarity = structure.similarity(trips[0])
    points, pictures = [], []
    for share in shares:
        prompts = (content_prompt, style_prompt, null)
        latent = transfer_style(model, step.ddim, pivots, *prompts, values, guidance, blocks, share)
        images = decode_latents(model, latent)
        point: dict[str, Any] = {"share": share}
        point |= {k: Estimate.of(v).to_dict() for k, v in readings(reader, images, before, look).items()}
        point["structure"] = Estimate.of(structure.distance(images, similarity).tolist()).to_dict()
        points.append(point)
        pictures.append(pixels(images))
    about = {"backbone": str(backbone), "num_steps": num_steps, "guidance": guidance, "blocks": blocks, "seed": seed}
    results = {"shares": points, "about": about | {"device": place.type, "n": num}}
    write_results(out / "results.json", results)
    columns = ["content", "style", *(f"features in {share:.0%}" for share in shares)]
    rows = [
        [Picture(picture_uri(image)) for image in row]
        for row in zip(pixels(content), pixels(style), *pictures, strict=True)
    ]
    page = render_page(
        "style_transfer.html.j2", out, title="Style transfer on scenes", results=results, columns=columns, rows=rows
    )
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


def _pivots(step: GuidedStep, images: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Prompt]:
    """Pivots [n + 1, B, 4, h, w] of pictures of scenes with their captions, and those as a prompt."""
    backbone = step.backbone
    prompt = backbone.encode_text([long_caption(scene) for scene in scenes])
    return ddim_pivots(backbone, step.ddim, backbone.encode_image(images), prompt), prompt


def _fitted(
    step: GuidedStep, tokens: ImageTokens, images: Tensor, scenes: Sequence[Scene], schedule: FitSchedule | None
) -> tuple[Prompt, Prompt, tuple[Modulation, ...]]:
    """Prompts of the style images and the empty one, and values of every step."""
    pivots, prompt = _pivots(step, images, scenes)
    null = matching(step.backbone.encode_text([""]), prompt)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = fit_modulations(step, tokens(images), pivots, prompt, null, schedule or FitSchedule())
    return prompt, null, found.modulations


def style_pairs(num: int, seed: int) -> list[tuple[Scene, Scene]]:
    """(content, style) test scenes whose styles and backgrounds differ."""
    pairs = []
    for index in range(num):
        content, at = sample_scene("test", seed, index), num + index
        while (
            style := sample_scene("test", seed, at)
        ).style == content.style or style.background == content.background:
            at += num
        pairs.append((content, style))
    return pairs


def readings(reader: AttributeReader, images: Tensor, content: Reading, style: Reading) -> dict[str, list[float]]:
    """For each picture whether it has the style image's style and background, and its share of the content's layout."""
    read = reader.read(images)
    found = {name: (read[name] == style[name]).float().tolist() for name in LOOK}
    columns = [
        torch.where(values >= 0, (read[name] == values).float(), torch.nan)
        for name, values in content.items()
        if attribute_type(name) in LAYOUT
    ]
    return found | {"content": torch.stack(columns).nanmean(0).tolist()}


def summary(results: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [f"n = {results['about']['n']}", "share   style %  background %  content %  structure"]
    for point in results["shares"]:
        cells = [f"{100 * point[name]['mean']:10.1f}" for name in (*LOOK, "content")]
        lines.append(f"{point['share']:5.2f}{''.join(cells)}{point['structure']['mean']:11.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.style_transfer", compare_style_transfer, argv)


if __name__ == "__main__":
    main()
