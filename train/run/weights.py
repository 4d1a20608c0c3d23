"""The trained weights as the launch lays them out: whole on every process, or in pieces under ZeRO (train/run/zero.py).

A checkpoint always holds them whole and by name, so that any launch takes up what any other has saved.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from train.run.launch import Launch
from train.run.optim import LossScale, step_if

LOSS_SCALE = "loss_scale"
"""Name of the loss scale's state beside the optimizer's own."""


class Weights(Protocol):
    """Trained weights and their optimizer as the engine needs them, however they lie."""

    masters: list[Tensor]
    """Share of this process in the trained weights in float32, those that the optimizer moves."""
    loss_scale: LossScale
    """Scale of the loss under fp16."""

    def backward(self, launch: Launch, loss: Tensor) -> None:
        """Add the gradient of a micro batch's loss to those before it."""
        ...

    def step(self, launch: Launch, grad_clip: float) -> Tensor:
        """Clip the gradient, move the weights unless it is not finite, forget it; its norm, a scalar on the device."""
        ...

    def copy_to_model(self) -> None:
        """Let the module compute with the masters, after they were written to. All ranks must call."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The whole trained state by name, masters for weights; only the first rank's is complete. All must call."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up a `state`, into masters and module. All ranks must call.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs.
        """
        ...

    def optimizer_state(self) -> dict[str, Any]:
        """The state of torch's AdamW over the whole parameters, and the loss scale's. Like `state`."""
        ...

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take up an `optimizer_state`. All ranks must call."""
        ...


class ReplicatedWeights:
    """Weights that every process holds whole: one process, or DDP.

    Args:
        module: The task's trainable module, without a wrapper.
        optimizer: Optimizer of the trained parameters, as accelerate has prepared it.
        loss_scale: Scale of the loss, as the run's precision needs it.
    """

    def __init__(self, module: nn.Module, optimizer: Any, loss_scale: LossScale) -> None:
        self.module, self.optimizer, self.loss_scale = module, optimizer, loss_scale
        self.masters: list[Tensor] = [parameter for _, parameter in trained_parameters(module)]

    def backward(self, launch: Launch, loss: Tensor) -> None:
        """Add the gradient of a micro batch's loss, scaled, to those before it."""
        launch.accelerator.backward(self.loss_scale.scaled(loss))

    def step(self, launch: Launch, grad_clip: float) -> Tensor:
        """Clip the gradient and move the weights; nothing here waits for the device."""
        self.loss_scale.unscale(self.optimizer)
        norm = launch.accelerator.clip_grad_norm_(self.masters, grad_clip or float("inf"))
        step_if(torch.isfinite(norm), self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def copy_to_model(self) -> None:
        """The masters are the module's own."""

    def state(self) -> dict[str, Tensor]:
        """Gather the whole trained state by name."""
        return trained_state(self.module)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up a `state`, into masters and module."""
        load_trained(self.module, state)

    def optimizer_state(self) -> dict[str, Any]:
        """Gather the optimizer's state as AdamW over whole parameters has it."""
        return self.optimizer.state_dict() | {LOSS_SCALE: self.loss_scale.state()}

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take up an `optimizer_state`."""
        self.loss_scale.load(state.pop(LOSS_SCALE, {}))
        self.optimizer.load_state_dict(state)
        for values in self.optimizer.state.values():
            # On the CPU torch takes the given tensors themselves, which may be those of a mapped file.
            values |= {n: v.clone() for n, v in values.items() if isinstance(v, Tensor) and v.device.type == "cpu"}


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a piece of every weight (ZeRO-3), so that all have to make as many passes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with gradients, each once, by its first name."""
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Entries of a module's state dict that are its own: trained weights and buffers, not a base's frozen ones."""
    frozen = {n for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


@torch.no_grad()
def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what a checkpoint holds into a module.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    mine = trained_state(module)
    check_state({name: value.shape for name, value in mine.items()}, state)
    for name, value in mine.items():
        value.copy_(state[name])


def check_state(mine: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> None:
    """Refuse a state that does not have these names and shapes.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    found = {name: value.shape for name, value in given.items()}
    for name in sorted({*mine, *found}):
        if mine.get(name) != found.get(name):
            raise ValueError(f"weights of {name}: this model has {mine.get(name)}, the checkpoint {found.get(name)}")
