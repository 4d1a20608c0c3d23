"""Precision of the forward pass, and the scale of the loss without which float16 loses small gradients."""

from typing import Any

import torch
from torch import Tensor

from train.run.config import Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype in which autocast computes, by run.mixed_precision."""


def autocast(device: str, precision: Precision) -> torch.autocast:
    """The precision of a forward pass on a kind of device; "no" leaves every tensor its dtype."""
    return torch.autocast(device, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST)


class LossScale:
    """Factor of the loss, halved after a gradient that overflows and doubled after 2,000 steps without one.

    Micikevicius et al. 2018, section 3.2. It lies on the device, where nothing waits for it. Without fp16 it is one for
    good.

    Args:
        device: Device of the loss.
        enabled: Whether the run's precision is fp16.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._one = torch.ones((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """Scale a loss before its backward pass."""
        return self._scaler.scale(loss)

    def current(self) -> Tensor:
        """The factor, a scalar on the device."""
        return self._scaler.scale(self._one).clone()

    def unscale(self, optimizer: Any) -> None:
        """Give the gradients of an optimizer's parameters their true size, and move the factor for the next step."""
        if self.enabled:
            self._scaler.unscale_(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it
            self._scaler.update()

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it; empty without fp16."""
        return self._scaler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Take up a `state`; an empty one, of a run that had no scale, starts with a new one."""
        if self.enabled and state:
            self._scaler.load_state_dict(state)
