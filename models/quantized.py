"""Linear layers of a frozen network in 8 bits: half the memory of 16, and gradients cross them to their input.

The weights alone are quantised, each output's with a scale of its own. A layer restores them to the dtype in which it
computes, and does so again in the backward pass, so that autograd keeps nothing but the 8 bits that are there already.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .options import Quantization

_LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is int8, or float8 (four bits of exponent, three of mantissa: e4m3).

    Attributes:
        weight: [out, in] int8; of fp8 these are its bits, as peft and the collectives of processes know integers.
        scale: [out, 1] float32, by which the weight is multiplied.
        bias: that of the layer before, in its own dtype, or None.

    Args:
        linear: the layer whose weight is rounded; it is left as it is.
        kind: int8 or fp8.
    """

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        assert not linear.weight.requires_grad, "a layer that is trained cannot lie in 8 bits"
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True) / _LARGEST[kind]).clamp_min(torch.finfo(torch.float32).tiny)
        exact = weight / scale
        bits = exact.round().to(torch.int8) if kind == "int8" else exact.to(torch.float8_e4m3fn).view(torch.int8)
        # Parameters, as a checkpoint holds the buffers of what is trained and not its frozen parameters.
        self.weight = nn.Parameter(bits, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output [..., out] of `input` [..., in], in autocast's dtype or else that of the input."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(input.to(dtype), self.weight, self.scale, bias, self.kind)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that the 8 bits stand for."""
        return _restored(self.weight, self.scale, self.kind, dtype)

    def extra_repr(self) -> str:
        """What torch prints of a layer."""
        return f"{super().extra_repr()}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """The layer's product, differentiable by its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, scale: Tensor, bias: Tensor | None, kind: Quantization) -> Tensor:
        ctx.save_for_backward(bits, scale)
        ctx.kind = kind
        return F.linear(x, _restored(bits, scale, kind, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        bits, scale = ctx.saved_tensors
        return gradient @ _restored(bits, scale, ctx.kind, gradient.dtype), None, None, None, None


def _restored(bits: Tensor, scale: Tensor, kind: Quantization, dtype: torch.dtype) -> Tensor:
    values = bits.view(torch.float8_e4m3fn) if kind == "fp8" else bits
    return values.to(dtype).mul_(scale)  # multiplied in float32, whatever the dtype


def quantize(network: nn.Module, kind: Quantization) -> None:
    """Put the linear layers of a frozen network into 8 bits, in place; all other weights stay as they are."""
    for name in [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]:
        layer = network.get_submodule(name)  # by name, so that each weight is let go before the next
        if not isinstance(layer, QuantizedLinear):
            network.set_submodule(name, QuantizedLinear(cast(nn.Linear, layer), kind).train(layer.training))


def dequantize(network: nn.Module, dtype: torch.dtype) -> None:
    """Make stock layers of `dtype` again, with the values that the 8 bits stand for, in place."""
    for name in [name for name, layer in network.named_modules() if isinstance(layer, QuantizedLinear)]:
        layer = cast(QuantizedLinear, network.get_submodule(name))
        stock = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        stock.weight = nn.Parameter(layer.restored(dtype), requires_grad=False)
        stock.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)
        network.set_submodule(name, stock.train(layer.training))
