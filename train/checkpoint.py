"""Checkpoints of a run: a folder each, written whole or not at all and checked before it is read; few are kept.

checkpoints/step-000100/model.safetensors ema.safetensors optimizer.pt progress.json checksums.json
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

_CHECKSUMS = "checksums.json"


@dataclass
class Progress:
    """How far a run is; all of its state beside weights, averages and optimizer."""

    step: int = 0
    """Optimizer steps done, those that were left out included."""
    samples: int = 0
    """Samples consumed: the whole state of the loader."""
    seconds: float = 0.0
    """Seconds of training over all starts."""
    bad_steps: int = 0
    """Steps that were left out because their gradient was not finite."""
    bad_in_row: int = 0
    """How many of them are the latest."""
    meters: dict[str, list] = field(default_factory=dict)
    """Sums of a log interval that the checkpoint falls into."""


@dataclass
class Checkpoint:
    """What one checkpoint holds, on the CPU."""

    progress: Progress
    model: dict[str, Tensor]
    """Full state dict of the trainable module."""
    ema: dict[str, Tensor] | None
    """The same with averaged weights; None where no average is kept."""
    optimizer: dict
    """State dict of the optimizer."""


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: RUN/checkpoints, made when first needed.
        keep: How many of the newest to keep.
        keep_every: Those of every so many steps stay for good; 0 keeps none of them.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every

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

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint under a temporary name, flush it to disk, rename it; then drop old ones. One rank only."""
        final = self.path(checkpoint.progress.step)
        if final.exists():
            if damage(final) is None:
                return final
            shutil.rmtree(final)
        partial = self.folder / f".partial-{final.name}"
        partial.mkdir(parents=True)
        save_file(_for_disk(checkpoint.model), partial / "model.safetensors")
        if checkpoint.ema is not None:
            save_file(_for_disk(checkpoint.ema), partial / "ema.safetensors")
        torch.save(checkpoint.optimizer, partial / "optimizer.pt")
        (partial / "progress.json").write_text(json.dumps(asdict(checkpoint.progress), indent=1) + "\n")
        (partial / _CHECKSUMS).write_text(json.dumps(_checksums(partial), indent=1) + "\n")
        for path in partial.iterdir():
            flush_to_disk(path)
        flush_to_disk(partial)
        partial.rename(final)
        flush_to_disk(self.folder)
        for step in self.steps()[: -self.keep]:
            if self.keep_every and step % self.keep_every == 0:
                continue
            # Renamed first, so that a checkpoint that is half deleted is never taken for one.
            shutil.rmtree(self.path(step).rename(self.folder / f".partial-old-{step:06d}"))
        return final

    def remove_partial(self) -> None:
        """Remove what a killed save left behind. One rank only."""
        for path in self.folder.glob(".partial-*"):
            log.info("removing %s, left by a save that was cut off", path.name)
            shutil.rmtree(path)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None if they are those that were written."""
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


def read_progress(folder: Path) -> Progress:
    """Progress of a checkpoint folder.

    Raises:
        ValueError: the file holds other fields than this version of the code writes.
    """
    values = json.loads((folder / "progress.json").read_text())
    expected = {f.name for f in fields(Progress)}
    if set(values) != expected:
        raise ValueError(f"{folder}/progress.json holds {sorted(values)}, expected {sorted(expected)}")
    return Progress(**values)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, one that `Checkpoints.newest` has found whole, to the CPU."""
    ema = folder / "ema.safetensors"
    return Checkpoint(
        progress=read_progress(folder),
        model=load_file(folder / "model.safetensors"),
        ema=load_file(ema) if ema.is_file() else None,
        optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
    )


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _for_disk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and each with memory of its own: safetensors refuses tied weights."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found
