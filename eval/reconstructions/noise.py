"""The entry `noise` of results.json: what the noises of inversions look like, by method and timestep."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.editors.editor import InvertedImages
from eval.metrics.noise import noise_moments, noise_summary
from eval.metrics.pixels import Estimate

Noises = dict[str, dict[float, list[Tensor]]]
"""Noises of one batch after another, by name and timestep."""

NoiseFigures = dict[str, dict[str, dict[str, Any]]]
"""The entry `noise`: by name and timestep, estimates as dicts of mean, se, n, and `max`, the largest absolute value."""


def collect_noises(noises: Noises, name: str, inversion: InvertedImages) -> None:
    """Add an inversion's noises to `noises`.

    A method that gives a distribution has two entries: under its name the aggregate, draws from it, which is what a KL
    holds to the normal distribution; under NAME_mean the means, with which it inverts.
    """
    used = f"{name}_mean" if inversion.aggregate else name
    for entry, found in ((name, inversion.aggregate), (used, inversion.noises)):
        for t, noise in found.items():
            noises.setdefault(entry, {}).setdefault(t, []).append(noise.float().cpu())


def noise_figures(noises: Noises) -> NoiseFigures:
    """Health of each timestep's noises."""
    return {name: {str(t): _level(parts) for t, parts in levels.items()} for name, levels in noises.items()}


def _level(parts: Sequence[Tensor]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: estimate.to_dict() for name, estimate in noise_health(*parts).items()}
    return figures | {"max": max(noise.abs().max().item() for noise in parts)}


def noise_health(*parts: Tensor) -> dict[str, Estimate]:
    """The figures of `noise_summary` for all samples of parts [b, C, h, w] together, each with its standard error.

    The error is that between images, by the jackknife (Efron and Stein 1981): how much a figure moves when one image is
    left out. Values within an image are correlated, so counting each value would make it far too small.
    """
    found = [noise_moments(noise) for noise in parts]
    moments = {name: torch.cat([part[name] for part in found]).cpu().double() for name in found[0]}
    count = sum(map(len, parts))
    health = noise_summary({name: values.mean().item() for name, values in moments.items()})
    if count < 2:
        return {name: Estimate(value, math.nan, count) for name, value in health.items()}
    without = {name: ((values.sum() - values) / (count - 1)).tolist() for name, values in moments.items()}
    replicas = [noise_summary({name: values[i] for name, values in without.items()}) for i in range(count)]
    # Each replica holds all but one image: their spread is that of a mean, shrunk by count - 1.
    shrunk = {name: Estimate.of(replica[name] for replica in replicas).se for name in health}
    return {name: Estimate(value, shrunk[name] * (count - 1), count) for name, value in health.items()}
