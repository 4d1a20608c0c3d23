"""Accuracy of captions: attributes that a backbone's samples show as their captions say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.jobs.device import choose_device
from data.jobs.kept import digest
from data.world.captions import long_caption
from data.world.description import Scene, attribute_targets
from data.world.splits import sample_scene
from eval.editors.editor import EditRequest
from eval.editors.references import GuidedCeiling
from eval.harness.exports import load_scene_backbone
from eval.harness.fingerprints import backbone_settings, network_fingerprint
from eval.harness.options import Dtype
from eval.harness.precision import beside_float32, name_of
from eval.harness.results import Columns, about, estimate_words, finish
from eval.metrics.attributes import AttributeReader, attribute_type, matches, stack_targets
from eval.metrics.pixels import Estimate
from eval.scene_edits.edit_set import rendered
from eval.scene_edits.judge import load_reader
from eval.scene_edits.run import kept_results
from models.ddim import Ddim


def measure_caption_accuracy(
    backbone: str,
    out: Path,
    guidances: Sequence[float],
    *,
    num_steps: int,
    num: int,
    attributes: Path,
    batch: int,
    seed: int,
    variant: str | None,
    dtype: Dtype,
    device: str,
) -> dict[str, Any]:
    """Measure and report the accuracy at every guidance; the options are those of eval.caption_accuracy.

    Returns:
        Content of caption_accuracy.json.
    """
    place = choose_device(device)
    model = load_scene_backbone(backbone, place, dtype, variant)
    reader = load_reader(attributes, place)
    ddim = Ddim(model.schedule, num_steps)
    scenes = [sample_scene("validation", seed, index) for index in range(num)]
    shared = [backbone_settings(model), network_fingerprint(reader), ddim.timesteps, num, seed]
    shared += beside_float32(model.unet.dtype)
    pieces = {f"guidance-{guidance:g}-{digest(shared, guidance)}": guidance for guidance in guidances}
    kept = kept_results(out)
    for piece in kept.missing(dict.fromkeys(pieces, num), "caption accuracy", "picture"):
        sampler = GuidedCeiling(model, ddim, pieces[piece])
        right: dict[str, list[float]] = {}
        for start in range(0, num, batch):
            part = scenes[start : start + batch]
            for name, found in rightness(sampler, reader, part, place).items():
                right.setdefault(name, []).extend(found.tolist())
            kept.tick(len(part))
        kept.keep(piece, right)
    figures = {}
    for piece, guidance in pieces.items():
        columns = {name: torch.tensor(found) for name, found in kept.read(piece).items()}
        figures[f"{guidance:g}"] = accuracy_figures(columns)
    results = {
        "guidances": figures,
        "best": best_guidance(figures),
        "about": about(
            place,
            backbone=backbone,
            dtype=name_of(model.unet.dtype),
            guidances=guidances,
            num_steps=num_steps,
            num=num,
            attributes=attributes,
            batch=batch,
            seed=seed,
        ),
    }
    finish(out, results, accuracy_words(results), name="caption_accuracy.json")
    return results


def rightness(
    sampler: GuidedCeiling, reader: AttributeReader, scenes: Sequence[Scene], device: torch.device
) -> dict[str, Tensor]:
    """Say by attribute [N] whether samples show it as their captions say: 1, 0, or nan where a scene has none."""
    read = {name: values.cpu() for name, values in reader.read(sampled(sampler, scenes, device)).items()}
    return matches(read, stack_targets(map(attribute_targets, scenes)))


@torch.no_grad()
def sampled(sampler: GuidedCeiling, scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """Pictures [B, 3, 64, 64] from the captions of scenes, by noise that belongs to each scene."""
    captions = tuple(long_caption(scene) for scene in scenes)
    inversion = sampler.invert(rendered(scenes).to(device), captions)
    return sampler.edit(inversion, EditRequest(captions))


def accuracy_figures(right: Mapping[str, Tensor]) -> dict[str, Any]:
    """Estimates over pictures of `right` [N] by attribute (1, 0, nan where there is none), as dicts.

    Returns:
        right: share of a picture's attributes that are right; all_right: share of pictures where all are; by_type: the
        share for each type of attribute.
    """
    types: dict[str, list[Tensor]] = {}
    for name, column in right.items():
        types.setdefault(attribute_type(name), []).append(column)
    share = torch.stack(list(right.values())).nanmean(0)
    return {
        "right": Estimate.of(share.tolist()).to_dict(),
        "all_right": Estimate.of((share == 1).float().tolist()).to_dict(),
        "by_type": {
            name: Estimate.of(torch.stack(columns).nanmean(0).tolist()).to_dict() for name, columns in types.items()
        },
    }


def best_guidance(figures: Mapping[str, Mapping[str, Any]]) -> float:
    """The guidance with the highest share of right attributes; of equals the lowest."""
    return float(max(figures, key=lambda name: (figures[name]["right"]["mean"], -float(name))))


def accuracy_words(results: Mapping[str, Any]) -> str:
    """Figures in percent with their standard errors, as text."""
    first = next(iter(results["guidances"].values()))
    table = Columns("guidance", "right", "all right", *first["by_type"])
    for name, found in results["guidances"].items():
        cells = (found["right"], found["all_right"], *found["by_type"].values())
        table.add(name, *(estimate_words(cell, 100) for cell in cells))
    return f"{table}\nbest: guidance {results['best']:g}, n = {first['right']['n']}"
