"""Cross-attention maps of a UNet, captured by layer without touching what the layers compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class AttentionMaps:
    """Running mean of softmax maps over layers, heads and UNet evaluations.

    Args:
        resolution: side of the maps that are kept; a layer whose queries are not resolution x resolution is passed by.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self._total: Tensor | None = None
        self._count = 0

    def add(self, maps: Tensor) -> None:
        """Add one layer's maps [B, resolution^2, L], already averaged over heads."""
        self._total = maps if self._total is None else self._total + maps
        self._count += 1

    def mean(self) -> Tensor:
        """[B, resolution^2, L]; each row sums to one.

        Raises ValueError if no cross-attention layer has this resolution.
        """
        if self._total is None:
            raise ValueError(
                f"no cross-attention layer works at {self.resolution}x{self.resolution}; "
                "choose another attention_resolution"
            )
        return self._total / self._count


class CaptureProcessor:
    """Lets `inner` do the attention and gives the softmax map of the same queries and keys to `maps`."""

    def __init__(self, inner: Any, maps: AttentionMaps) -> None:
        self.inner = inner
        self.maps = maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if hidden_states.shape[1] == self.maps.resolution**2:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            scores = attn.get_attention_scores(query, key, attention_mask)
            heads = scores.view(hidden_states.shape[0], attn.heads, *scores.shape[1:])
            self.maps.add(heads.float().mean(1).detach())
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)


def cross_attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """The cross-attention layers of `unet` by name."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }


@contextmanager
def capture_cross_attention(unet: UNet2DConditionModel, resolution: int) -> Iterator[AttentionMaps]:
    """Within the block, every evaluation of `unet` adds its cross-attention maps of this resolution to what is yielded.

    What the UNet computes stays as it is, and its own processors are back in place after the block.
    """
    maps = AttentionMaps(resolution)
    layers = cross_attention_layers(unet)
    inner = {name: layer.processor for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.processor = CaptureProcessor(layer.processor, maps)
        yield maps
    finally:
        for name, layer in layers.items():
            layer.processor = inner[name]


@torch.no_grad()
def token_heat(maps: Tensor, tokens: list[list[int]]) -> Tensor:
    """Attention that each image pays to its `tokens`, divided by its maximum: [B, 1, r, r] in [0, 1].

    An image for which no token is named has zeros.

    Args:
        maps: [B, r*r, L]; tokens: for each image the positions in its prompt.
    """
    side = int(maps.shape[1] ** 0.5)
    heat = torch.stack([image[:, positions].sum(-1) for image, positions in zip(maps, tokens, strict=True)])
    heat = heat / heat.amax(dim=1, keepdim=True).clamp_min(1e-12)
    return heat.view(-1, 1, side, side)
