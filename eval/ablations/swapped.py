"""Ablation: keys of one prompt with values of another, from the same noise (StyleDiffusion, figure 4)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from data.world.description import ATTRIBUTE_VALUES
from eval.ablations.bench import Ablation, EditBench, Setting, Work, above, edit_strips, strip_columns
from eval.editors.few_steps import decode_latents
from eval.editors.models import ManyStepModel
from eval.editors.randomness import image_keys, image_noise
from eval.metrics.attributes import attribute_type
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import Reading, scene_readings
from eval.scene_edits.result import pixels
from models.attention import controlled
from models.attention_edits import injection
from models.ddim import matching, predict_noise
from models.text import Prompt, concatenate

WHERE = ("layout", "size", "pose")
"""Attributes that keys are said to decide."""
WHAT = ("colour", "fill", "material", "background", "style")
"""Attributes that values are said to decide; a shape is as much the one as the other."""

_MEASURES = {"where_keys": WHERE, "what_values": WHAT, "shape_keys": ("shape",)}
_SHOWN = (0, 1, 2, 3, 4, 5)


def ablate_swapped(bench: EditBench, on: ManyStepModel, seed: int) -> Ablation:
    """Pictures of each scene's caption and the next one's, and with the keys of the one and the values of the other."""
    edits = bench.edits

    def measure() -> list[Setting]:
        values: dict[str, list[float]] = {measure: [] for measure in _MEASURES}
        pictures: list[np.ndarray] = []
        others = (*edits.source_prompts[1:], edits.source_prompts[0])
        done = 0
        for part in edits.batches(bench.setup.batch):
            found = swapped_pictures(on, part, others[done : done + len(part)], seed)
            readings = {ends: scene_readings(bench.reader, images) for ends, images in found.items()}
            for row in range(len(part)):
                for name, value in swapped_values({ends: rows[row] for ends, rows in readings.items()}).items():
                    values[name].append(value)
            pictures += [np.concatenate(row, 1) for row in zip(*map(pixels, found.values()), strict=True)]
            done += len(part)
            bench.setup.kept.tick(len(part))
        return [Setting("keys and values of two prompts", values, pictures)]

    decided_by = [edits.digest, on.ddim.timesteps, on.guidance, seed]
    ((setting,),) = bench.measured("keys and values", [Work("swapped", decided_by, len(edits), measure)])
    return Ablation(
        name="swapped",
        title="Keys of one prompt, values of another",
        words=(
            "Two captions and one noise: each picture below is four, of the first caption, of its keys with the "
            "second's values, of the second's keys with its values, and of the second caption. Of the attributes in "
            "which the outer two differ, a figure is the share that the inner two have from the claimed side, less the "
            "share from the other."
        ),
        measures=tuple(_MEASURES),
        settings=(setting,),
        edits=edits.edits,
        evidence={
            "keys_where": [above("where_keys", setting, 0.0)],
            "values_what": [above("what_values", setting, 0.0)],
        },
        comparisons=(above("shape_keys", setting, 0.0),),
        columns=strip_columns(edits, [setting.name]),
        strips=edit_strips(edits, _SHOWN, (setting,)),
    )


Ends = tuple[int, int]
"""Which of two prompts gives the keys, and which the values."""


@torch.no_grad()
def swapped_pictures(on: ManyStepModel, part: EditSet, others: Sequence[str], seed: int) -> dict[Ends, Tensor]:
    """Pictures [B, 3, H, W] with keys and values of the captions (0) and of `others` (1), all from the same noises."""
    backbone = on.backbone
    noise = image_noise(image_keys(part.sources), "same noise", seed, backbone.encode_image(part.sources))
    prompts = [backbone.encode_text(texts, backbone.size_of(noise)) for texts in (part.source_prompts, others)]
    null = matching(backbone.encode_text([""]), prompts[0])
    return {
        (keys, values): decode_latents(backbone, _sampled(on, noise, prompts[keys], prompts[values], null))
        for keys, values in ((0, 0), (0, 1), (1, 0), (1, 1))
    }


def _sampled(on: ManyStepModel, noise: Tensor, keys: Prompt, values: Prompt, null: Prompt) -> Tensor:
    """Guided sampling whose conditional passes take their values from another prompt than their keys."""
    count = len(noise)
    both = concatenate([null, keys])
    rule = injection(values.embeds, "values", slice(count, 2 * count))

    def predict(x: Tensor, step: int) -> Tensor:
        with controlled(on.backbone.unet, [rule]):
            pair = predict_noise(on.backbone, torch.cat([x, x]), on.ddim.timesteps[step], both)
        unconditional, conditional = pair.chunk(2)
        return unconditional + on.guidance * (conditional - unconditional)

    return on.ddim.denoise(noise, predict)[-1]


def swapped_values(readings: Mapping[Ends, Reading]) -> dict[str, float]:
    """What is measured of four pictures, by the ends of their keys and values; nan where the outer two agree."""
    found = {}
    for measure, types in _MEASURES.items():
        end = 1 if measure == "what_values" else 0  # whose prompt is claimed to count: that of values, or of keys
        shares = [
            _follows(readings[ends], readings[ends[end], ends[end]], readings[1 - ends[end], 1 - ends[end]], types)
            for ends in ((0, 1), (1, 0))
        ]
        found[measure] = float(np.mean(shares))
    return found


def _follows(mixed: Reading, claimed: Reading, other: Reading, types: Sequence[str]) -> float:
    """Share of the attributes in which two pictures differ that a third has from the one, less from the other."""
    names = [name for name in ATTRIBUTE_VALUES if attribute_type(name) in types]
    differing = [name for name in names if min(claimed[name], other[name]) >= 0 and claimed[name] != other[name]]
    if not differing:
        return math.nan
    return sum((mixed[name] == claimed[name]) - (mixed[name] == other[name]) for name in differing) / len(differing)
