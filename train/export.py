"""Export a run as a diffusers pipeline that works without this project.

    python -m train.export runs/NAME OUT

OUT holds safetensors, the pipeline's code and a model card; stock diffusers loads it with `trust_remote_code=True`, and
InstructPix2Pix, whose pipeline is diffusers' own, without. The export reloads what it wrote and compares before it says
done. `--push USER/NAME` uploads it afterwards, `--space DIR` writes the page on which people try it as a Space.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from data.jobs.command import read_config, run
from data.jobs.files import explained_if_full, flush_to_disk, open_as_usual
from train.method import Checkpoint, Method, Storage
from train.methods import method_of

if TYPE_CHECKING:
    from train.method import ExportParts, TrainedWeights

logger = logging.getLogger(__name__)


def read_run(run: Path, averaged: bool = True, checkpoint: Checkpoint = None) -> "tuple[Method, TrainedWeights]":
    """Read a run's method and find the weights of a checkpoint.

    Args:
        run: Run folder of a training.
        averaged: Take the EMA if the run keeps one.
        checkpoint: Step of the checkpoint, or best; by default the newest that is whole.

    Raises:
        ValueError: The folder is no run, or has no checkpoint yet, none of that step, no best one, or none that is
            whole.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.yaml. Give the run.folder of a training")
    method = method_of(yaml.safe_load(path.read_text()), path)
    config: Any = read_config(method.config, path)

    from train.exports.weights import trained_weights  # torch loads after the command line is understood

    return method, trained_weights(run, config, averaged, checkpoint)


def export(
    run: Path,
    out: Path,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    averaged: bool = True,
    checkpoint: Checkpoint = None,
    lora: Literal["merged", "apart"] = "merged",
    encoder_only: bool = False,
    base: str | None = None,
    device: str = "cpu",
    push: str | None = None,
    private: bool = False,
    space: Path | None = None,
) -> None:
    """Export a run as a diffusers pipeline.

    Args:
        run: Run folder of a training.
        out: Folder to make; it must not exist.
        dtype: Dtype of the stored weights (the VAE keeps float32 where it would overflow).
        averaged: Take the averaged (EMA) weights where the run has them.
        checkpoint: Step of the checkpoint to take, or best for that with the best figure of held-out samples, which the
            run names by log.best; by default the newest.
        lora: Place of a LoRA run's adapters: merged into the weights under them, or (TurboEdit) apart, a few megabytes
            without a pipeline.
        encoder_only: Store the trained encoder alone; loading it takes all else from the base (TurboEdit).
        base: Hub id of the base, if the run was trained on a copy in a folder.
        device: Device on which the export is tried out: cpu, cuda, cuda:0 ...
        push: USER/NAME on the hub to upload the export to, with its card.
        private: Let nobody else see what is pushed.
        space: Folder to make, with the page on which people try the export as a Space of the hub. It loads the export
            from the hub if it is pushed, or else from OUT.

    Raises:
        ValueError: The run has nothing to export, OUT or the Space's folder exists, options do not fit together, the
            reloaded weights give something else, or the export cannot be pushed.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or give another OUT")
    if private and push is None:
        raise ValueError("--private is about what is pushed: give --push USER/NAME too, or leave it out")
    method, trained = read_run(run, averaged, checkpoint)
    parts = method.export()
    _check_choices(run, method, trained, parts, lora, encoder_only)
    if space is not None:
        _check_page(run, method, parts, lora)

    from data.jobs.device import choose_device
    from train.exports import hub
    from train.exports.base import Base
    from train.exports.pipeline import write_pipeline
    from train.exports.proof import check_outputs
    from train.exports.space import check_space, write_space
    from train.model_card import last_figures, model_card, run_words
    from train.run.folder import recorded_initial_weights

    if push is not None:
        hub.check_repository(push)
    if space is not None:
        check_space(space)
    frozen = Base.of(method.backbone(trained.config), base, method.variant(trained.config))
    if push is not None and encoder_only and frozen.hub_id is None:
        raise ValueError(f"{frozen.path} is a folder of this machine: name the base's hub id by --base to push")
    chosen, storage = choose_device(device), Storage(dtype)
    last, initial = last_figures(run, trained.step), recorded_initial_weights(run)
    card = partial(model_card, parts=parts, trained=trained, base=frozen, last=last, initial=initial, storage=storage)
    card = partial(card, history=run_words(run))
    with _made_whole(out) as unfinished:
        if lora == "apart":
            assert parts.adapter is not None
            expected, found = parts.adapter.write(trained, unfinished, storage)
            (unfinished / "README.md").write_text(card(parts.adapter.card))
            check_outputs(found, expected, unfinished)
        else:
            write = partial(card, parts.card, encoder_only=encoder_only)
            write_pipeline(parts, trained, unfinished, storage, chosen, write, frozen if encoder_only else None)
    logger.info("exported step %d of %s to %s: reloaded, weights and outputs equal", trained.step, run, out)
    logger.info("storing in %s changes a trained tensor by at most %.2g of its norm", dtype, storage.rounding)
    if space is not None:
        with _made_whole(space) as unfinished:
            write_space(unfinished, out, push, frozen)
        logger.info("wrote the page to %s; python %s opens it", space, space / "app.py")
    if push is not None:
        logger.info("pushed to %s", hub.push(out, push, private))
    if push is not None and space is not None:
        hint = f"hf upload {push} {space} . --repo-type space{' --private' if private else ''}"
        logger.info("to make a Space of the page: %s", hint)


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which is flushed to disk and takes its name at the end of the block."""
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with explained_if_full(folder.parent):
        yield unfinished
        open_as_usual(unfinished)
        flush_to_disk(unfinished)
        unfinished.rename(folder)


def _check_choices(
    run: Path, method: Method, trained: "TrainedWeights", parts: "ExportParts", lora: str, encoder_only: bool
) -> None:
    """Refuse forms of an export that the run does not have.

    Raises:
        ValueError: They do not fit the method or the run.
    """
    if lora == "apart" and parts.adapter is None:
        raise ValueError(f"{run} is a run of {method.name}, whose adapters do not go apart: leave --lora merged")
    if lora == "apart" and not method.adapters(trained.config):
        raise ValueError(f"{run} has no adapters: its lora.rank is 0, leave --lora merged")
    if lora == "apart" and encoder_only:
        raise ValueError("--lora apart writes adapters without a pipeline: leave out --encoder_only")
    if encoder_only and parts.encoder is None:
        raise ValueError(f"{run} is a run of {method.name}, which goes as a whole: leave out --encoder_only")
    if (encoder_only or lora == "apart") and parts.alters_base(trained.config):
        raise ValueError(
            f"{run} was trained on a base with another UNet, a LoRA or another prediction type, which only a whole "
            "export holds: leave out --encoder_only and --lora apart"
        )


def _check_page(run: Path, method: Method, parts: "ExportParts", lora: str) -> None:
    """Refuse a page for exports that it does not open.

    Raises:
        ValueError: They are another method's, or no pipelines.
    """
    if not parts.page:
        raise ValueError(f"{run} is a run of {method.name}, whose exports the page does not open: leave out --space")
    if lora == "apart":
        raise ValueError("--lora apart writes adapters without a pipeline, which the page needs: leave out --space")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.export", export, argv, positional=True)


if __name__ == "__main__":
    main()
