"""Exponential moving average of the trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from train.run.config import EmaConfig
from train.run.weights import Weights

_CHUNK = 2**26
"""Elements that are exchanged at a time, so that an exchange takes no memory to speak of."""


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
        self.weights.copy_to_model()

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
