"""A profile of chosen steps: RUN/profile/ gets a trace for https://ui.perfetto.dev, and on CUDA a memory snapshot.

The snapshot opens at https://pytorch.org/memory_viz.
"""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from train.run.launch import Launch

log = logging.getLogger(__name__)

_MAX_ALLOCATIONS = 1_000_000


class Profiling:
    """Profiles the steps from the first to the last of `steps` on the first rank; none where it is empty.

    Args:
        folder: Folder of the run.
        steps: (first, last), numbers of optimizer steps from 0.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...], launch: Launch) -> None:
        self.folder = folder / "profile"
        self.steps = steps if launch.is_main else ()
        self.device = launch.device
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what there is of a profile that the run's end has cut off."""
        if self._profile:
            self._write()

    def before(self, step: int) -> None:
        """A step begins: start with the first, and write after the last."""
        if self._profile and step > self.steps[-1]:
            self._write()
        elif self.steps and step == self.steps[0]:
            self._start()

    def _start(self) -> None:
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.memory._record_memory_history(max_entries=_MAX_ALLOCATIONS)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def _write(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        self.folder.mkdir(exist_ok=True)
        name = f"steps-{self.steps[0]:06d}-{self.steps[-1]:06d}"
        self._profile.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self.folder / f"{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        log.info("profile of steps %d to %d in %s", *self.steps, self.folder)
        self._profile, self.steps = None, ()
