"""Style transfer: the fit of style images, and whose style and layout a picture has."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.jobs.kept import digest
from data.pages.page import Picture
from data.world.captions import long_caption
from data.world.description import Scene
from data.world.splits import sample_scene
from eval.editors.few_steps import decode_latents
from eval.editors.titles import render_page
from eval.harness.captioned import CaptionedImage, stacked
from eval.harness.fingerprints import backbone_settings, network_fingerprint
from eval.harness.precision import beside_float32, name_of
from eval.harness.results import Columns, about, finish, mean_words
from eval.metrics.attributes import AttributeReader, attribute_type
from eval.metrics.clip import ClipSimilarity
from eval.metrics.pixels import Estimate
from eval.metrics.structure import Structure
from eval.pie.gallery import small_uri
from eval.scene_edits.edit_set import rendered
from eval.scene_edits.result import pixels, read_arrays, write_arrays
from eval.scene_edits.run import kept_results
from models.backbone import Backbone
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

_PICTURED, _PICTURE_SIDE = 24, 256
"""Pairs that are shown, and pixels of a shown picture's longer side at most."""

Readings = Mapping[str, Tensor]
"""Value indices [B] by attribute."""


@dataclass(frozen=True)
class StylePairs:
    """N pairs of pictures, and who says whose look and layout a picture has.

    Args:
        contents, styles: Pictures [N, 3, H, W] in [-1, 1].
        captions: Descriptions of both, (content, style).
        named: What stands for each pair in the names of kept work.
        about: Entries of results.json.
    """

    contents: Tensor
    styles: Tensor
    captions: tuple[tuple[str, str], ...]
    named: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def content_captions(self) -> list[str]:
        """Descriptions of the contents."""
        return [content for content, _ in self.captions]

    @property
    def style_captions(self) -> list[str]:
        """Descriptions of the style images."""
        return [style for _, style in self.captions]


class Look(Protocol):
    """What says whose style and layout pictures have.

    Attributes:
        columns: Titles of its measures with their units, by name.
        scales: Factors of printed values, by name.
    """

    columns: Mapping[str, tuple[str, str]]
    scales: Mapping[str, float]

    @property
    def settings(self) -> list[Any]:
        """What decides its figures, as JSON."""
        ...

    def __call__(self, images: Tensor) -> dict[str, list[float]]:
        """Figures of pictures [N, 3, H, W], one of each pair."""
        ...


class SceneLook:
    """The attribute reader of scenes, beside the round trips [N, 3, H, W] of contents and style images."""

    columns: Mapping[str, tuple[str, str]] = {
        "style": ("style of the style image", "%"),
        "background": ("its background", "%"),
        "content": ("content's layout, shapes, sizes, poses", "%"),
    }
    scales: Mapping[str, float] = {"style": 100.0, "background": 100.0, "content": 100.0}

    def __init__(self, reader: AttributeReader, contents: Tensor, styles: Tensor) -> None:
        self.reader = reader
        self.before, self.look = reader.read(contents), reader.read(styles)

    @property
    def settings(self) -> list[Any]:
        """The reader."""
        return [network_fingerprint(self.reader)]

    def __call__(self, images: Tensor) -> dict[str, list[float]]:
        """Whether each picture has the style image's look, and what share of the content's layout."""
        return readings(self.reader, images, self.before, self.look)


class PictureLook:
    """CLIP's similarity of pictures to content and style image, for pictures of which there is no scene."""

    columns: Mapping[str, tuple[str, str]] = {
        "to_style": ("CLIP, to the style image", ""),
        "to_content": ("CLIP, to the content image", ""),
    }
    scales: Mapping[str, float] = {"to_style": 1.0, "to_content": 1.0}

    def __init__(self, clip: ClipSimilarity, contents: Tensor, styles: Tensor) -> None:
        self.clip = clip
        self.contents, self.styles = clip.embed_images(contents), clip.embed_images(styles)

    @property
    def settings(self) -> list[Any]:
        """Nothing beside the CLIP that also measures structures."""
        return ["pictures"]

    def __call__(self, images: Tensor) -> dict[str, list[float]]:
        """100 times the cosines of each picture's embedding with those of both."""
        return {
            "to_style": self.clip.compare(images, self.styles).tolist(),
            "to_content": self.clip.compare(images, self.contents).tolist(),
        }


def scene_pairs(num: int, seed: int, device: torch.device) -> StylePairs:
    """Pairs of test scenes."""
    pairs = style_pairs(num, seed)
    contents, styles = zip(*pairs, strict=True)
    captions = tuple((long_caption(content), long_caption(style)) for content, style in pairs)
    named = tuple(repr(pair) for pair in pairs)
    return StylePairs(rendered(contents).to(device), rendered(styles).to(device), captions, named, {"seed": seed})


def picture_pairs(
    contents: Sequence[CaptionedImage], styles: Sequence[CaptionedImage] | None, device: torch.device
) -> StylePairs:
    """Contents, each with a style image in turn; without style images with the next content.

    Raises:
        ValueError: There is one content alone, and no style image.
    """
    if styles is None and len(contents) < 2:
        raise ValueError("there is one picture alone, expected two, or style images: give their folder with --styles")
    following = [*contents[1:], contents[0]] if styles is None else list(islice(cycle(styles), len(contents)))
    pairs = list(zip(contents, following, strict=True))
    named = tuple(digest(*map(_named, pair)) for pair in pairs)
    captions = tuple((content.caption, style.caption) for content, style in pairs)
    return StylePairs(stacked(contents).to(device), stacked(following).to(device), captions, named, {})


def _named(picture: CaptionedImage) -> list[str]:
    """The caption, and a digest of the picture."""
    return [picture.caption, hashlib.sha256(picture.image.numpy().tobytes()).hexdigest()[:16]]


def measure_style_transfer(
    model: Backbone,
    pairs: StylePairs,
    look_of: Callable[[Tensor, Tensor], Look],
    out: Path,
    *,
    num_steps: int,
    guidance: float,
    shares: Sequence[float],
    blocks: Sequence[int],
    schedule: FitSchedule,
    clip: str,
    batch: int,
    device: torch.device,
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure and report the transfer at every share; the options are those of eval.style_transfer.

    Args:
        look_of: Gives who says whose look a picture has, from the VAE's round trips of contents and style images.
        batch: Pairs at a time; a fit holds as many.
        conditions: Entries of `about`.

    Returns:
        Content of results.json.
    """
    judge = ClipSimilarity(clip, device)
    structure = Structure(judge.model.vision_model, judge.pixels)
    tokens = ImageTokens.load(clip, device)
    num = len(pairs.captions)
    side = max(8, model.unet.config.sample_size // 4)
    step = GuidedStep(model, Ddim(model.schedule, num_steps), StyleObjective(guidance, attention_side=side))
    rows = [slice(start, start + batch) for start in range(0, num, batch)]

    kept = kept_results(out)
    decided_by = [
        backbone_settings(model),
        named(clip_fingerprint(tokens)),
        pairs.named,
        num_steps,
        guidance,
        asdict(schedule),
        *beside_float32(model.unet.dtype),
        *([batch] if batch < num else []),
    ]
    fits = {f"fit-{digest(decided_by, *([start] if start else []))}": row for start, row in enumerate(rows)}
    for piece in kept.missing({name: len(range(num)[row]) for name, row in fits.items()}, "style images"):
        row = fits[piece]
        values = fitted_values(step, tokens, pairs.styles[row], pairs.style_captions[row], schedule)
        kept.keep(piece, {}, {".safetensors": partial(save_values, values=values)})
    trips = [
        torch.cat([decode_latents(model, model.encode_image(images[row])) for row in rows])
        for images in (pairs.contents, pairs.styles)
    ]
    look = look_of(*trips)
    judges = [*look.settings, network_fingerprint(judge.model)]
    pieces = {f"share-{share:g}-{digest(decided_by, judges, blocks, share)}": share for share in shares}
    for piece in kept.missing(dict.fromkeys(pieces, num), "style transfer"):
        made = []
        for row, fit in zip(rows, fits, strict=True):
            pivots, content_prompt = pivots_of(step, pairs.contents[row], pairs.content_captions[row])
            style_prompt = model.encode_text(pairs.style_captions[row])
            null = matching(model.encode_text([""]), style_prompt)
            values = load_values(kept.path(fit, ".safetensors"), device)
            prompts = (content_prompt, style_prompt, null)
            latent = transfer_style(model, step.ddim, pivots, *prompts, values, guidance, blocks, pieces[piece])
            made.append(decode_latents(model, latent))
        images = torch.cat(made)
        found = look(images)
        found["structure"] = structure.distance(images, structure.similarity(trips[0])).tolist()
        pictures = {"pictures": np.stack(pixels(images))}
        kept.keep(piece, found, {".npz": partial(write_arrays, arrays=pictures)})
    results = {
        "shares": [
            {"share": share} | {name: Estimate.of(found).to_dict() for name, found in kept.read(piece).items()}
            for piece, share in pieces.items()
        ],
        "about": about(
            device,
            **conditions,
            dtype=name_of(model.unet.dtype),
            num_steps=num_steps,
            guidance=guidance,
            shares=shares,
            blocks=blocks,
            schedule=schedule,
            clip=clip,
            **pairs.about,
            n=num,
        ),
    }
    shown = [read_arrays(kept.path(piece, ".npz"))["pictures"] for piece in pieces]
    pictures_by_pair = list(zip(pixels(pairs.contents), pixels(pairs.styles), *shown, strict=True))[:_PICTURED]
    page = partial(write_transfer_page, out, results, look, pictures_by_pair)
    finish(out, results, shares_words(results, look), page=page)
    return results


def write_transfer_page(out: Path, results: dict[str, Any], look: Look, rows: Sequence[Sequence[np.ndarray]]) -> Path:
    """Write DIR/index.html of eval.style_transfer.

    Args:
        rows: Pictures uint8 [H, W, 3] of each pair: content, style, and one for each share.
    """
    return render_page(
        "style_transfer.html.j2",
        out,
        title="Style transfer",
        results=results,
        measures={**look.columns, "structure": ("structure distance to the content", "")},
        scales={**look.scales, "structure": 1.0},
        columns=["content", "style", *(f"features in {found['share']:.0%}" for found in results["shares"])],
        rows=[
            {"pictures": [Picture(small_uri(Image.fromarray(image), _PICTURE_SIDE)) for image in row]} for row in rows
        ],
    )


def pivots_of(step: GuidedStep, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Prompt]:
    """Pivots [n + 1, B, 4, h, w] of pictures with their captions, and those as a prompt."""
    backbone = step.backbone
    latent = backbone.encode_image(images)
    prompt = backbone.encode_text(captions, backbone.size_of(latent))
    return ddim_pivots(backbone, step.ddim, latent, prompt), prompt


def fitted_values(
    step: GuidedStep, tokens: ImageTokens, images: Tensor, captions: Sequence[str], schedule: FitSchedule
) -> tuple[Modulation, ...]:
    """Values of every step, fitted to pictures with their captions."""
    pivots, prompt = pivots_of(step, images, captions)
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


def shares_words(results: Mapping[str, Any], look: Look) -> str:
    """Figures by share of steps as text."""
    table = Columns("share", *look.columns, "structure")
    for point in results["shares"]:
        cells = (mean_words(point[name], look.scales[name]) for name in look.columns)
        table.add(f"{point['share']:.2f}", *cells, mean_words(point["structure"]))
    return f"n = {results['about']['n']}\n{table}"
