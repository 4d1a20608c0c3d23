"""Runs of any method, by their folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data.jobs.command import read_config
from train.method import Method
from train.methods import method_of

if TYPE_CHECKING:
    from train.method import TrainedWeights


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training."""
    return (folder / "config.yaml").is_file()


def read_run(run: Path, averaged: bool = True, checkpoint: int | None = None) -> "tuple[Method, TrainedWeights]":
    """Read a run's method and find the weights of a checkpoint.

    Args:
        run: Run folder of a training.
        averaged: Take the EMA if the run keeps one.
        checkpoint: Step of the checkpoint; by default the newest that is whole.

    Raises:
        ValueError: The folder is no run, or has no checkpoint yet, none of that step, or none that is whole.
    """
    path = run / "config.yaml"
    if not is_run(run):
        raise ValueError(f"{run} is not a run folder: it has no config.yaml. Give the run.folder of a training")
    method = method_of(yaml.safe_load(path.read_text()), path)
    config: Any = read_config(method.config, path)

    from train.exports.weights import trained_weights  # torch loads after the command line is understood

    return method, trained_weights(run, config, averaged, checkpoint)
