"""Export a run as a diffusers pipeline that works without this project.

    python -m train.export runs/NAME OUT

OUT holds safetensors, the pipeline's code and a model card; stock diffusers loads it with `trust_remote_code=True`, and
InstructPix2Pix, whose pipeline is diffusers' own, without. The export reloads what it wrote and compares before it says
done.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
import yaml
from diffusers import DiffusionPipeline
from torch import nn

from data.jobs.command import parse
from data.jobs.files import flush_to_disk
from models.backbone import dtype_of
from train.methods.instruct_pix2pix.export import INSTRUCT_PIX2PIX
from train.methods.stylediffusion.export import STYLEDIFFUSION
from train.methods.turboedit.adapter import CARD as ADAPTER_CARD
from train.methods.turboedit.adapter import write_adapter
from train.methods.turboedit.export import TURBOEDIT
from train.model_card import Exporter, TrainedWeights, add_code, largest_difference, model_card
from train.run.checkpoint import EMA, MODEL, Checkpoints, read_part, read_progress

logger = logging.getLogger(__name__)

EXPORTERS: dict[str, Exporter] = {"generator": TURBOEDIT, "mapper": STYLEDIFFUSION, "unet": INSTRUCT_PIX2PIX}
"""By the part of a run's config that only its method has."""


MAX_FILE_SIZE = "5GB"
"""Larger components become several files with an index, as diffusers and transformers read them."""

OUTPUT_TOLERANCE = 1e-3
"""Of outputs after a reload, as a share of the largest one. Weights have to come back equal, bit for bit; but where a
tensor lies in memory may change the order in which a CPU sums, and a generator amplifies rounding at its first step."""


class ExportError(Exception):
    """The run cannot be exported, or the export is not what the run holds."""


def read_run(run: Path, averaged: bool = True) -> tuple[Exporter, TrainedWeights]:
    """The run's method, and its newest weights.

    Args:
        run: run folder of a training; averaged: take the EMA if the run keeps one.

    Raises:
        ExportError: the folder is no run, or has no checkpoint yet, or none that is whole.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ExportError(f"{run} is not a run folder: it has no config.yaml. Give the run.folder of a training")
    exporter = next((EXPORTERS[part] for part in yaml.safe_load(path.read_text()) if part in EXPORTERS), None)
    if exporter is None:
        raise ExportError(f"{run} is a run of no method that can be exported: its config has none of {list(EXPORTERS)}")
    config: Any = parse(exporter.config, ["--config", str(path)])
    try:
        newest = Checkpoints(run / "checkpoints", keep=1).newest()
    except ValueError as error:
        raise ExportError(str(error)) from error
    if newest is None:
        raise ExportError(f"{run} has no checkpoint yet; wait for log.checkpoint_every steps or the run's end")
    use_average = averaged and (newest / EMA).is_file()
    weights = read_part(newest, EMA if use_average else MODEL)
    return exporter, TrainedWeights(config, read_progress(newest).step, weights, use_average)


def export(
    run: Path,
    out: Path,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    averaged: bool = True,
    lora: Literal["merged", "apart"] = "merged",
) -> None:
    """Export a run as a diffusers pipeline.

    Args:
        run: run folder of a training
        out: folder to make; it must not exist
        dtype: of the stored weights (the VAE keeps float32 where it would overflow)
        averaged: take the averaged (EMA) weights where the run has them
        lora: of a LoRA run, merged into the weights under them, or (TurboEdit) its own few megabytes apart, without a
            pipeline

    Raises:
        ExportError: the run has nothing to export, OUT exists, or the reloaded weights give something else.
    """
    if out.exists():
        raise ExportError(f"{out} exists already; remove it or give another OUT")
    exporter, trained = read_run(run, averaged)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if lora == "apart":
        if exporter is not TURBOEDIT:
            raise ExportError(f"{run} is no TurboEdit run, and only TurboEdit's adapters go apart: leave --lora merged")
        if not trained.config.encoder.lora.rank:
            raise ExportError(f"{run} has no adapters: it was trained without encoder.lora, leave --lora merged")
        rounding, difference = write_adapter(trained, partial, dtype)
        card = model_card(exporter, trained, _last_figures(run, trained.step), dtype, rounding, ADAPTER_CARD)
        (partial / "README.md").write_text(card)
        check_outputs(difference, partial)
    else:
        rounding = _write_pipeline(exporter, trained, partial, dtype, _last_figures(run, trained.step))
    flush_to_disk(partial)
    partial.rename(out)
    logger.info("exported step %d of %s to %s: reloaded, weights and outputs equal", trained.step, run, out)
    logger.info("storing the weights in %s changes the outputs by at most %.2g", dtype, rounding)


def _write_pipeline(
    exporter: Exporter, trained: TrainedWeights, partial: Path, dtype: str, last: dict[str, float]
) -> float:
    """Write the whole pipeline, reload and compare; returns the largest change of its outputs by storing in `dtype`."""
    pipeline = exporter.build(trained)
    pipeline.set_progress_bar_config(disable=True)
    exact = exporter.outputs(pipeline)
    vae_dtype = torch.float32 if pipeline.vae.config.force_upcast else dtype_of(dtype)
    for name, module in networks(pipeline).items():
        module.to(vae_dtype if name == "vae" else dtype_of(dtype))
    pipeline.save_pretrained(partial, safe_serialization=True, max_shard_size=MAX_FILE_SIZE)
    index = json.loads((partial / "model_index.json").read_text()) | add_code(exporter, partial)
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    forget_paths(partial)
    for module in networks(pipeline).values():
        module.float()
    stored, digests = exporter.outputs(pipeline), weight_digests(pipeline)
    rounding = (stored - exact).abs().max().item()
    card = model_card(exporter, trained, last, dtype, rounding, exporter.card, pipeline)
    (partial / "README.md").write_text(card)
    del pipeline, module  # one pipeline in memory at a time
    compare(exporter, stored, digests, partial)
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


def compare(exporter: Exporter, expected: torch.Tensor, digests: dict[str, str], folder: Path) -> None:
    """Reload `folder` as its users will, with the code that lies in it, and compare weights and `outputs` in float32.

    Raises:
        ExportError: a weight differs, or outputs do by more than OUTPUT_TOLERANCE.
    """
    with_code = exporter.pipeline is not None
    reloaded = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=with_code)
    reloaded.set_progress_bar_config(disable=True)
    found = weight_digests(reloaded)
    if changed := sorted(name for name in digests | found if digests.get(name) != found.get(name)):
        raise ExportError(
            f"the reloaded weights of {', '.join(changed)} differ from the stored ones; the export is left at {folder}"
        )
    check_outputs(largest_difference(exporter.outputs(reloaded), expected), folder)


def check_outputs(difference: float, folder: Path) -> None:
    """Raises ExportError if outputs differ after a reload of `folder` by more than OUTPUT_TOLERANCE of the largest."""
    if not difference <= OUTPUT_TOLERANCE:
        raise ExportError(
            f"outputs differ after a reload by {difference:g} of the largest, expected at most {OUTPUT_TOLERANCE:g}; "
            f"the export is left at {folder}"
        )


def _last_figures(run: Path, step: int) -> dict[str, float]:
    """The run's last logged figures up to a step."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]  # what follows the last newline was cut off
    rows = [json.loads(line) for line in lines]
    return next((row for row in reversed(rows) if row["step"] <= step), {})


def main() -> None:
    """Command line entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        jsonargparse.auto_cli(export)
    except ExportError as error:
        raise SystemExit(f"train.export: {error}") from error


if __name__ == "__main__":
    main()
