"""Time of a training run: seconds over all its starts, samples a second, times of single steps, waiting for data."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch

from train.run.checkpoint import RunProgress
from train.run.launch import Launch

PERCENTILES = (50, 90, 99)


class RunClock:
    """Runs from its making; `progress` holds the seconds of earlier starts."""

    def __init__(self, progress: RunProgress, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter() - progress.seconds
        self._interval_start = time.perf_counter()
        self._interval_samples = progress.samples
        self._waited = 0.0
        self._ends: list[list[float | torch.cuda.Event]] = [[self._now()]]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def tick(self) -> None:
        """A step's work is queued; on CUDA its end is marked there and read later, so that nothing waits."""
        self._ends[-1].append(self._now())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside, of a preview or a checkpoint, out of the interval's rates and of the single steps."""
        start = time.perf_counter()
        yield
        self._interval_start += time.perf_counter() - start
        self._ends.append([self._now()])

    def is_over(self, limit_min: float | None) -> bool:
        """Whether a limit, in minutes over all starts, has passed."""
        return limit_min is not None and time.perf_counter() - self._start >= 60 * limit_min

    def stamp(self, progress: RunProgress, launch: Launch) -> None:
        """Write the first rank's seconds into `progress`, so that all ranks stop together. All ranks must call."""
        progress.seconds = launch.from_main(time.perf_counter() - self._start)

    def interval(self, progress: RunProgress) -> dict[str, float]:
        """Timing of the steps since the last call, for timing.jsonl; peak memory is the process's so far."""
        now = time.perf_counter()
        seconds = now - self._interval_start
        steps = _percentiles([second for ends in self._ends for second in _seconds(ends)])
        timing = {
            "seconds": round(progress.seconds, 3),
            "samples_per_sec": round((progress.samples - self._interval_samples) / seconds, 3),
            "data_wait_share": round(self._waited / seconds, 4),
            "peak_memory_gb": round(peak_memory(self._device) / 1e9, 3),
            **{f"step_sec_p{percent}": round(value, 4) for percent, value in steps.items()},
        }
        self._interval_start, self._interval_samples, self._waited = now, progress.samples, 0.0
        self._ends = [[self._now()]]
        return timing

    def _now(self) -> "float | torch.cuda.Event":
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: allocated on CUDA, else resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _seconds(ends: list) -> list[float]:
    """Seconds between one end of a step and the next."""
    if isinstance(ends[0], float):
        return list(np.diff(ends))
    ends[-1].synchronize()
    return [one.elapsed_time(other) / 1000 for one, other in pairwise(ends)]


def _percentiles(seconds: list[float]) -> dict[int, float]:
    return {p: float(np.percentile(seconds, p)) for p in PERCENTILES} if seconds else {}
