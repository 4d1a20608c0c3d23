"""Cross-attention maps: what is captured, and that capturing changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from models.attention import attention_layers, controlled
from models.attention_maps import AttentionMaps, Capture, token_heat
from models.backbone import Backbone

STEPS = torch.tensor([999, 249])


@pytest.fixture
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


@contextmanager
def capture_cross_attention(unet: nn.Module, size: tuple[int, int]) -> Iterator[AttentionMaps]:
    maps = AttentionMaps(size)
    with controlled(unet, [Capture(maps)]):
        yield maps


@torch.no_grad()
def predict(backbone: Backbone) -> Tensor:
    x_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return backbone.predict(x_t, backbone.encode_text(["a red circle", "grass"]), STEPS)


def test_capture_does_not_change_the_output(backbone: Backbone):
    plain = predict(backbone)
    with capture_cross_attention(backbone.unet, (8, 8)):
        captured = predict(backbone)
    assert torch.equal(captured, plain)
    assert torch.equal(predict(backbone), plain)


def test_rows_sum_to_one(backbone: Backbone):
    with capture_cross_attention(backbone.unet, (8, 8)) as maps:
        predict(backbone)
        once = maps.mean()
        predict(backbone)
    assert once.shape == (2, 8, 8, 77) and once.min() >= 0
    torch.testing.assert_close(once.sum(-1), torch.ones(2, 8, 8))
    torch.testing.assert_close(maps.mean(), once)


def test_maps_are_the_softmax_of_the_layers_queries_and_keys(backbone: Backbone):
    layers = {name: layer for name, layer in attention_layers(backbone.unet).items() if layer.is_cross_attention}
    assert len(layers) == 4 and all(name.endswith("attn2") for name in layers)
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, __, name=name: calls.update({name: (args[0], kwargs["encoder_hidden_states"])}),
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    with capture_cross_attention(backbone.unet, (8, 8)) as maps:
        predict(backbone)
    expected = []
    for name, layer in layers.items():
        hidden, text = calls[name]
        query, key = (
            to(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2).double()
            for to, x in ((layer.to_q, hidden), (layer.to_k, text))
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        expected.append(scores.softmax(-1).mean(1))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(maps.mean().flatten(1, 2).double(), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)


def test_processors_are_back_after_an_exception(backbone: Backbone):
    before = dict(backbone.unet.attn_processors)
    with pytest.raises(RuntimeError, match="stop"), capture_cross_attention(backbone.unet, (8, 8)):
        assert dict(backbone.unet.attn_processors) != before
        raise RuntimeError("stop")
    assert all(processor is before[name] for name, processor in backbone.unet.attn_processors.items())


def test_a_resolution_without_layers_is_refused(backbone: Backbone):
    with capture_cross_attention(backbone.unet, (32, 32)) as maps:
        predict(backbone)
    with pytest.raises(ValueError, match="no cross-attention layer works at 32x32; choose another"):
        maps.mean()


def test_maps_are_averaged_over_layers_and_evaluations():
    maps = AttentionMaps((2, 2))
    for value in (1.0, 2.0, 6.0):
        maps.add(torch.full((1, 4, 3), value))
    assert torch.equal(maps.mean(), torch.full((1, 2, 2, 3), 3.0))


def test_token_heat_is_between_zero_and_one():
    maps = torch.rand(3, 2, 8, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    heat = token_heat(maps, [[1], [2, 4], []])
    assert heat.shape == (3, 1, 2, 8) and heat.min() >= 0
    assert heat.amax((1, 2, 3)).tolist() == [1.0, 1.0, 0.0]
    expected = maps[1, :, :, [2, 4]].sum(-1)
    torch.testing.assert_close(heat[1, 0], expected / expected.max())


def test_token_heat_wants_tokens_for_every_image():
    with pytest.raises(ValueError, match="zip"):
        token_heat(torch.rand(2, 4, 4, 7), [[1]])
