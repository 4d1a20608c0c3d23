"""What proves an export: its weights bit for bit, and its outputs."""

import hashlib
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

OUTPUT_TOLERANCE = 1e-3
"""Largest change of an output by a reload, as a share of the largest one. Weights have to come back equal, bit for bit;
but where a tensor lies in memory may change the order in which a CPU sums, and a generator amplifies rounding at its
first step."""


class ExportError(ValueError):
    """The export is not what the run holds."""


def networks(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The pipeline's networks by component."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def weight_digests(pipeline: DiffusionPipeline) -> dict[str, str]:
    """SHA-256 of each network's weights, with their names and dtypes."""
    found = {}
    for name, network in networks(pipeline).items():
        digest = hashlib.sha256()
        for key, weight in sorted(network.state_dict().items()):
            digest.update(f"{key} {weight.dtype}".encode())
            digest.update(weight.contiguous().view(-1).view(torch.uint8).numpy())
        found[name] = digest.hexdigest()
    return found


def check_weights(found: dict[str, str], expected: dict[str, str], folder: Path) -> None:
    """Refuse weights that changed by a reload of `folder`.

    Args:
        found: Digests of the reloaded weights by component.
        expected: Digests of the weights that were stored.
        folder: Folder of the export, which is left there.

    Raises:
        ExportError: A component's differ.
    """
    if changed := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise ExportError(
            f"the reloaded weights of {', '.join(changed)} differ from the stored ones; the export is left at {folder}"
        )


def check_outputs(found: Tensor, expected: Tensor, folder: Path) -> None:
    """Refuse outputs that changed by a reload of `folder`.

    Args:
        found: Outputs of the reloaded networks, of any shape.
        expected: Outputs of the networks that were stored.
        folder: Folder of the export, which is left there.

    Raises:
        ExportError: They differ by more than OUTPUT_TOLERANCE of the largest, or are not finite.
    """
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= OUTPUT_TOLERANCE:
        raise ExportError(
            f"outputs differ after a reload by {difference:g} of the largest, expected at most {OUTPUT_TOLERANCE:g}; "
            f"the export is left at {folder}"
        )
