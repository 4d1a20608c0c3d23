"""A run's pipeline as a folder that diffusers loads; it is reloaded and compared before the export says done."""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import HF_MODULES_CACHE

from data.jobs.sharing import locked
from models.carried_code import carry_code, is_carried
from models.pipeline_base import network_of
from train.exports.base import Base
from train.exports.evaluation import evaluation_sec
from train.exports.example import EXAMPLE_FILE, scene_example, sheet
from train.exports.memory import give_back
from train.exports.precision import compute_in_float32
from train.exports.proof import check_outputs, check_weights, networks, weight_digests
from train.method import ExportParts, Storage, TrainedWeights

logger = logging.getLogger(__name__)

MAX_FILE_SIZE = "5GB"
"""Larger components become several files with an index, as diffusers and transformers read them."""


def write_pipeline(
    parts: ExportParts,
    trained: TrainedWeights,
    folder: Path,
    storage: Storage,
    device: torch.device,
    card: Callable[..., str],
    on_base: Base | None = None,
) -> None:
    """Write the pipeline with its code and card, reload it as its users will and compare.

    At most one pipeline is in memory, in the dtype in which it is stored.

    Args:
        parts: The method's part of the export.
        trained: Weights of the run.
        folder: Folder to make.
        storage: Dtype in which weights are stored (a VAE that overflows in float16 keeps float32).
        device: Device on which the pipeline is tried out.
        card: Maker of the model card from `pipeline` and `example`.
        on_base: The base, to write what was trained alone and have all else loaded from there.

    Raises:
        ExportError: A reloaded weight differs, or outputs do by more than the tolerance.
    """
    pipeline = parts.build(trained, storage)
    give_back()
    if on_base is None:
        _write(pipeline, folder, None, {})
    else:
        pointer = {"base": on_base.hub_id or on_base.path, "base_variant": on_base.variant}
        _write(pipeline, folder, parts.encoder, pointer)
    digests, with_code = weight_digests(pipeline), is_carried(type(pipeline))
    vae_dtype = pipeline.vae.dtype
    example = scene_example()
    _prepare(pipeline, device)
    minutes = parts.evaluations(pipeline) * evaluation_sec(network_of(pipeline)) / 60
    logger.info("checking on %s in float32, before and after a reload: about %.1f minutes", device, minutes)
    expected = parts.trial(pipeline, example).outputs.cpu()
    del pipeline  # one in memory at a time
    give_back()
    reloaded = _reloaded(folder, {"vae": vae_dtype, "default": storage.dtype}, with_code)
    check_weights(weight_digests(reloaded), digests, folder)
    _prepare(reloaded, device)
    found = parts.trial(reloaded, example)
    check_outputs(found.outputs.cpu(), expected, folder)
    give_back()
    made = found.pictures()
    if made:
        sheet({"a scene": example.picture, **made}).save(folder / EXAMPLE_FILE)
    shown = ", ".join(["a scene", *made]) if made else None
    (folder / "README.md").write_text(card(pipeline=reloaded, example=shown))


def _write(pipeline: DiffusionPipeline, folder: Path, alone: str | None, pointer: dict[str, Any]) -> None:
    """Write the pipeline with its code: all of it, or one component `alone` with a `pointer` to the base."""
    if alone is None:
        pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=MAX_FILE_SIZE)
        others = set()
    else:
        pipeline.save_config(folder)
        getattr(pipeline, alone).save_pretrained(folder / alone, max_shard_size=MAX_FILE_SIZE)
        others = set(pipeline.components) - {alone}
    carry_code(pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text()) | pointer
    index = {name: value for name, value in index.items() if name not in others}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    forget_paths(folder)


def forget_paths(folder: Path) -> None:
    """Take out of a saved pipeline's configs where its parts were loaded from: a path of this machine."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _prepare(pipeline: DiffusionPipeline, device: torch.device) -> None:
    """Let a pipeline compute on the device, in float32."""
    pipeline.set_progress_bar_config(disable=not logger.isEnabledFor(logging.INFO))
    if device.type != "cpu":  # where it was built; diffusers warns of float16 there, and it computes in float32
        pipeline.to(device)
    for network in networks(pipeline).values():
        compute_in_float32(network)
    give_back()


def _reloaded(folder: Path, dtypes: dict[str, Any], with_code: bool) -> DiffusionPipeline:
    """The pipeline as its users load it, with the code that lies in the folder."""
    with code_cache():
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtypes, trust_remote_code=with_code)


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
