"""The weights of a checkpoint of a run folder, read one tensor at a time."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from train.method import Checkpoint, TrainedWeights
from train.run.checkpoint import EMA, MODEL, Checkpoints, Ranking, damage, read_progress

logger = logging.getLogger(__name__)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, on the CPU; each is read when it is asked for.

    The file is mapped anew for each, so that what has been read and let go takes no memory.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def trained_weights(run: Path, config: Any, averaged: bool = True, checkpoint: Checkpoint = None) -> TrainedWeights:
    """Find the weights of a run's checkpoint; they are read later, tensor by tensor.

    Args:
        run: Run folder of a training.
        config: Config of the run.
        averaged: Take the EMA if the run keeps one.
        checkpoint: Which checkpoint.

    Raises:
        ValueError: The run has no checkpoint yet, none of that step, none with the figure by which to choose the best,
            or none that is whole.
    """
    checkpoints = Checkpoints(run / "checkpoints", keep=1, ranking=Ranking.of(config))
    step = _best_step(checkpoints) if checkpoint == "best" else checkpoint
    folder = checkpoints.newest() if step is None else _of_step(checkpoints, step)
    if folder is None:
        raise ValueError(f"{run} has no checkpoint yet; wait for log.checkpoint_every steps or the run's end")
    use_average = averaged and (folder / EMA).is_file()
    weights = StoredTensors(folder / (EMA if use_average else MODEL))
    return TrainedWeights(config, read_progress(folder).step, weights, use_average)


def _best_step(checkpoints: Checkpoints) -> int:
    """Step of the best checkpoint.

    Raises:
        ValueError: The run does not say which is the best, or has none with that figure.
    """
    if checkpoints.ranking is None:
        raise ValueError("--checkpoint best: the run names no figure to choose by; train with log.best, or give a step")
    best = checkpoints.best()
    if best is None:
        raise ValueError(
            f"--checkpoint best: no checkpoint in {checkpoints.folder} has the figure {checkpoints.ranking.figure} of "
            "the run's held-out samples yet; give a step, or leave it out for the newest"
        )
    logger.info("the best checkpoint is of step %d: %s %.4g", best.step, checkpoints.ranking.figure, best.value)
    return best.step


def _of_step(checkpoints: Checkpoints, step: int) -> Path:
    """Folder of the checkpoint of a step, which is read through first.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    steps = checkpoints.steps()
    if step not in steps:
        there = f"there are those of the steps {', '.join(map(str, steps))}" if steps else "there is none at all"
        raise ValueError(f"--checkpoint {step}: {checkpoints.folder} has no such checkpoint; {there}")
    if (problem := damage(checkpoints.path(step))) is not None:
        raise ValueError(f"--checkpoint {step} is damaged: {problem}; take another of {', '.join(map(str, steps))}")
    return checkpoints.path(step)
