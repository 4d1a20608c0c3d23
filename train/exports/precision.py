"""Networks that compute in float32 while their weights stay in the dtype in which they are stored."""

from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.hooks import HookRegistry
from diffusers.hooks.layerwise_casting import LayerwiseCastingHook
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

SMALL = (AutoencoderKL, AutoencoderDC)
"""Networks that become float32 as a whole; all others hold gigabytes."""

_NAME = "layerwise_casting"
"""Name under which diffusers looks for the dtype in which a network computes."""


class _Widened(LayerwiseCastingHook):
    """Diffusers' hook that casts a layer for its forward pass, but one that puts the stored weights back as they were.

    Diffusers' own rounds them anew, and so copies what lay in a mapped file.
    """

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.stored = [(weight, weight.data) for weight in module.parameters(recurse=False)]
        for weight, data in self.stored:
            weight.data = data.to(self.compute_dtype)
        # T5 gives its layers what has the dtype of their stored weights.
        return tree_map_only(Tensor, self._widened, (args, kwargs))

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.compute_dtype) if tensor.is_floating_point() else tensor

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        for weight, data in self.stored:
            weight.data = data
        self.stored = []
        return output


def compute_in_float32(network: nn.Module) -> None:
    """Let a network compute in float32, whatever its weights are stored in.

    Linear layers and convolutions of all networks but VAEs, the gigabytes, are widened one at a time; all else
    becomes float32.
    """
    large: set[nn.Module] = set()
    if not isinstance(network, SMALL):
        large = {layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        # torch's own attention reads the weights of its last layer and never calls it.
        large -= {layer.out_proj for layer in network.modules() if isinstance(layer, nn.MultiheadAttention)}
    for layer in network.modules():
        stored = {weight.dtype for weight in layer.parameters(recurse=False)} - {torch.float32}
        if layer not in large:
            for weight in layer.parameters(recurse=False):
                weight.data = weight.data.float()
        elif stored:
            hook = _Widened(stored.pop(), torch.float32, non_blocking=False)
            HookRegistry.check_if_exists_or_initialize(layer).register_hook(hook, _NAME)
