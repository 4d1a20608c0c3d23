"""Time and memory of blocks of training steps."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from train.run.clock import peak_memory


@dataclass
class Timing:
    """Seconds of each block of steps, and the highest memory in bytes."""

    seconds: list[float]
    peak_bytes: int = 0

    def measure(self, block: Callable[[], None], device: torch.device) -> None:
        """Run a block of steps to its end on the device."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        block()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds.append(time.perf_counter() - start)
        self.peak_bytes = max(self.peak_bytes, peak_memory(device))


def advance(engine_steps: Iterator[Any], count: int) -> None:
    """Take `count` steps of a running training."""
    for _ in range(count):
        next(engine_steps)


def loss_difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest share by which the losses of a step differ."""
    return max(abs(mine / theirs - 1) for mine, theirs in zip(losses, expected, strict=True))
