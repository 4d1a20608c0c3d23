"""Control of a UNet's attention by layer name: rules that watch or change its inputs and maps for one evaluation.

A layer that no rule touches keeps the UNet's own processor, and with it torch's fast attention.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

Rows = slice | list[int]
"""Rows of a batch, in whatever order the caller has laid it out."""

ALL: Rows = slice(None)


@dataclass(frozen=True)
class Layer:
    """One attention layer in one evaluation.

    Args:
        name: path of the module in the UNet.
        cross: attends to the prompt, not to the picture itself.
        queries: number of its queries, the places of the picture at the layer's resolution: h * w of its maps, which is
            another number at each resolution of a UNet.
    """

    name: str
    cross: bool
    queries: int


class Rule:
    """Changes of one rule to the attention layers of an evaluation; as it stands, nothing. Rules apply in order.

    Attributes:
        only_watches: the rule needs maps but changes none, so the layer's own processor may still give the output, bit
            for bit.
    """

    only_watches = False

    def queries(self, layer: Layer, hidden: Tensor) -> Tensor:
        """Input of the query projection in the place of `hidden` [B, Q, D]."""
        return hidden

    def keys(self, layer: Layer, context: Tensor) -> Tensor:
        """Input of the key projection in the place of `context` [B, L, D]."""
        return context

    def values(self, layer: Layer, context: Tensor) -> Tensor:
        """Input of the value projection in the place of `context` [B, L, D]."""
        return context

    def touches(self, layer: Layer) -> bool:
        """Whether the rule needs this layer's softmax maps."""
        return False

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        """The maps [B, heads, Q, L] that are used in the place of `maps`, in a layer that the rule touches."""
        return maps


class RuledProcessor:
    """Attention of one layer under rules; what they leave alone is done by `inner`, the layer's own processor."""

    def __init__(self, name: str, inner: Any, rules: Sequence[Rule]) -> None:
        self.name = name
        self.inner = inner
        self.rules = rules

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Give the layer's output for `hidden_states` [B, Q, D], as diffusers calls its processors."""
        layer = Layer(self.name, attn.is_cross_attention, hidden_states.shape[1])
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries, keys, values = hidden_states, context, context
        for rule in self.rules:
            queries, keys, values = rule.queries(layer, queries), rule.keys(layer, keys), rule.values(layer, values)
        explicit = [rule for rule in self.rules if rule.touches(layer)]
        own_inputs = queries is hidden_states and keys is context and values is context
        if own_inputs and all(rule.only_watches for rule in explicit):
            if explicit:
                _refuse_unknown(self.name, attn, attention_mask)
                query, key = _heads(attn, attn.to_q(hidden_states)), _heads(attn, attn.to_k(context))
                maps = _softmax_maps(attn, query, key)
                for rule in explicit:
                    rule.maps(layer, maps)
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        _refuse_unknown(self.name, attn, attention_mask)
        query = _heads(attn, attn.to_q(queries))
        key, value = _heads(attn, attn.to_k(keys)), _heads(attn, attn.to_v(values))
        if explicit:
            maps = _softmax_maps(attn, query, key)
            for rule in explicit:
                maps = rule.maps(layer, maps)
            mixed = maps @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        output: Tensor = mixed.transpose(1, 2).flatten(2)
        for module in attn.to_out:  # a projection and a dropout
            output = module(output)
        return output


@contextmanager
def controlled(unet: nn.Module, rules: Sequence[Rule]) -> Iterator[None]:
    """Within the block every evaluation of `unet` obeys `rules`; its own processors are back in place after it.

    Of blocks within each other, an outer one rules the layers that the inner one leaves to their processor. Another
    thread's block waits; its evaluations without rules have to be `exclusive` to wait as well. What torch.compile has
    compiled runs uncompiled under rules, which would be compiled anew for each layer and call.
    """
    if not rules:
        yield
        return
    with exclusive(unet), torch.compiler.set_stance("force_eager"):
        layers = attention_layers(unet)
        inner = {name: layer.processor for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                layer.processor = RuledProcessor(name, layer.processor, rules)
            yield
        finally:
            for name, layer in layers.items():
                layer.processor = inner[name]


@contextmanager
def exclusive(unet: nn.Module) -> Iterator[None]:
    """Within the block no other thread's `exclusive` or `controlled` block uses `unet`: rules are set on its layers."""
    with _locks_guard:
        lock = _locks.setdefault(uncompiled(unet), threading.RLock())
    with lock:
        yield


_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locks_guard = threading.Lock()


def uncompiled(module: nn.Module) -> nn.Module:
    """The module around which torch.compile has laid its own class; any other module itself."""
    return getattr(module, "_orig_mod", module)


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """Gradient checkpointing that remembers the rules: `unet.enable_gradient_checkpointing(checkpointed)`.

    The backward pass comes after the block of `controlled`, when the layers have their own processors again; what it
    computes anew it computes with those of the forward pass.
    """
    ruled = {layer: layer.processor for layer in attention_layers(module).values()}

    def run(*inputs: Any) -> Any:
        before = {layer: layer.processor for layer in ruled}
        try:
            for layer, processor in ruled.items():
                layer.processor = processor
            return module(*inputs)
        finally:
            for layer, processor in before.items():
                layer.processor = processor

    return torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)


def attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """The attention layers of `unet` by name."""
    return {name: module for name, module in uncompiled(unet).named_modules() if isinstance(module, Attention)}


def _heads(attn: Attention, tokens: Tensor) -> Tensor:
    """[B, L, heads * d] -> [B, heads, L, d]."""
    return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _softmax_maps(attn: Attention, query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) [B, heads, Q, L], in float32 where the layer asks for it."""
    dtype = query.dtype
    if attn.upcast_attention:
        query, key = query.float(), key.float()
    scores = query @ key.transpose(-1, -2) * attn.scale
    if attn.upcast_softmax:
        scores = scores.float()
    return scores.softmax(dim=-1).to(dtype)


def with_rows(whole: Tensor, rows: Rows, part: Tensor) -> Tensor:
    """Put `part` in the `rows` of `whole`, as a new tensor through which gradients flow."""
    if rows == ALL:
        return part
    changed = whole.clone()
    changed[rows] = part
    return changed


def _refuse_unknown(name: str, attn: Attention, attention_mask: Tensor | None) -> None:
    """Raises ValueError for a layer that does more than the transformer blocks of SD and SDXL do."""
    extras = [
        word
        for word, there in {
            "an attention mask": attention_mask is not None,
            "a group norm": attn.group_norm is not None,
            "a spatial norm": attn.spatial_norm is not None,
            "a norm of the context": bool(attn.norm_cross),
            "a residual of its own": attn.residual_connection,
            "a norm of queries and keys": getattr(attn, "norm_q", None) is not None,
            "an output factor": attn.rescale_output_factor != 1,
        }.items()
        if there
    ]
    if extras:
        raise ValueError(f"attention control knows no layer such as {name}, which has {', '.join(extras)}")
