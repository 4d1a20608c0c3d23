"""Checkpoints of a run: a folder each, written whole or not at all and checked before it is read; few are kept.

checkpoints/step-000100/model.safetensors ema.safetensors optimizer.pt progress.json checksums.json
and, of a task with a second trained part, critic.safetensors critic_optimizer.pt

One of a step at which held-out samples were looked at has their figures too, heldout.json, by which the best is known.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.jobs.files import flush_to_disk, open_as_usual
from train.run.config import FitConfig

log = logging.getLogger(__name__)

_CHECKSUMS, _PROGRESS, _HELD_OUT = "checksums.json", "progress.json", "heldout.json"


@dataclass
class RunProgress:
    """State of a run beside weights, averages and optimizer: how far it is."""

    step: int = 0
    """Optimizer steps done, those that were left out included."""
    samples: int = 0
    """Samples consumed: the whole state of the loader."""
    seconds: float = 0.0
    """Seconds of training over all starts."""
    bad_steps: int = 0
    """Steps that were left out because their gradient was not finite."""
    bad_in_row: int = 0
    """Number of the latest steps among them, in a row."""
    meters: dict[str, list] = field(default_factory=dict)
    """Sums of a log interval that the checkpoint falls into."""


MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.pt"
CRITIC, CRITIC_OPTIMIZER = "critic.safetensors", "critic_optimizer.pt"

Parts = Mapping[str, Callable[[], dict[str, Any]]]
"""Makers of the content of each file: of MODEL, EMA and CRITIC tensors by name (those that are trained, and buffers),
of OPTIMIZER and CRITIC_OPTIMIZER an optimizer's state dict."""


@dataclass(frozen=True)
class Judgement:
    """Figures of held-out samples at a step.

    Args:
        samples: What decides which samples they are of, as JSON. Figures of others are not compared with them.
        figures: Finite values by name.
    """

    samples: dict[str, Any]
    figures: dict[str, float]


@dataclass(frozen=True)
class Ranking:
    """What makes one checkpoint better than another.

    Args:
        figure: Name of the figure of held-out samples.
        highest: Whether more is better.
        samples: Samples of the judgements that compete.
    """

    figure: str
    highest: bool
    samples: dict[str, Any]

    @classmethod
    def of(cls, config: FitConfig) -> "Ranking | None":
        """What a run's `log.best` says; None where it says nothing."""
        if config.log.best is None:
            return None
        return cls(config.log.best, config.log.best_is_highest, heldout_samples(config))

    def value(self, judgement: Judgement) -> float | None:
        """The figure in a judgement, None where it is not there or of other samples."""
        return judgement.figures.get(self.figure) if judgement.samples == self.samples else None

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value beats another one."""
        return value > other if self.highest else value < other


def heldout_samples(config: FitConfig) -> dict[str, Any]:
    """What decides which held-out samples a run looks at."""
    data = config.data
    return {"validation": data.validation, "probe": data.probe, "count": config.log.validation_samples}


@dataclass(frozen=True)
class Ranked:
    """The checkpoint of a step, by the value of its figure."""

    step: int
    value: float


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: RUN/checkpoints, made when first needed.
        keep: Number of the newest to keep.
        keep_every: Steps between two checkpoints that stay for good; 0 for none.
        ranking: What makes the best one, which stays whatever its age; None for none.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, ranking: Ranking | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every
        self.ranking = ranking

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:06d}"

    def newest(self) -> Path | None:
        """Folder of the newest checkpoint that is whole, None where there is none at all; reads every byte of it.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        complaints = []
        for step in reversed(self.steps()):
            problem = damage(self.path(step))
            if problem is None:
                return self.path(step)
            complaints.append(f"{self.path(step).name}: {problem}")
            log.warning("checkpoint %s; taking the one before it", complaints[-1])
        if complaints:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole ({'; '.join(complaints)}); "
                "bring one back, or move all of them away to start anew"
            )
        return None

    def best(self) -> Ranked | None:
        """The best checkpoint, the earliest of equal ones; None where there is no ranking, or none with its figure."""
        found: Ranked | None = None
        if self.ranking is not None:
            for step in self.steps():
                judgement = read_judgement(self.path(step))
                value = None if judgement is None else self.ranking.value(judgement)
                if value is not None and (found is None or self.ranking.is_better(value, found.value)):
                    found = Ranked(step, value)
        return found

    def would_be_best(self, judgement: Judgement) -> bool:
        """Whether a checkpoint with this judgement would be better than all there are."""
        if self.ranking is None or (value := self.ranking.value(judgement)) is None:
            return False
        best = self.best()
        return best is None or self.ranking.is_better(value, best.value)

    def save(
        self, progress: RunProgress, parts: Parts, first_rank: bool = True, judgement: Judgement | None = None
    ) -> None:
        """Write a checkpoint under a temporary name, flush it to disk, rename it; then drop old ones.

        One part after the other is made and written, so that the memory of one is enough.

        Args:
            first_rank: Only the first one writes; the others call too where the making of a part needs them.
            judgement: Figures of held-out samples at this very step. They lie in the checkpoint, so that the best one
                follows from those that there are.

        Raises:
            OSError: it cannot be written; the checkpoints before it stay.
        """
        final = self.path(progress.step)
        partial = self.folder / f".partial-{final.name}"
        if first_rank:
            with _explained(final):
                partial.mkdir(parents=True)
                (partial / _PROGRESS).write_text(json.dumps(asdict(progress), indent=1) + "\n")
                if judgement is not None:
                    (partial / _HELD_OUT).write_text(json.dumps(asdict(judgement), indent=1) + "\n")
        for name, make in parts.items():
            content = make()
            if first_rank:
                with _explained(final):
                    _write(partial / name, content)
            del content
        if not first_rank:
            return
        with _explained(final):
            (partial / _CHECKSUMS).write_text(json.dumps(_checksums(partial), indent=1) + "\n")
            open_as_usual(partial)
            for path in partial.iterdir():
                flush_to_disk(path)
            flush_to_disk(partial)
        shutil.rmtree(final, ignore_errors=True)  # one that was found damaged
        partial.rename(final)
        flush_to_disk(self.folder)
        best = self.best()
        for step in self.steps()[: -self.keep]:
            if (self.keep_every and step % self.keep_every == 0) or (best is not None and step == best.step):
                continue
            # Renamed first, so that a checkpoint that is half deleted is never taken for one.
            shutil.rmtree(self.path(step).rename(self.folder / f".partial-old-{step:06d}"))

    def remove_partial(self) -> None:
        """Remove what a killed save left behind. One rank only."""
        for path in self.folder.glob(".partial-*"):
            log.info("removing %s, left by a save that was cut off", path.name)
            shutil.rmtree(path)


def damage(folder: Path) -> str | None:
    """Damage of a checkpoint's files in words, or None if they are those that were written."""
    try:
        expected = json.loads((folder / _CHECKSUMS).read_text())
        found = _checksums(folder)
    except (OSError, ValueError) as error:
        return f"{_CHECKSUMS} or another file cannot be read ({error})"
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected.get(name):
            return f"{name} is not what was written"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the list itself, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != _CHECKSUMS:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_progress(folder: Path) -> RunProgress:
    """Read how far the run of a checkpoint folder was.

    Raises:
        ValueError: the file holds other fields than this version of the code writes.
    """
    values = json.loads((folder / _PROGRESS).read_text())
    expected = {f.name for f in fields(RunProgress)}
    if set(values) != expected:
        raise ValueError(f"{folder / _PROGRESS} holds {sorted(values)}, expected {sorted(expected)}")
    return RunProgress(**values)


def read_judgement(folder: Path) -> Judgement | None:
    """Read the figures of held-out samples in a checkpoint folder; None where there are none that can be read."""
    path = folder / _HELD_OUT
    try:
        return Judgement(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read (%s): that checkpoint is not compared with others", path, error)
        return None


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """A part of a checkpoint that `Checkpoints.newest` has found whole, on the CPU.

    The file is mapped: the processes of a machine share its memory, and only what is read is there.

    Raises:
        ValueError: the checkpoint has no such part.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}: the run that wrote it kept no such state")
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return load_file(path)


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    """Let errors of writing in the block say what they mean for the checkpoint `final`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own for a full disk
        raise OSError(
            f"{final} cannot be written ({error}): free space or raise the quota if the disk is full, "
            "then give the same command again; the checkpoints before it are whole"
        ) from error


def _write(path: Path, content: dict[str, Any]) -> None:
    if path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file(_for_disk(content), path)


def _for_disk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, each with memory of its own: safetensors refuses tied weights."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found
