"""Attention maps that are watched: averaged for masks, or kept by layer for a loss."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .attention import ALL, Layer, Rows, Rule


class AttentionMaps:
    """Running mean of softmax maps over layers, heads and UNet evaluations.

    Args:
        size: height and width of the maps that are kept.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._total: Tensor | None = None
        self._count = 0

    def add(self, maps: Tensor) -> None:
        """Add one layer's maps [B, Q, L], already averaged over heads."""
        self._total = maps if self._total is None else self._total + maps
        self._count += 1

    def mean(self) -> Tensor:
        """[B, h, w, L]; each place's row sums to one.

        Raises ValueError if no layer has the resolution that was asked for.
        """
        if self._total is None:
            height, width = self.size
            raise ValueError(f"no cross-attention layer works at {height}x{width}; choose another attention_resolution")
        return (self._total / self._count).unflatten(1, self.size)


class Capture(Rule):
    """Adds the cross-attention maps of one resolution to `into`.

    Args:
        rows: rows of the batch that are kept.
    """

    only_watches = True

    def __init__(self, into: AttentionMaps, rows: Rows = ALL) -> None:
        self.into = into
        self.rows = rows

    def touches(self, layer: Layer) -> bool:
        """Say whether the maps of a layer are kept."""
        return layer.cross and layer.queries == prod(self.into.size)

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        """Keep the maps [B, heads, Q, L] and give them back unchanged."""
        self.into.add(maps[self.rows].float().mean(1).detach())
        return maps


class Record(Rule):
    """Keeps the maps [B, heads, Q, L] of every layer by its name; gradients cross them.

    Args:
        size: height and width of the maps that are kept; None for maps of all resolutions.
        prefixes: beginnings of the names of the layers that are kept, such as ("down", "up"); all by default.
    """

    def __init__(self, size: tuple[int, int] | None, *, cross: bool = True, prefixes: tuple[str, ...] = ("",)) -> None:
        self.size = size
        self.cross = cross
        self.prefixes = prefixes
        self.found: dict[str, Tensor] = {}

    def touches(self, layer: Layer) -> bool:
        """Say whether the maps of a layer are kept."""
        wanted = self.size is None or layer.queries == prod(self.size)
        return wanted and layer.cross == self.cross and layer.name.startswith(self.prefixes)

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        """Keep the maps [B, heads, Q, L] and give them back unchanged."""
        self.found[layer.name] = maps
        return maps


@torch.no_grad()
def token_heat(maps: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Attention that each image pays to its `tokens`, divided by its maximum: [B, 1, h, w] in [0, 1].

    An image for which no token is named has zeros.

    Args:
        maps: [B, h, w, L]; tokens: for each image the positions in its prompt.
    """
    heat = torch.stack([image[..., list(positions)].sum(-1) for image, positions in zip(maps, tokens, strict=True)])
    return (heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12))[:, None]
