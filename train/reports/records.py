"""What a run folder says of its run: config, starts, numbers by step, previews. Nothing here needs torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Curve = list[tuple[int, float]]
"""(Step, value) in the order of the steps."""


@dataclass(frozen=True)
class RunRecords:
    """The records of a run.

    Args:
        folder: run folder.
        config: content of config.yaml.
        starts: content of environment.json, an entry for each start.
        curves: numbers of metrics.jsonl and timing.jsonl by name; what was not finite is left out.
        terms: names of the terms that sum to the loss, where they are more than one.
        previews: pictures in samples/ by step.
    """

    folder: Path
    config: dict[str, Any]
    starts: list[dict[str, Any]]
    curves: dict[str, Curve]
    terms: tuple[str, ...]
    previews: dict[int, Path]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """Steps that have been taken, as far as there are lines of them."""
        return max(curve[-1][0] for curve in self.curves.values())

    @property
    def steps(self) -> int:
        """Steps that the run is to take."""
        return self.config["run"]["steps"]

    @property
    def minutes(self) -> float | None:
        """Minutes of training over all starts; None where there is no line of timing."""
        seconds = self.curves.get("seconds")
        return seconds[-1][1] / 60 if seconds else None

    @property
    def stopped_by_clock(self) -> bool:
        """Whether run.time_limit_min ended the run before its last step."""
        limit = self.config["run"].get("time_limit_min")
        return self.step < self.steps and None not in (limit, self.minutes) and self.minutes >= limit

    @property
    def state(self) -> str:
        """Where the run stands, in a sentence."""
        limit = self.config["run"].get("time_limit_min")
        if self.step >= self.steps:
            return f"Finished: all {self.steps:,} steps are done."
        if self.stopped_by_clock:
            return f"Stopped by the clock: run.time_limit_min is {limit:g}, at step {self.step:,} of {self.steps:,}."
        return f"At step {self.step:,} of {self.steps:,}: running, or stopped and going on by the same command."


def read_records(folder: Path) -> RunRecords:
    """Read a run folder, of a run that may be writing to it.

    Raises:
        ValueError: it is no run folder, has no line of metrics yet, or a line that cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml. Give the run.folder of a training")
    metrics = _lines(folder / "metrics.jsonl")
    if not metrics:
        raise ValueError(
            f"{folder} has no line of metrics.jsonl yet: the first one comes after log.log_every steps, or at the end"
        )
    environment = folder / "environment.json"
    return RunRecords(
        folder=folder,
        config=yaml.safe_load(path.read_text("utf-8")),
        starts=json.loads(environment.read_text("utf-8")) if environment.is_file() else [],
        curves=_curves([*metrics, *_lines(folder / "timing.jsonl")]),
        terms=_terms(next((line for line in reversed(metrics) if line.get("loss") is not None), {})),
        previews={
            int(path.stem.removeprefix("step-")): path for path in sorted((folder / "samples").glob("step-*.png"))
        },
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; a last one that is being written is left out."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            raise ValueError(f"{path}, line {number}: expected a JSON object with its step, not {line[:60]}")
        found.append(record)
    return found


def _record(line: str) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none, or has no step."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def _curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and value is not None:
                found.setdefault(name, []).append((line["step"], value))
    return found


def _terms(line: dict[str, Any]) -> tuple[str, ...]:
    """The names that sum to the loss: they come first among those of the task, behind the engine's own."""
    own = list(line)[list(line).index("bad_steps") + 1 :] if "bad_steps" in line else []
    total = 0.0
    for number, name in enumerate(own, start=1):
        total += line[name] or 0.0
        if abs(total - line["loss"]) <= 1e-4 * abs(line["loss"]):
            return tuple(own[:number]) if number > 1 else ()
    return ()
