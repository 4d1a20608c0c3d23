"""The newest weights of a run folder."""

from pathlib import Path
from typing import Any

from train.method import TrainedWeights
from train.run.checkpoint import EMA, MODEL, Checkpoints, read_part, read_progress


def newest_weights(run: Path, config: Any, averaged: bool = True) -> TrainedWeights:
    """Read the newest weights of a run, on the CPU.

    Args:
        run: Run folder of a training.
        config: Config of the run.
        averaged: Take the EMA if the run keeps one.

    Raises:
        ValueError: The run has no checkpoint yet, or none that is whole.
    """
    newest = Checkpoints(run / "checkpoints", keep=1).newest()
    if newest is None:
        raise ValueError(f"{run} has no checkpoint yet; wait for log.checkpoint_every steps or the run's end")
    use_average = averaged and (newest / EMA).is_file()
    weights = read_part(newest, EMA if use_average else MODEL)
    return TrainedWeights(config, read_progress(newest).step, weights, use_average)
