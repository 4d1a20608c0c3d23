"""Accuracy of captions: attributes that a backbone's samples show as their captions say."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.world.captions import long_caption
from data.world.description import Scene
from eval.editors.editor import EditRequest
from eval.editors.references import GuidedCeiling
from eval.harness.results import Columns, estimate_words
from eval.metrics.attributes import attribute_type
from eval.metrics.pixels import Estimate
from eval.scene_edits.edit_set import rendered


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
