"""Exponential moving average of the trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from train.run.weights import Weights

_CHUNK = 2**26
"""Elements that are exchanged at a time, so that an exchange takes no memory to speak of."""


@dataclass(frozen=True)
class EmaConfig:
    """Average of the weights over the steps."""

    decay: float = 0.999
    """Share of the average that stays in each step; 0 keeps no average.
    Early steps use min(decay, (1 + step) / (10 + step)), so that the first averages move."""
    every: int = 1
    """Steps between two updates, which then count as many at once."""
    device: Literal["model", "cpu"] = "model"
    """Where the average lies. On the CPU it takes nothing of the GPU, but an update waits for 4 bytes a weight
    to cross over: set `every` to 10 or so."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}, expected 0 (off) or a value below 1, 0.999 say")
        if self.every < 1:
            raise ValueError(f"ema.every is {self.every}, expected at least 1")


class Ema:
    """Averages of this process's masters; buffers and frozen weights are taken as they are."""

    def __init__(self, weights: Weights, config: EmaConfig) -> None:
        self.config, self.weights = config, weights
        self.enabled = config.decay > 0
        self._masters: list[Tensor] = [master.detach() for master in weights.masters] if self.enabled else []
        on_cpu = config.device == "cpu"
        self._averages = [m.to("cpu" if on_cpu else m.device, copy=True) for m in self._masters]

    def decay_at(self, step: int) -> float:
        """Decay of the update after optimizer step `step` (from 0)."""
        return min(self.config.decay, (1 + step) / (10 + step)) ** self.config.every

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the present weights, if it is time."""
        if self.enabled and (step + 1) % self.config.every == 0:
            self._move(1 - self.decay_at(step))

    def _move(self, share: float) -> None:
        if self.config.device == "model":
            torch._foreach_lerp_(self._averages, self._masters, share)
            return
        for average, master in zip(self._averages, self._masters, strict=True):  # one copy on the host at a time
            average.lerp_(master.to(average.device), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the place of the weights, and the weights back afterwards. All ranks must enter."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        if not self.enabled:
            return
        for master, average in zip(self._masters, self._averages, strict=True):
            for weight, mean in zip(_pieces(master), _pieces(average), strict=True):
                kept = mean.clone()
                mean.copy_(weight)
                weight.copy_(kept)
        self.weights.publish()

    @torch.no_grad()
    def take(self) -> None:
        """Start anew from the present weights."""
        for master, average in zip(self._masters, self._averages, strict=True):
            average.copy_(master)


def _pieces(value: Tensor) -> tuple[Tensor, ...]:
    """Views of at most about _CHUNK elements."""
    if value.numel() <= _CHUNK:
        return (value,)
    return value.split(max(1, _CHUNK * len(value) // value.numel()))
