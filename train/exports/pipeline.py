"""A run's pipeline as a folder that diffusers loads; it is reloaded and compared before the export says done."""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import HF_MODULES_CACHE
from torch import Tensor, nn

from data.jobs.sharing import locked
from models.backbone import dtype_of
from models.carried_code import carry_code, is_carried
from train.method import ExportParts, TrainedWeights

MAX_FILE_SIZE = "5GB"
"""Larger components become several files with an index, as diffusers and transformers read them."""

OUTPUT_TOLERANCE = 1e-3
"""Largest change of an output by a reload, as a share of the largest one. Weights have to come back equal, bit for bit;
but where a tensor lies in memory may change the order in which a CPU sums, and a generator amplifies rounding at its
first step."""


class ExportError(ValueError):
    """The export is not what the run holds."""


def write_pipeline(
    parts: ExportParts, trained: TrainedWeights, folder: Path, dtype: str, card: Callable[..., str]
) -> float:
    """Write the whole pipeline with its code and card, reload it and compare.

    Args:
        parts: The method's part of the export.
        trained: Weights of the run, which the pipeline takes over.
        folder: Folder to make.
        dtype: Name of the dtype in which weights are stored (the VAE keeps float32 where it would overflow).
        card: Maker of the model card from `rounding`, which is returned, and `pipeline`.

    Returns:
        Largest change of the pipeline's outputs by storing in `dtype`.

    Raises:
        ExportError: A reloaded weight differs, or outputs do by more than OUTPUT_TOLERANCE.
    """
    pipeline = parts.build(trained)
    pipeline.set_progress_bar_config(disable=True)
    exact = parts.outputs(pipeline)
    vae_dtype = torch.float32 if pipeline.vae.config.force_upcast else dtype_of(dtype)
    for name, module in networks(pipeline).items():
        module.to(vae_dtype if name == "vae" else dtype_of(dtype))
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=MAX_FILE_SIZE)
    carry_code(pipeline, folder)
    forget_paths(folder)
    for module in networks(pipeline).values():
        module.float()
    stored, digests = parts.outputs(pipeline), weight_digests(pipeline)
    rounding = (stored - exact).abs().max().item()
    (folder / "README.md").write_text(card(rounding=rounding, pipeline=pipeline))
    with_code = is_carried(type(pipeline))
    del pipeline, module  # one pipeline in memory at a time
    _compare(parts, stored, digests, folder, with_code)
    return rounding


def networks(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The pipeline's networks by component."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def forget_paths(folder: Path) -> None:
    """Take out of a saved pipeline's configs where its parts were loaded from: a path of this machine."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def weight_digests(pipeline: DiffusionPipeline) -> dict[str, str]:
    """SHA-256 of each network's weights and their names."""
    found = {}
    for name, network in networks(pipeline).items():
        digest = hashlib.sha256()
        for key, weight in sorted(network.state_dict().items()):
            digest.update(key.encode())
            digest.update(weight.contiguous().view(-1).view(torch.uint8).numpy())
        found[name] = digest.hexdigest()
    return found


def _compare(parts: ExportParts, expected: Tensor, digests: dict[str, str], folder: Path, with_code: bool) -> None:
    """Reload `folder` as its users will, with the code that lies in it, and compare weights and `outputs` in float32.

    Raises:
        ExportError: A weight differs, or outputs do by more than OUTPUT_TOLERANCE.
    """
    with code_cache():
        reloaded = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=with_code)
    reloaded.set_progress_bar_config(disable=True)
    found = weight_digests(reloaded)
    if changed := sorted(name for name in digests | found if digests.get(name) != found.get(name)):
        raise ExportError(
            f"the reloaded weights of {', '.join(changed)} differ from the stored ones; the export is left at {folder}"
        )
    check_outputs(largest_difference(parts.outputs(reloaded), expected), folder)


@contextmanager
def code_cache() -> Iterator[Path]:
    """Hold diffusers' cache of pipeline code, empty of what this process has imported from it.

    Each load of a folder copies its files there by the same names. Two loads at once would import what the other has
    written in part, and after another folder's load its modules would be taken for this one's.
    """
    cache = Path(HF_MODULES_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        for name in [name for name in sys.modules if name.startswith("diffusers_modules.local.")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        yield cache


def check_outputs(difference: float, folder: Path) -> None:
    """Refuse outputs that changed by a reload of `folder`.

    Args:
        difference: Largest difference of an output, as a share of the largest output.
        folder: Folder of the export, which is left there.

    Raises:
        ExportError: The difference is above OUTPUT_TOLERANCE.
    """
    if not difference <= OUTPUT_TOLERANCE:
        raise ExportError(
            f"outputs differ after a reload by {difference:g} of the largest, expected at most {OUTPUT_TOLERANCE:g}; "
            f"the export is left at {folder}"
        )


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference between two outputs, as a share of the largest value expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
