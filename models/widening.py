"""Networks that take a second latent beside their own and give more than they did, and start as what they come from."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .precision import recast
from .quantized import QuantizedLinear


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
    weight = weight_of(projection)
    return remade(projection, torch.cat([weight, torch.zeros_like(weight)], dim=1), projection.bias)


def appended(projection: nn.Conv2d | nn.Linear, constants: Sequence[float], rows: int) -> nn.Conv2d | nn.Linear:
    """A float32 projection that gives `rows` channels or features more for each constant, which they are at first.

    Without a bias the constants have to be zeros.
    """
    weight = weight_of(projection)
    weight = torch.cat([weight, *(torch.zeros_like(weight[:rows]) for _ in constants)])
    if projection.bias is None:
        assert not any(constants), "a projection without bias gives zeros"
        return remade(projection, weight, None)
    bias = projection.bias.detach()
    bias = torch.cat([bias, *(torch.full_like(bias[:rows], constant) for constant in constants)])
    return remade(projection, weight, bias)


def shortened(network: Any, stacks: Mapping[str, str], blocks: Sequence[int]) -> Any:
    """A network with the first blocks of some stacks alone, which are the blocks of `network` themselves.

    Args:
        network: a diffusers model; it is left as it is.
        stacks: names of its lists of blocks, with the names that their lengths have in its config.
        blocks: how many of each are kept.

    Raises:
        ValueError: other numbers than it can keep.
    """
    have = [len(getattr(network, stack)) for stack in stacks]
    if len(blocks) != len(have) or not all(1 <= kept <= most for kept, most in zip(blocks, have)):
        names = " and ".join(f"{most} {stack}" for stack, most in zip(stacks, have, strict=True))
        raise ValueError(
            f"encoder.blocks is {list(blocks)}; expected how many F keeps of the {names} of this "
            f"{type(network).__name__}, at least 1 of each, or null for all"
        )
    short = copy.copy(network)
    short._modules = dict(network._modules)
    for stack, kept in zip(stacks, blocks, strict=True):
        setattr(short, stack, getattr(network, stack)[:kept])
    short.register_to_config(**dict(zip(stacks.values(), blocks, strict=True)))
    return short


def weight_of(projection: nn.Conv2d | nn.Linear) -> Tensor:
    """The weight [out, in, ...] of a projection; of one in 8 bits what those stand for."""
    if isinstance(projection, QuantizedLinear):
        return projection.restored(torch.float32)
    return projection.weight.detach()


def remade(like: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Conv2d | nn.Linear:
    """A trainable float32 projection as `like`, with `weight` [out, in, ...] and `bias` [out]."""
    num_out, num_in = weight.shape[:2]
    made: nn.Conv2d | nn.Linear
    if isinstance(like, nn.Conv2d):
        shape: dict[str, Any] = {name: getattr(like, name) for name in ("kernel_size", "stride", "padding")}
        made = nn.Conv2d(num_in, num_out, bias=bias is not None, device=weight.device, **shape)
    else:
        made = nn.Linear(num_in, num_out, bias=bias is not None, device=weight.device)
    made.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return made
