"""The widest floating type of a device: Apple's MPS has no float64."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices on which a float64 tensor cannot be made."""


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def exact(x: Tensor) -> Tensor:
    """`x` in float64: on its device, or on the CPU where the device has none."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()
