"""The entry `noise` of results.json: what the noises of inversions look like, by method and timestep."""

import torch
from torch import Tensor

from eval.editors.editor import Inversion
from eval.noise import noise_health

Noises = dict[str, dict[int, list[Tensor]]]
"""By name and timestep, the noises of one batch after another."""


def collect_noises(noises: Noises, name: str, inversion: Inversion) -> None:
    """Add an inversion's noises to `noises`.

    A method that gives a distribution has two entries: under its name the aggregate, draws from it, which is what a KL
    holds to the normal distribution; under NAME_mean the means, with which it inverts.
    """
    used = f"{name}_mean" if inversion.aggregate else name
    for entry, found in ((name, inversion.aggregate), (used, inversion.noises)):
        for t, noise in found.items():
            noises.setdefault(entry, {}).setdefault(t, []).append(noise.float().cpu())


def noise_figures(noises: Noises) -> dict[str, dict[str, dict[str, float]]]:
    """Health of each timestep's noises, all samples together."""
    return {
        name: {str(t): noise_health(torch.cat(parts)) for t, parts in levels.items()} for name, levels in noises.items()
    }
