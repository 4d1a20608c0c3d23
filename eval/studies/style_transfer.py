"""Style transfer on scenes: the fit of style images, and whose style and layout a picture has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.world.captions import long_caption
from data.world.description import Scene
from data.world.splits import sample_scene
from eval.harness.results import Columns, mean_words
from eval.metrics.attributes import AttributeReader, attribute_type
from models.clip import ImageTokens
from models.ddim import ddim_pivots, matching
from models.options import FitSchedule
from models.stylediffusion import GuidedStep, fit_modulations
from models.text import Prompt
from models.value_mapper import Modulation

LOOK = ("style", "background")
"""Attributes that the style image decides."""
LAYOUT = ("layout", "shape", "size", "pose")
"""Attributes that the content image decides."""


Readings = Mapping[str, Tensor]
"""Value indices [B] by attribute."""


def pivots_of(step: GuidedStep, images: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Prompt]:
    """Pivots [n + 1, B, 4, h, w] of pictures of scenes with their captions, and those as a prompt."""
    backbone = step.backbone
    prompt = backbone.encode_text([long_caption(scene) for scene in scenes])
    return ddim_pivots(backbone, step.ddim, backbone.encode_image(images), prompt), prompt


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
