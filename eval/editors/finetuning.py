"""A UNet fitted to one image for a while: its own weights or a low-rank adapter's are trained, and it gets all back."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers that get an adapter: the projections of every attention layer."""

Loss = Callable[[], Tensor]
"""The loss at the weights of now, with its own fresh draw of randomness."""


def descend(parameters: Iterable[Tensor], loss: Loss, num_steps: int, lr: float) -> None:
    """`num_steps` of Adam in `parameters`."""
    trained = list(parameters)
    optimizer = torch.optim.Adam(trained, lr=lr)
    with torch.enable_grad():
        for _ in range(num_steps):
            for parameter, gradient in zip(trained, torch.autograd.grad(loss(), trained), strict=True):
                parameter.grad = gradient
            optimizer.step()
    for parameter in trained:
        parameter.grad = None


@contextmanager
def wearing(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Have `module` compute with `weights` (any of its parameters by name) within the block; keep its own."""
    parameters = {name: module.get_parameter(name) for name in weights}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def finetune(unet: nn.Module, loss: Loss, num_steps: int, lr: float) -> dict[str, Tensor]:
    """Train a copy of the weights of `unet` and return them by name."""
    weights = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    with wearing(unet, weights):
        unet.requires_grad_(True)
        try:
            descend(unet.parameters(), loss, num_steps, lr)
        finally:
            unet.requires_grad_(False)
    return weights


def finetune_adapter(unet: nn.Module, loss: Loss, num_steps: int, lr: float, rank: int, seed: int) -> dict[str, Tensor]:
    """The weights that change, by name, after the training of a LoRA adapter of `rank` in the ADAPTED layers.

    Args:
        seed: seed of the adapter's first weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ADAPTED))
        adapted = get_peft_model(unet, config)
    try:
        descend([p for p in unet.parameters() if p.requires_grad], loss, num_steps, lr)
        with torch.no_grad():
            return {
                f"{name}.weight": layer.base_layer.weight + layer.get_delta_weight("default")
                for name, layer in unet.named_modules()
                if isinstance(layer, LoraLayer)
            }
    finally:
        adapted.unload()
