"""Checkpoints of a run: a folder each, written whole or not at all, the newest few kept.

checkpoints/step-000100/model.safetensors ema.safetensors optimizer.pt progress.json
"""

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
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:06d}"

    def newest(self) -> Path | None:
        """Folder of the newest checkpoint, None without one."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint under a temporary name, flush it to disk, rename it; then drop old ones. One rank only."""
        final = self.path(checkpoint.progress.step)
        if final.exists():
            return final
        partial = self.folder / f".partial-{final.name}"
        partial.mkdir(parents=True)
        save_file(_for_disk(checkpoint.model), partial / "model.safetensors")
        if checkpoint.ema is not None:
            save_file(_for_disk(checkpoint.ema), partial / "ema.safetensors")
        torch.save(checkpoint.optimizer, partial / "optimizer.pt")
        (partial / "progress.json").write_text(json.dumps(asdict(checkpoint.progress), indent=1) + "\n")
        for path in partial.iterdir():
            flush_to_disk(path)
        flush_to_disk(partial)
        partial.rename(final)
        flush_to_disk(self.folder)
        for step in self.steps()[: -self.keep]:
            # Renamed first, so that a checkpoint that is half deleted is never taken for one.
            shutil.rmtree(self.path(step).rename(self.folder / f".partial-old-{step:06d}"))
        return final

    def remove_partial(self) -> None:
        """Remove what a killed save left behind. One rank only."""
        for path in self.folder.glob(".partial-*"):
            log.info("removing %s, left by a save that was cut off", path.name)
            shutil.rmtree(path)


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
    """Read a checkpoint to the CPU.

    Raises:
        ValueError: a file is missing.
    """
    for name in ("model.safetensors", "optimizer.pt", "progress.json"):
        if not (folder / name).is_file():
            raise ValueError(f"checkpoint {folder} has no {name}; remove the folder to resume from an older one")
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
