"""Export a run as a diffusers pipeline that works without this project.

    python -m train.export runs/NAME OUT

OUT holds safetensors, the pipeline's code and a model card; stock diffusers loads it with `trust_remote_code=True`, and
InstructPix2Pix, whose pipeline is diffusers' own, without. The export reloads what it wrote and compares before it says
done.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from data.jobs.command import read_config, run
from data.jobs.files import flush_to_disk, open_as_usual
from train.method import Method
from train.methods import method_of

if TYPE_CHECKING:
    from train.method import TrainedWeights

logger = logging.getLogger(__name__)


def read_run(run: Path, averaged: bool = True) -> "tuple[Method, TrainedWeights]":
    """Read a run's method and its newest weights.

    Args:
        run: Run folder of a training.
        averaged: Take the EMA if the run keeps one.

    Raises:
        ValueError: The folder is no run, or has no checkpoint yet, or none that is whole.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.yaml. Give the run.folder of a training")
    method = method_of(yaml.safe_load(path.read_text()), path)
    config: Any = read_config(method.config, path)

    from train.exports.weights import newest_weights  # torch loads after the command line is understood

    return method, newest_weights(run, config, averaged)


def export(
    run: Path,
    out: Path,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    averaged: bool = True,
    lora: Literal["merged", "apart"] = "merged",
) -> None:
    """Export a run as a diffusers pipeline.

    Args:
        run: Run folder of a training.
        out: Folder to make; it must not exist.
        dtype: Dtype of the stored weights (the VAE keeps float32 where it would overflow).
        averaged: Take the averaged (EMA) weights where the run has them.
        lora: Place of a LoRA run's adapters: merged into the weights under them, or (TurboEdit) apart, a few megabytes
            without a pipeline.

    Raises:
        ValueError: The run has nothing to export, OUT exists, or the reloaded weights give something else.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or give another OUT")
    method, trained = read_run(run, averaged)

    from train.exports.pipeline import check_outputs, write_pipeline
    from train.model_card import last_figures, model_card

    parts = method.export()
    base, last = method.backbone(trained.config), last_figures(run, trained.step)
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    card = partial(model_card, parts=parts, trained=trained, base=base, last=last, dtype=dtype)
    if lora == "apart":
        adapter = parts.adapter
        if adapter is None:
            raise ValueError(f"{run} is a run of {method.name}, whose adapters do not go apart: leave --lora merged")
        if not method.adapters(trained.config):
            raise ValueError(f"{run} has no adapters: its lora.rank is 0, leave --lora merged")
        rounding, difference = adapter.write(trained, unfinished, dtype)
        (unfinished / "README.md").write_text(card(adapter.card, rounding=rounding))
        check_outputs(difference, unfinished)
    else:
        rounding = write_pipeline(parts, trained, unfinished, dtype, partial(card, parts.card))
    open_as_usual(unfinished)
    flush_to_disk(unfinished)
    unfinished.rename(out)
    logger.info("exported step %d of %s to %s: reloaded, weights and outputs equal", trained.step, run, out)
    logger.info("storing the weights in %s changes the outputs by at most %.2g", dtype, rounding)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.export", export, argv, positional=True)


if __name__ == "__main__":
    main()
