"""Rules change what they say and nothing else: embeddings injected, maps replaced and recorded, in SD and in SDXL."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from models.attention import Layer, Rows, Rule, attention_layers, controlled
from models.attention_edits import Alignment, ContextInjection, CrossEdit, SelfReplacement
from models.attention_maps import AttentionMaps, Capture, Record
from models.backbone import Backbone
from models.text import Prompt

TEXTS = ["a red circle", "grass", "a blue star", ""]
SIDE = 8
LENGTH = 77
close = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


@pytest.fixture(scope="module")
def prompt(backbone: Backbone) -> Prompt:
    return backbone.encode_text(TEXTS)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def predict(backbone: Backbone, prompt: Prompt, *rules: Rule, order: list[int] | None = None) -> Tensor:
    """The UNet's output for four latents and the prompts, the rows of the batch in another order if one is given."""
    rows = order or [0, 1, 2, 3]
    with controlled(backbone.unet, rules):
        return backbone.predict(noise(4, 4, 16, 16)[rows], prompt[rows], torch.tensor([999, 700, 400, 10])[rows])


class Seen(Rule):
    """Keeps every layer's maps by name."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def touches(self, layer: Layer) -> bool:
        return True

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        self.found[layer.name] = maps
        return maps

    def of(self, cross: bool) -> list[Tensor]:
        return [maps for name, maps in self.found.items() if name.endswith("attn2") == cross]


class Counting:
    """A processor that counts its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        self.calls += 1
        return self.inner(*inputs, **options)


@contextmanager
def counted(unet: nn.Module) -> Iterator[dict[str, Counting]]:
    layers = attention_layers(unet)
    counters = {name: Counting(layer.processor) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.processor = counters[name]
    yield counters
    for name, layer in layers.items():
        layer.processor = counters[name].inner


def identity(pairs: int, share: float = 1.0, scale: float = 1.0) -> Alignment:
    ones = torch.ones(pairs, LENGTH)
    return Alignment(torch.eye(LENGTH).expand(pairs, -1, -1), share * ones, scale * ones)


def random_alignment(pairs: int) -> Alignment:
    generator = torch.Generator().manual_seed(3)
    matrix, share, scale = (
        torch.rand(*shape, generator=generator) for shape in ((pairs, LENGTH, LENGTH), (pairs, LENGTH), (pairs, LENGTH))
    )
    return Alignment(matrix / matrix.sum(1, keepdim=True), share, 2 * scale)


# What changes nothing


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), [3, 0]])
@pytest.mark.parametrize("what", [("keys",), ("values",), ("keys", "values")])
def test_injecting_the_text_itself_is_the_stock_unet(
    backbone: Backbone, prompt: Prompt, what: tuple[str, ...], rows: Rows
):
    text = {name: prompt.embeds[rows].clone() for name in what}
    found = predict(backbone, prompt, ContextInjection(**text, rows=rows))
    torch.testing.assert_close(found, predict(backbone, prompt), **close)


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), [3, 0]])
def test_replacing_maps_by_ones_own_changes_nothing(backbone: Backbone, prompt: Prompt, rows: Rows):
    plain = predict(backbone, prompt)
    pairs = len(prompt.embeds[rows])
    for rule in (
        Seen(),
        SelfReplacement(rows, rows, SIDE * SIDE),
        CrossEdit(rows, rows, identity(pairs)),
        CrossEdit(rows, rows, identity(pairs, share=0.0)),
    ):
        torch.testing.assert_close(predict(backbone, prompt, rule), plain, **close)


def test_no_rules_and_rules_that_do_nothing_are_the_stock_unet(backbone: Backbone, prompt: Prompt):
    plain = predict(backbone, prompt)
    assert torch.equal(predict(backbone, prompt), plain)
    assert torch.equal(predict(backbone, prompt, Rule(), ContextInjection()), plain)
    assert torch.equal(predict(backbone, prompt, Capture(AttentionMaps((SIDE, SIDE)))), plain)


def test_layers_that_no_rule_touches_keep_their_processor(backbone: Backbone, prompt: Prompt):
    for rule, of_cross, of_self in (
        (Capture(AttentionMaps((SIDE, SIDE))), 1, 1),
        (Rule(), 1, 1),
        (ContextInjection(values=prompt.embeds.flip(1)), 0, 1),
        (ContextInjection(keys=prompt.embeds[:1].clone(), rows=[2]), 0, 1),
        (CrossEdit([0], [1], identity(1)), 0, 1),
        (SelfReplacement([0], [1], SIDE * SIDE), 1, 0),
        (SelfReplacement([0], [1], SIDE * SIDE - 1), 1, 1),
        (Seen(), 0, 0),
    ):
        with counted(backbone.unet) as counters:
            predict(backbone, prompt, rule)
        calls = {name: counter.calls for name, counter in counters.items()}
        assert calls == {name: of_cross if name.endswith("attn2") else of_self for name in calls}, rule


# What changes something


def layer_of(backbone: Backbone, kind: str) -> Attention:
    """A layer of the UNet, attn1 (self) or attn2 (cross)."""
    return next(layer for name, layer in attention_layers(backbone.unet).items() if name.endswith(kind))


def reference_maps(layer: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) [B, heads, Q, L] in float64, one image and one head at a time."""
    layer = copy.deepcopy(layer).double()
    found = []
    for one, other in zip(hidden.double(), context.double()):
        queries, keys = (x.chunk(layer.heads, dim=-1) for x in (layer.to_q(one), layer.to_k(other)))
        scores = [q @ k.T / q.shape[-1] ** 0.5 for q, k in zip(queries, keys)]
        found.append(torch.stack([s.exp() / s.exp().sum(-1, keepdim=True) for s in scores]))
    return torch.stack(found)


def reference_output(layer: Attention, maps: Tensor, context: Tensor) -> Tensor:
    """What the layer gives with `maps` [B, heads, Q, L] and the values of `context` [B, L, D], in float64."""
    layer = copy.deepcopy(layer).double()
    values = layer.to_v(context.double()).chunk(layer.heads, dim=-1)
    mixed = torch.cat([maps[:, head] @ value for head, value in enumerate(values)], dim=-1)
    return layer.to_out[0](mixed)


def inputs_of(layer: Attention) -> tuple[Tensor, Tensor]:
    """Hidden states [4, 64, C] and the context [4, 77, D] of a cross layer."""
    hidden = noise(4, SIDE * SIDE, layer.to_q.in_features, seed=1)
    return hidden, noise(4, LENGTH, layer.to_k.in_features, seed=2)


@torch.no_grad()
def test_target_rows_attend_as_the_source_rows_do_to_their_own_values(backbone: Backbone):
    layer = layer_of(backbone, "attn1")
    hidden, _ = inputs_of(layer)
    with controlled(backbone.unet, [SelfReplacement([0, 3], [2, 1], SIDE * SIDE)]):
        found = layer(hidden)
    maps = reference_maps(layer, hidden, hidden)[[0, 3, 0, 3]]
    torch.testing.assert_close(found.double(), reference_output(layer, maps, hidden), **close)


@torch.no_grad()
def test_cross_maps_are_aligned_shared_and_scaled(backbone: Backbone):
    layer = layer_of(backbone, "attn2")
    hidden, context = inputs_of(layer)
    alignment = random_alignment(2)
    with controlled(backbone.unet, [CrossEdit([3, 0], [1, 2], alignment)]):
        found = layer(hidden, encoder_hidden_states=context)
    maps = reference_maps(layer, hidden, context)
    matrix, share, scale = (x.double() for x in (alignment.matrix, alignment.share, alignment.scale))
    expected = maps.clone()
    for pair, (source, target) in enumerate([(3, 1), (0, 2)]):
        for j in range(LENGTH):
            moved = (maps[source] * matrix[pair, :, j]).sum(-1)
            expected[target, :, :, j] = scale[pair, j] * (
                share[pair, j] * moved + (1 - share[pair, j]) * maps[target, :, :, j]
            )
    torch.testing.assert_close(found.double(), reference_output(layer, expected, context), **close)


@torch.no_grad()
def test_injected_keys_decide_where_and_injected_values_what(backbone: Backbone):
    layer = layer_of(backbone, "attn2")
    hidden, context = inputs_of(layer)
    keys, values = noise(2, *context.shape[1:], seed=4), noise(2, *context.shape[1:], seed=5)
    with controlled(
        backbone.unet, [ContextInjection(keys=keys, rows=[1, 2]), ContextInjection(values=values, rows=slice(2, 4))]
    ):
        found = layer(hidden, encoder_hidden_states=context)
    looked_at, taken = context.clone(), context.clone()
    looked_at[1:3], taken[2:4] = keys, values
    expected = reference_output(layer, reference_maps(layer, hidden, looked_at), taken)
    torch.testing.assert_close(found.double(), expected, **close)


def test_self_replacement_takes_the_sources_maps_in_every_layer(backbone: Backbone, prompt: Prompt):
    before, after = Seen(), Seen()
    found = predict(backbone, prompt, before, SelfReplacement([0, 1], [3, 2], SIDE * SIDE), after)
    assert len(after.of(cross=False)) == 4
    for own, used in zip(before.of(cross=False), after.of(cross=False)):
        assert torch.equal(used, own[[0, 1, 1, 0]])
        assert not torch.allclose(own[0], own[3])
    for own, used in zip(before.of(cross=True), after.of(cross=True)):
        assert torch.equal(used, own)
    plain = predict(backbone, prompt)
    torch.testing.assert_close(found[:2], plain[:2], **close)
    for row in (2, 3):
        assert not torch.allclose(found[row], plain[row], **close)


def test_maps_of_more_queries_stay(backbone: Backbone, prompt: Prompt):
    found = predict(backbone, prompt, SelfReplacement([0, 1], [3, 2], SIDE * SIDE - 1))
    assert torch.equal(found, predict(backbone, prompt))


def test_rules_apply_in_their_order(backbone: Backbone, prompt: Prompt):
    seen = Seen()
    predict(backbone, prompt, CrossEdit([0], [1], identity(1)), CrossEdit([1], [2], identity(1, scale=2.0)), seen)
    for maps in seen.of(cross=True):
        assert torch.equal(maps[1], maps[0])
        assert torch.equal(maps[2], 2 * maps[0])


# Rows


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 0, 1]])
def test_any_layout_of_the_batch_gives_the_same(backbone: Backbone, prompt: Prompt, order: list[int]):
    """Pairs (0, 2) and (1, 3) as slices, and wherever `order` has moved them as lists."""
    values = noise(2, *prompt.embeds.shape[1:], seed=6)
    alignment = random_alignment(2)

    def rules(source: Rows, target: Rows, into: AttentionMaps) -> list[Rule]:
        return [
            ContextInjection(values=values, rows=target),
            CrossEdit(source, target, alignment),
            SelfReplacement(source, target, SIDE * SIDE),
            Capture(into, target),
        ]

    first, second = AttentionMaps((SIDE, SIDE)), AttentionMaps((SIDE, SIDE))
    expected = predict(backbone, prompt, *rules(slice(0, 2), slice(2, 4), first))
    places = [order.index(row) for row in range(4)]
    found = predict(backbone, prompt, *rules(places[:2], places[2:], second), order=order)
    torch.testing.assert_close(found, expected[order], **close)
    torch.testing.assert_close(second.mean(), first.mean(), **close)


# Recorded maps


def test_recorded_maps_are_those_of_the_layers_in_float64(backbone: Backbone, prompt: Prompt):
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    layers = attention_layers(backbone.unet)
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, options, __, name=name: calls.update(
                {name: (inputs[0], options.get("encoder_hidden_states"))}
            ),
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    cross, within, up = (
        Record((SIDE, SIDE)),
        Record((SIDE, SIDE), cross=False),
        Record((SIDE, SIDE), prefixes=("up", "mid")),
    )
    predict(backbone, prompt, cross, within, up)
    for hook in hooks:
        hook.remove()
    assert set(cross.found) == {name for name in layers if name.endswith("attn2")}
    assert set(within.found) == {name for name in layers if name.endswith("attn1")}
    assert set(up.found) == {name for name in cross.found if not name.startswith("down")} != set(cross.found)
    with torch.no_grad():
        for name, maps in (cross.found | within.found).items():
            hidden, context = calls[name]
            expected = reference_maps(layers[name], hidden, hidden if context is None else context)
            torch.testing.assert_close(maps.double(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_cross_recorded_maps(backbone: Backbone, prompt: Prompt):
    """The derivative of a sum over all maps in one direction of the embeddings, against central differences."""
    unet = copy.deepcopy(backbone.unet).double()
    text = prompt.to(torch.float64)
    direction = noise(*text.embeds.shape, seed=7, dtype=torch.float64)

    def weighted(embeds: Tensor) -> Tensor:
        record = Record((SIDE, SIDE))
        with controlled(unet, [record]):
            unet(
                noise(4, 4, 16, 16, dtype=torch.float64),
                torch.tensor([999, 700, 400, 10]),
                **Prompt(embeds, text.pooled, text.time_ids).unet_inputs(),
            )
        return sum(
            (maps.square() * noise(*maps.shape, seed=8, dtype=maps.dtype)).sum() for maps in record.found.values()
        )

    embeds = text.embeds.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weighted(embeds), embeds)
    step = 1e-5
    with torch.no_grad():
        difference = weighted(text.embeds + step * direction) - weighted(text.embeds - step * direction)
    torch.testing.assert_close((gradient * direction).sum(), difference / (2 * step), rtol=1e-6, atol=0)
    assert gradient.abs().sum() > 0


def test_a_resolution_that_no_layer_has_records_nothing(backbone: Backbone, prompt: Prompt):
    record = Record((SIDE // 2, SIDE // 2))
    predict(backbone, prompt, record)
    assert record.found == {}


# Nested blocks


def test_an_outer_block_watches_what_the_inner_one_leaves(backbone: Backbone, prompt: Prompt):
    outer, inner = AttentionMaps((SIDE, SIDE)), AttentionMaps((SIDE, SIDE))
    with controlled(backbone.unet, [Capture(outer)]):
        expected = predict(backbone, prompt)
        alone = outer.mean()
        assert torch.equal(predict(backbone, prompt, Capture(inner)), expected)
        torch.testing.assert_close(outer.mean(), alone)
        torch.testing.assert_close(inner.mean(), alone)
        values = ContextInjection(values=prompt.embeds.flip(0))
        changed = predict(backbone, prompt, values)
        assert torch.equal(predict(backbone, prompt), expected)
    assert torch.equal(changed, predict(backbone, prompt, values))
    assert torch.equal(predict(backbone, prompt), expected)


def test_an_outer_block_changes_the_layers_that_the_inner_one_leaves(backbone: Backbone, prompt: Prompt):
    outer, inner = SelfReplacement([0, 1], [2, 3], SIDE * SIDE), ContextInjection(values=prompt.embeds.flip(0))
    with controlled(backbone.unet, [outer]):
        found = predict(backbone, prompt, inner)
    torch.testing.assert_close(found, predict(backbone, prompt, outer, inner), **close)


# Layers that are not those of SD and SDXL


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm_num_groups": 4}, "a group norm"),
        ({"spatial_norm_dim": 4}, "a spatial norm"),
        ({"cross_attention_norm": "layer_norm"}, "a norm of the context"),
        ({"residual_connection": True}, "a residual of its own"),
        ({"qk_norm": "layer_norm"}, "a norm of queries and keys"),
        ({"rescale_output_factor": 2.0}, "an output factor"),
    ],
)
def test_unknown_layers_are_refused_by_name(options: dict[str, Any], named: str):
    net = nn.ModuleDict({"odd": Attention(32, cross_attention_dim=8, heads=2, dim_head=4, **options)})
    hidden, context = noise(1, 16, 32), noise(1, 5, 8)
    for rule in (
        ContextInjection(values=context + 1),
        CrossEdit([0], [0], identity(1)),
        Capture(AttentionMaps((4, 4))),
    ):
        with controlled(net, [rule]), pytest.raises(ValueError, match=f"no layer such as odd, which has {named}"):
            net["odd"](hidden, encoder_hidden_states=context)


def test_an_attention_mask_is_refused():
    net = nn.ModuleDict({"odd": Attention(8, heads=2, dim_head=4)})
    with controlled(net, [Seen()]), pytest.raises(ValueError, match="odd, which has an attention mask"):
        net["odd"](noise(1, 16, 8), attention_mask=torch.zeros(1, 1, 16))


@torch.no_grad()
def test_unknown_layers_that_no_rule_touches_are_left_alone():
    net = nn.ModuleDict({"odd": Attention(8, heads=2, dim_head=4, residual_connection=True)})
    hidden = noise(1, 16, 8)
    plain = net["odd"](hidden)
    with controlled(net, [SelfReplacement([0], [0], max_queries=9), Capture(AttentionMaps((4, 4)))]):
        assert torch.equal(net["odd"](hidden), plain)
