"""AdamW, the learning rate as a pure function of the step, steps that are left out, precision and the loss's scale."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from train.run.config import OptimConfig, Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype in which autocast computes, by run.mixed_precision."""


def lr_at(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) in a run of `total_steps`: warm-up, then decay."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.decay == "constant":
        return optim.lr
    done = min(1.0, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
    left = 1 - done if optim.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return optim.lr * (optim.final_lr_share + (1 - optim.final_lr_share) * left)


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters of `module` that need gradients.

    Raises:
        ValueError: nothing is trainable, a trainable parameter is not fp32, or bitsandbytes is wanted and missing.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("task.trainable has no parameter with requires_grad: nothing would be trained")
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"trainable parameter {name} is {parameter.dtype}; keep trainable weights in torch.float32 "
                "and set run.mixed_precision for a cheaper forward pass"
            )
    parameters = [parameter for _, parameter in named]
    options: dict[str, Any] = {
        "lr": optim.lr,
        "betas": optim.betas,
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    if optim.kind == "adamw8bit":
        return _adamw_8bit()(parameters, **options)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters) if optim.fused is None else optim.fused
    return torch.optim.AdamW(parameters, fused=fused, **options)


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(f"optim.kind adamw8bit needs bitsandbytes ({error}): pip install bitsandbytes") from error
    return AdamW8bit


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Apply the optimizer's step only if `good` (bool scalar on the device).

    Fused AdamW looks at its `found_inf` flag on the device (the way torch's GradScaler uses it), so the host does not
    wait; another optimizer, the 8-bit one too, has no such flag and costs one transfer a step.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if inner.defaults.get("fused"):
        setattr(inner, "found_inf", (~good).float())  # noqa: B010 (torch reads it and does not declare it)
        optimizer.step()
    elif bool(good):
        optimizer.step()


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
