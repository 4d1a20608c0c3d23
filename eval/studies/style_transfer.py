"""Style transfer on scenes: the fit of style images, and whose style and layout a picture has."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.jobs.device import choose_device
from data.jobs.kept import digest
from data.pages.page import Picture, picture_uri
from data.world.captions import long_caption
from data.world.description import Scene
from data.world.splits import sample_scene
from eval.editors.few_steps import decode_latents
from eval.editors.titles import render_page
from eval.harness.exports import load_scene_backbone
from eval.harness.fingerprints import backbone_settings, network_fingerprint
from eval.harness.options import Dtype
from eval.harness.precision import beside_float32, name_of
from eval.harness.results import Columns, about, finish, mean_words
from eval.metrics.attributes import AttributeReader, attribute_type
from eval.metrics.clip import ClipSimilarity
from eval.metrics.pixels import Estimate
from eval.metrics.structure import Structure
from eval.scene_edits.edit_set import rendered
from eval.scene_edits.judge import load_reader
from eval.scene_edits.result import pixels, read_arrays, write_arrays
from eval.scene_edits.run import kept_results
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots, matching
from models.fingerprints import clip_fingerprint, named
from models.options import FitSchedule, StyleObjective
from models.style_transfer import transfer_style
from models.stylediffusion import GuidedStep, fit_modulations
from models.text import Prompt
from models.value_mapper import Modulation

LOOK = ("style", "background")
"""Attributes that the style image decides."""
LAYOUT = ("layout", "shape", "size", "pose")
"""Attributes that the content image decides."""

Readings = Mapping[str, Tensor]
"""Value indices [B] by attribute."""


def measure_style_transfer(
    backbone: str,
    out: Path,
    *,
    num: int,
    num_steps: int,
    guidance: float,
    shares: Sequence[float],
    blocks: Sequence[int],
    schedule: FitSchedule,
    attributes: Path,
    clip: Path,
    seed: int,
    dtype: Dtype,
    variant: str | None,
    device: str,
) -> dict[str, Any]:
    """Measure and report the transfer at every share; the options are those of eval.style_transfer.

    Returns:
        Content of results.json.
    """
    place = choose_device(device)
    model = load_scene_backbone(backbone, place, dtype, variant)
    reader, judge = load_reader(attributes, place), ClipSimilarity(str(clip), place)
    structure = Structure(judge.model.vision_model, judge.pixels)
    tokens = ImageTokens.load(str(clip), place)
    contents, styles = zip(*style_pairs(num, seed), strict=True)
    content, style = rendered(contents).to(place), rendered(styles).to(place)
    side = max(8, model.unet.config.sample_size // 4)
    step = GuidedStep(model, Ddim(model.schedule, num_steps), StyleObjective(guidance, attention_side=side))

    kept = kept_results(out)
    scenes = [repr(pair) for pair in zip(contents, styles, strict=True)]
    decided_by = [
        backbone_settings(model),
        named(clip_fingerprint(tokens)),
        scenes,
        num_steps,
        guidance,
        asdict(schedule),
        *beside_float32(model.unet.dtype),
    ]
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
            dtype=name_of(model.unet.dtype),
            num_steps=num_steps,
            guidance=guidance,
            shares=shares,
            blocks=blocks,
            schedule=schedule,
            attributes=attributes,
            clip=clip,
            seed=seed,
            n=num,
        ),
    }
    made = [read_arrays(kept.path(piece, ".npz"))["pictures"] for piece in pieces]
    pictures_by_pair = list(zip(pixels(content), pixels(style), *made, strict=True))
    finish(out, results, shares_words(results), page=lambda: write_transfer_page(out, results, pictures_by_pair))
    return results


def write_transfer_page(out: Path, results: dict[str, Any], rows: Sequence[Sequence[np.ndarray]]) -> Path:
    """Write DIR/index.html of eval.style_transfer.

    Args:
        rows: Pictures uint8 [64, 64, 3] of each pair: content, style, and one for each share.
    """
    return render_page(
        "style_transfer.html.j2",
        out,
        title="Style transfer on scenes",
        results=results,
        columns=["content", "style", *(f"features in {found['share']:.0%}" for found in results["shares"])],
        rows=[{"pictures": [Picture(picture_uri(image)) for image in row]} for row in rows],
    )


def pivots_of(step: GuidedStep, images: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Prompt]:
    """Pivots [n + 1, B, 4, h, w] of pictures of scenes with their captions, and those as a prompt."""
    backbone = step.backbone
    latent = backbone.encode_image(images)
    prompt = backbone.encode_text([long_caption(scene) for scene in scenes], backbone.size_of(latent))
    return ddim_pivots(backbone, step.ddim, latent, prompt), prompt


def fitted_values(
    step: GuidedStep, tokens: ImageTokens, images: Tensor, scenes: Sequence[Scene], schedule: FitSchedule
) -> tuple[Modulation, ...]:
    """Values of every step, fitted to pictures of scenes with their captions."""
    pivots, prompt = pivots_of(step, images, scenes)
    null = matching(step.backbone.encode_text([""]), prompt)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fit_modulations(step, tokens(images), pivots, prompt, null, schedule).modulations


def save_values(path: Path, values: Sequence[Modulation]) -> None:
    """Write the values of every step."""
    save_file({part: torch.stack([getattr(m, part).cpu() for m in values]) for part in ("scale", "shift")}, path)


def load_values(path: Path, device: torch.device) -> tuple[Modulation, ...]:
    """Read what `save_values` wrote."""
    tensors = load_file(path, str(device))
    return tuple(Modulation(a, b) for a, b in zip(tensors["scale"], tensors["shift"], strict=True))


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


def readings(reader: AttributeReader, images: Tensor, content: Readings, style: Readings) -> dict[str, list[float]]:
    """Say of each picture whether it has the style image's look, and what share of the content's layout."""
    read = reader.read(images)
    found = {name: (read[name] == style[name]).float().tolist() for name in LOOK}
    columns = [
        torch.where(values >= 0, (read[name] == values).float(), torch.nan)
        for name, values in content.items()
        if attribute_type(name) in LAYOUT
    ]
    return found | {"content": torch.stack(columns).nanmean(0).tolist()}


def shares_words(results: Mapping[str, Any]) -> str:
    """Figures by share of steps as text."""
    table = Columns("share", "style %", "background %", "content %", "structure")
    for point in results["shares"]:
        cells = (mean_words(point[name], 100) for name in (*LOOK, "content"))
        table.add(f"{point['share']:.2f}", *cells, mean_words(point["structure"]))
    return f"n = {results['about']['n']}\n{table}"
