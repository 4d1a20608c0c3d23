"""What devices know of precision: Apple's MPS has no float64, and not every device knows autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices on which a float64 tensor cannot be made."""


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def exact(x: Tensor) -> Tensor:
    """`x` in float64: on its device, or on the CPU where the device has none."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which tensors keep their dtype, also on a device that knows no autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def recast(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module weights of another dtype; also one without data, whose weights Module.to cannot exchange."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(weight.detach().to(dtype), weight.requires_grad))
