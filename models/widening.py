"""Networks that take a second latent beside their own and give more than they did, and start as what they come from."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .precision import recast


def copied(network: Any, shared: bool = False) -> Any:
    """A copy of a diffusers model with all weights float32 and trainable.

    Where they are `shared` they are the tensors of `network` itself, not copies, frozen as they are there.
    """
    tensors = (*network.parameters(), *network.buffers())
    wide = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors} if shared else None)
    wide.disable_gradient_checkpointing()  # a flag of the copied blocks; `network` keeps its own
    if not shared:
        recast(wide, torch.float32)
        wide.requires_grad_(True)
    return wide


def doubled(projection: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """A float32 projection of twice as many channels or features in, with weights of zeros for the second half."""
    weight = projection.weight.detach()
    return remade(projection, torch.cat([weight, torch.zeros_like(weight)], dim=1), projection.bias)


def appended(projection: nn.Conv2d | nn.Linear, constants: Sequence[float], rows: int) -> nn.Conv2d | nn.Linear:
    """A float32 projection that gives `rows` channels or features more for each constant, which they are at first."""
    weight, bias = projection.weight.detach(), projection.bias.detach()
    weights = [weight, *(torch.zeros_like(weight[:rows]) for _ in constants)]
    biases = [bias, *(torch.full_like(bias[:rows], constant) for constant in constants)]
    return remade(projection, torch.cat(weights), torch.cat(biases))


def remade(like: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Conv2d | nn.Linear:
    """A trainable float32 projection as `like`, with `weight` [out, in, ...] and `bias` [out]."""
    num_out, num_in = weight.shape[:2]
    made: nn.Conv2d | nn.Linear
    if isinstance(like, nn.Conv2d):
        shape: dict[str, Any] = {"stride": like.stride, "padding": like.padding}
        made = nn.Conv2d(num_in, num_out, like.kernel_size, bias=bias is not None, device=weight.device, **shape)
    else:
        made = nn.Linear(num_in, num_out, bias=bias is not None, device=weight.device)
    made.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return made
