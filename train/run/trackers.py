"""The trackers of a run through accelerate's: TensorBoard, Weights & Biases and the others that it knows.

The records of the run folder are the truth. Trackers write behind them and lose what they hold when a process is
killed, so Weights & Biases is brought up to the records whenever a run goes on.
"""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, filter_trackers, get_available_trackers
from PIL import Image

from train.run.config import FitConfig
from train.run.launch import Launch

NO_CONFIG = ("tensorboard", "wandb")
"""Trackers that are not told the config by accelerate: TensorBoard makes runs of it, wandb has it from its start."""


class Trackers:
    """The trackers that `log.trackers` names, on the first rank.

    Args:
        folder: Run folder, with its records cut back to `step`.
        config: The run's config.
        launch: The processes.
        first_start: Time of the folder's first start, which tells this run from others of its name.
        step: Step that the run goes on from.

    Raises:
        ValueError: A tracker's package is not installed.
    """

    def __init__(self, folder: Path, config: FitConfig, launch: Launch, first_start: str, step: int) -> None:
        log = config.log
        _check_installed(log.trackers)
        accelerator = launch.accelerator
        accelerator.project_configuration.logging_dir = str(folder)
        named = [_event_files(folder, step) if name == "tensorboard" else name for name in log.trackers]
        accelerator.log_with, accelerator.trackers = filter_trackers(named, str(folder)), []
        run_id = f"{folder.name}-{first_start}".replace(":", "").replace("+", "")
        if "wandb" in log.trackers:
            _remove_replaced(folder, run_id)
        wandb = {
            "id": run_id,
            "resume": "allow",
            "name": log.run_name or folder.name,
            "entity": log.entity,
            "tags": list(log.tags),
            "dir": str(folder),
            "mode": log.wandb_mode,
            "config": asdict(config),
        }
        accelerator.init_trackers(log.project, init_kwargs={"wandb": wandb})
        self._trackers: list[GeneralTracker] = [accelerator.get_tracker(name) for name in log.trackers]
        for tracker in self._trackers:
            if tracker.name not in NO_CONFIG:
                tracker.store_init_configuration(_flat(asdict(config)))
            if tracker.name == "wandb":
                _catch_up(tracker, folder, step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of a step."""
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Log the preview grid of a step, where the tracker takes pictures."""
        for tracker in self._trackers:
            _log_picture(tracker, step, picture)

    def close(self) -> None:
        """Write what is buffered."""
        for tracker in self._trackers:
            tracker.finish()


def recorded(folder: Path) -> dict[int, dict[str, float]]:
    """Numbers of metrics.jsonl and timing.jsonl of a run folder, by step."""
    rows: dict[int, dict[str, float]] = {}
    for name in ("metrics.jsonl", "timing.jsonl"):
        for line in (folder / name).read_text().splitlines():
            values = json.loads(line)
            numbers = {key: math.nan if value is None else value for key, value in values.items() if key != "step"}
            rows.setdefault(values["step"], {}).update(numbers)
    return rows


def _event_files(folder: Path, step: int) -> TensorBoardTracker:
    """TensorBoard in RUN/tensorboard, which accelerate would name by the project; events after `step` are hidden."""
    return TensorBoardTracker("tensorboard", str(folder), purge_step=step + 1)


def _check_installed(names: tuple[str, ...]) -> None:
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in installed:
            raise ValueError(
                f"log.trackers names {name}, which is not installed here: pip install {name}, or take it out"
            )


def _remove_replaced(folder: Path, run_id: str) -> None:
    """Remove what earlier starts wrote offline and nobody has uploaded: `_catch_up` writes it anew, and whole."""
    for path in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        if not list(path.glob("*.synced")):
            shutil.rmtree(path)


def _catch_up(tracker: GeneralTracker, folder: Path, last: int) -> None:
    """Log the records up to the step `last` that wandb does not hold, all of them where it is offline.

    Steps that it holds from beyond `last` are logged again by the run, and wandb leaves out what it has already.
    """
    rows = recorded(folder)
    pictures = {int(path.stem.removeprefix("step-")): path for path in (folder / "samples").glob("step-*.png")}
    first = tracker.tracker.step  # the one after those that it holds
    for step in sorted(step for step in {*rows, *pictures} if first <= step <= last):
        if step in rows:
            tracker.log(rows[step], step=step)
        if step in pictures:
            with Image.open(pictures[step]) as picture:
                _log_picture(tracker, step, picture)


def _log_picture(tracker: GeneralTracker, step: int, picture: Image.Image) -> None:
    if tracker.name == "tensorboard":
        tracker.log_images({"preview": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({"preview": [picture]}, step=step)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of nested dicts by dotted name, as numbers or words: all trackers take those."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
