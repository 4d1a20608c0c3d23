"""Time of a training run: seconds over all its starts, samples a second, share of the time spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from train.checkpoint import Progress
from train.launch import Launch


class Clock:
    """Runs from its making; `progress` holds the seconds of earlier starts."""

    def __init__(self, progress: Progress) -> None:
        self._start = time.perf_counter() - progress.seconds
        self._interval_start = time.perf_counter()
        self._interval_samples = progress.samples
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def stamp(self, progress: Progress, launch: Launch) -> None:
        """Write the first rank's seconds into `progress`, so that all ranks stop together. All ranks must call."""
        progress.seconds = launch.from_main(time.perf_counter() - self._start)

    def interval(self, progress: Progress, launch: Launch) -> dict[str, float]:
        """Timing of the steps since the last call, for timing.jsonl."""
        now = time.perf_counter()
        seconds = now - self._interval_start
        timing = {
            "seconds": round(progress.seconds, 3),
            "samples_per_sec": round((progress.samples - self._interval_samples) / seconds, 3),
            "data_wait_share": round(self._waited / seconds, 4),
        }
        if launch.device.type == "cuda":
            timing["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(launch.device) / 1e9, 3)
        self._interval_start, self._interval_samples, self._waited = now, progress.samples, 0.0
        return timing
