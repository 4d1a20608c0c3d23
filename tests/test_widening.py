"""A widened UNet starts as the one that it was made of, whatever comes in beside x_t."""

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.instruct_pix2pix import predict_output
from models.unet_family import UNetBackbone


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 16, 16, generator=draw), 5 * torch.randn(3, 4, 16, 16, generator=draw)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_it_starts_as_the_base_whatever_the_source_is(any_backbone: str, inputs: tuple[Tensor, Tensor], shared: bool):
    backbone = Backbone.load(any_backbone)
    prompt, t, (x_t, source) = backbone.encode_text(["a", "b", "c"]), torch.tensor([999, 500, 1]), inputs
    unet = UNetBackbone.widened(backbone.unet, shared)
    first = predict_output(unet, x_t, source, prompt, t)
    assert torch.equal(first, predict_output(unet, x_t, torch.zeros_like(source), prompt, t))
    torch.testing.assert_close(first, backbone.predict(x_t, prompt, t), rtol=1e-5, atol=1e-6)
    assert unet.config.in_channels == 8 and unet.config.out_channels == 4 and backbone.unet.config.in_channels == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_weights_are_its_own_and_trained(any_backbone: str, dtype: torch.dtype):
    backbone = Backbone.load(any_backbone, dtype=dtype)
    unet = UNetBackbone.widened(backbone.unet)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in unet.parameters())
    assert not {id(weight) for weight in unet.parameters()} & {id(weight) for weight in backbone.unet.parameters()}
    backbone.assert_frozen()


def test_shared_weights_are_those_of_the_base(any_backbone: str):
    backbone = Backbone.load(any_backbone, dtype=torch.bfloat16)
    base = {id(weight) for weight in backbone.unet.parameters()}
    own = {
        name: weight
        for name, weight in UNetBackbone.widened(backbone.unet, shared=True).named_parameters()
        if id(weight) not in base
    }
    assert set(own) == {"conv_in.weight", "conv_in.bias"}
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in own.values())
    backbone.assert_frozen()


def test_gradients_reach_the_weights_for_the_source(any_backbone: str, inputs: tuple[Tensor, Tensor]):
    backbone = Backbone.load(any_backbone)
    unet = UNetBackbone.widened(backbone.unet)
    prompt = backbone.encode_text(["a", "b", "c"])
    predict_output(unet, *inputs, prompt, torch.tensor([999, 500, 1])).square().mean().backward()
    assert unet.conv_in.weight.grad[:, 4:].abs().max() > 0
