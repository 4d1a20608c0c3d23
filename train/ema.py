"""Exponential moving average of the trainable weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EmaConfig:
    """Average of the weights over the steps."""

    decay: float = 0.999
    """Share of the average that stays in each step; 0 keeps no average.
    Early steps use min(decay, (1 + step) / (10 + step)), so that the first averages move."""

    def __post_init__(self) -> None:
        """Refuse a decay outside of [0, 1)."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}, expected 0 (off) or a value below 1, 0.999 say")


class Ema:
    """Averages of the parameters of `module` that need gradients; everything else in it is taken as it is."""

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.enabled = config.decay > 0
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad] if self.enabled else []
        alike = list(module.named_parameters(remove_duplicate=False)) if self.enabled else []
        self._names = [[name for name, other in alike if other is parameter] for _, parameter in named]
        self._parameters: list[Tensor] = [parameter for _, parameter in named]
        self._averages = [parameter.detach().clone() for _, parameter in named]

    def decay_at(self, step: int) -> float:
        """Decay of the update after optimizer step `step` (from 0)."""
        return min(self.config.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the present weights."""
        if self.enabled:
            torch._foreach_lerp_(self._averages, self._parameters, 1 - self.decay_at(step))

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """Put the averages into `module` (the one that was given at the start) and the weights back afterwards."""
        inside = {id(parameter) for parameter in module.parameters()}
        assert all(id(p) in inside for p in self._parameters), "the averages belong to another module"
        self._swap()
        try:
            yield module
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._parameters):
            weights = parameter.data
            parameter.data, self._averages[i] = self._averages[i], weights

    def state(self) -> dict[str, Tensor]:
        """Averages by parameter name; tied parameters have one average under several names."""
        pairs = zip(self._names, self._averages, strict=True)
        return {name: average for names, average in pairs for name in names}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take averages by parameter name; other entries of a full state dict are ignored.

        Raises:
            ValueError: an average is missing or has another shape.
        """
        for name, average in self.state().items():
            if name not in state or state[name].shape != average.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"EMA of {name}: expected shape {tuple(average.shape)}, the checkpoint has {found}")
            average.copy_(state[name])
