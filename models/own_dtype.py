"""Frozen networks in the dtype of their weights: outside autocast, the gradient scaled where float16 would lose it.

Autocast is for the network that is trained. A frozen one computes in its own dtype, and what crosses it to its input
is float32 on both sides.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .text import Prompt

LARGEST_GRADIENT = 64.0
"""Largest element of a sample's scaled gradient at the network's output: a thousandth of what float16 holds, while
elements a million times as small are still normal numbers."""


class GradientScale:
    """A factor for each sample of a batch by which gradients are larger within a float16 network than outside.

    The first gradient that arrives at one of the network's outputs chooses the factors, powers of two; nothing waits
    for the device. Samples do not see each other in these networks, so each has a factor of its own.

    Args:
        dtype: dtype of the network; of another than float16 nothing is scaled.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._needed = dtype == torch.float16
        self._factors: Tensor | None = None  # [B], from the backward pass on

    def enter(self, inputs: Tensor) -> Tensor:
        """Take an input [B, ...] of the network in float32, at which gradients get their true size back."""
        return _Scaled.apply(inputs, self._undo) if self._needed and inputs.requires_grad else inputs

    def leave(self, output: Tensor) -> Tensor:
        """Give an output [B, ...] of the network in float32, at which gradients are scaled."""
        return _Scaled.apply(output, self._scale) if self._needed and output.requires_grad else output

    def _scale(self, gradient: Tensor) -> Tensor:
        if self._factors is None:
            largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
            self._factors = torch.exp2(torch.log2(LARGEST_GRADIENT / largest).floor().clamp_max(100.0))
        return gradient * _over(self._factors, gradient)

    def _undo(self, gradient: Tensor) -> Tensor:
        assert self._factors is not None, "a gradient has reached the input without crossing an output"
        return gradient / _over(self._factors, gradient)


class _Scaled(torch.autograd.Function):
    """The tensor itself, with a function applied to its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.change(gradients[0]), None


def in_own_dtype(
    network: Callable[[Tensor, Prompt | None], Tensor],
    dtype: torch.dtype,
    inputs: Tensor,
    prompt: Prompt | None = None,
    scale: GradientScale | None = None,
) -> Tensor:
    """Output of a frozen network in float32, computed in `dtype` whatever autocast says; differentiable.

    Args:
        network: The call of the network with its inputs in `dtype`.
        dtype: Dtype of its weights.
        inputs: Tensor [B, ...] that goes in.
        prompt: Prompt that goes in.
        scale: Scale of the gradients of a float16 network that other tensors enter or leave too; by default one of this
            call's own.
    """
    scale = scale or GradientScale(dtype)
    inputs = scale.enter(inputs).to(dtype)
    prompt = None if prompt is None else prompt.map(scale.enter).to(dtype=dtype)
    with torch.autocast(inputs.device.type, enabled=False):
        return scale.leave(network(inputs, prompt).float())


def _over(factors: Tensor, like: Tensor) -> Tensor:
    """Factors [B] in a shape that broadcasts over `like` [B, ...]."""
    return factors.view(-1, *[1] * (like.ndim - 1))
