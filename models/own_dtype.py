"""Frozen networks in the dtype of their weights: outside autocast, the gradient scaled where float16 would lose it.

Autocast is for the network that is trained. A frozen one computes in its own dtype, and what crosses it to its input
is float32 on both sides.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .precision import without_autocast
from .text import Prompt

LARGEST_GRADIENT = 64.0
"""Largest element of a sample's scaled gradient at the network's output: a thousandth of what float16 holds, while
elements a million times as small are still normal numbers."""


class GradientScale:
    """A factor for each sample of a batch by which gradients are larger within a float16 network than outside.

    The gradients that arrive at the network's outputs choose the factors, powers of two; nothing waits for the device.
    Samples do not see each other in these networks, so each has a factor of its own.

    Args:
        dtype: dtype of the network; of another than float16 nothing is scaled.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._needed = dtype == torch.float16
        self._factors: Tensor | None = None  # [B], from the backward pass on

    def enter(self, inputs: Tensor) -> Tensor:
        """Take an input [B, ...] of the network in float32, at which gradients get their true size back."""
        return _Scaled.apply(self._undo, inputs)[0] if self._needed and inputs.requires_grad else inputs

    def leave(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Give all outputs [B, ...] of the network in float32, at which gradients are scaled."""
        scaled = self._needed and any(output.requires_grad for output in outputs)
        return _Scaled.apply(self._scale, *outputs) if scaled else outputs

    def _scale(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest = torch.stack([gradient.flatten(1).abs().amax(1) for gradient in gradients]).amax(0)
        largest = largest.clamp_min(torch.finfo(torch.float32).tiny)
        self._factors = torch.exp2(torch.log2(LARGEST_GRADIENT / largest).floor().clamp_max(100.0))
        return tuple(gradient * _over(self._factors, gradient) for gradient in gradients)

    def _undo(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self._factors is not None, "a gradient has reached an input without crossing the outputs"
        return tuple(gradient / _over(self._factors, gradient) for gradient in gradients)


class _Scaled(torch.autograd.Function):
    """The tensors themselves, with a function applied to their gradients, all at once."""

    @staticmethod
    def forward(ctx: Any, change: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], *tensors: Tensor) -> Any:
        ctx.change = change
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *ctx.change(gradients)


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
        scale: Scale of the gradients where more enters or leaves a float16 network; the caller then lets the output
            leave together with the rest. By default one of this call's own.
    """
    own = scale or GradientScale(dtype)
    inputs = own.enter(inputs).to(dtype)
    prompt = None if prompt is None else prompt.map(own.enter).to(dtype=dtype)
    with without_autocast(inputs.device):
        output = network(inputs, prompt).float()
    return output if scale else own.leave(output)[0]


def _over(factors: Tensor, like: Tensor) -> Tensor:
    """Factors [B] in a shape that broadcasts over `like` [B, ...]."""
    return factors.view(-1, *[1] * (like.ndim - 1))
