"""Attention that is changed: other queries, keys or values, and maps taken from another row of the batch."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import ALL, Layer, Rows, Rule, with_rows
from .options import Into


class ContextInjection(Rule):
    """Cross attention takes its keys or its values from other embeddings than the prompt's.

    StyleDiffusion, section 3.2: K from the text, V from the mapping network.

    Args:
        keys, values: [b, L, D] for the `rows` of the batch, or None for the prompt's own.
    """

    def __init__(self, *, keys: Tensor | None = None, values: Tensor | None = None, rows: Rows = ALL) -> None:
        self._keys = keys
        self._values = values
        self.rows = rows

    def keys(self, layer: Layer, context: Tensor) -> Tensor:
        """Give the input [B, L, D] of the keys."""
        return self._put(layer, context, self._keys)

    def values(self, layer: Layer, context: Tensor) -> Tensor:
        """Give the input [B, L, D] of the values."""
        return self._put(layer, context, self._values)

    def _put(self, layer: Layer, context: Tensor, other: Tensor | None) -> Tensor:
        if other is None or not layer.cross:
            return context
        return with_rows(context, self.rows, other.to(context.dtype))


def injection(embeds: Tensor, into: Into, rows: Rows = ALL) -> ContextInjection:
    """Inject `embeds` [b, L, D] as values, as keys, or as both."""
    return ContextInjection(
        keys=None if into == "values" else embeds, values=None if into == "keys" else embeds, rows=rows
    )


class SelfInjection(Rule):
    """Self-attention of the target rows takes some of its inputs from the source rows.

    Keys and values are MasaCtrl's mutual self-attention (Cao et al. 2023, section 3.2); queries and keys, and with them
    the map, are Plug-and-Play's (Tumanyan et al. 2023, section 4). Unlike `SelfReplacement` it needs no explicit maps.

    Args:
        source, target: rows of the batch, equally many.
        layers: names of the layers.
        of: which inputs, some of "queries", "keys" and "values".
    """

    def __init__(self, source: Rows, target: Rows, layers: Collection[str], of: Collection[str]) -> None:
        self.source = source
        self.target = target
        self.layers = frozenset(layers)
        self.of = frozenset(of)
        assert self.of <= {"queries", "keys", "values"}, f"self-attention has no inputs {sorted(self.of)}"

    def queries(self, layer: Layer, hidden: Tensor) -> Tensor:
        """Give the input [B, Q, D] of the queries."""
        return self._put("queries", layer, hidden)

    def keys(self, layer: Layer, context: Tensor) -> Tensor:
        """Give the input [B, L, D] of the keys."""
        return self._put("keys", layer, context)

    def values(self, layer: Layer, context: Tensor) -> Tensor:
        """Give the input [B, L, D] of the values."""
        return self._put("values", layer, context)

    def _put(self, what: str, layer: Layer, hidden: Tensor) -> Tensor:
        if what not in self.of or layer.name not in self.layers:
            return hidden
        return with_rows(hidden, self.target, hidden[self.source])


class SelfReplacement(Rule):
    """Self-attention maps of the target rows become those of the source rows (Prompt-to-Prompt, section 3.2).

    Args:
        source, target: rows of the batch, equally many.
        max_queries: layers of more queries, which are of a higher resolution, keep their own maps.
    """

    def __init__(self, source: Rows, target: Rows, max_queries: int) -> None:
        self.source = source
        self.target = target
        self.max_queries = max_queries

    def touches(self, layer: Layer) -> bool:
        """Say whether the rule changes the maps of a layer."""
        return not layer.cross and layer.queries <= self.max_queries

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        """Give the maps [B, heads, Q, L] with the target rows replaced."""
        return with_rows(maps, self.target, maps[self.source])


@dataclass(frozen=True)
class Alignment:
    """Alignment by which columns of a source prompt's maps become those of a target prompt's, for B pairs of prompts.

    Args:
        matrix: [B, Ls, Lt]; column j of the new map is the sum of the source's columns weighted by matrix[:, j].
        share: [B, Lt] in [0, 1]; the share of the source in column j, the rest is the target's own map.
        scale: [B, Lt]; factor of the finished columns (reweighting; not renormalised, as in the official code).
    """

    matrix: Tensor
    share: Tensor
    scale: Tensor

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """The new maps of maps [B, heads, Q, Ls] and [B, heads, Q, Lt]."""
        matrix, share, scale = (x.to(target) for x in (self.matrix, self.share, self.scale))
        share, scale = share[:, None, None], scale[:, None, None]
        moved = torch.einsum("bhqs,bst->bhqt", source, matrix)
        return (moved * share + target * (1 - share)) * scale


class CrossEdit(Rule):
    """Cross-attention maps of the target rows are built from those of the source rows (Prompt-to-Prompt, eq. 2 to 4).

    Args:
        source, target: rows of the batch, as many as `alignment` has pairs.
    """

    def __init__(self, source: Rows, target: Rows, alignment: Alignment) -> None:
        self.source = source
        self.target = target
        self.alignment = alignment

    def touches(self, layer: Layer) -> bool:
        """Say whether the rule changes the maps of a layer."""
        return layer.cross

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        """Give the maps [B, heads, Q, L] with the target rows replaced."""
        return with_rows(maps, self.target, self.alignment.apply(maps[self.source], maps[self.target]))
