"""Networks that compute in float32 while their weights stay as they are stored; an export's memory follows from it."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn

from models.backbone import Backbone
from models.unet_family import UNetBackbone
from scripts.bench.export import measure_export
from train.exports.precision import compute_in_float32


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_unet_gives_what_its_stored_weights_give_in_float32(any_backbone: str, dtype: torch.dtype):
    stored = Backbone.load(any_backbone, dtype=dtype, parts=("network",)).unet
    whole = copy.deepcopy(stored).float()
    layers = {name: layer for name, layer in stored.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    before = {name: layer.weight.data_ptr() for name, layer in layers.items()}
    compute_in_float32(stored)
    assert stored.dtype == torch.float32
    latents, prompt = UNetBackbone.random_inputs(whole, 2)
    t = torch.tensor([999, 249])
    found, expected = (unet(latents, t, **prompt.unet_inputs()).sample for unet in (stored, whole))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert {name: layer.weight.data_ptr() for name, layer in layers.items()} == before
    assert all(layer.weight.dtype == dtype for layer in layers.values())


@torch.no_grad()
def test_so_does_a_text_encoder(tiny_backbone: str):
    pipeline = DiffusionPipeline.from_pretrained(tiny_backbone, torch_dtype=torch.float16)
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        whole = copy.deepcopy(encoder).float()
        compute_in_float32(encoder)
        ids = torch.tensor([[1, 5, 7, 2]])
        found, expected = (model(ids, output_hidden_states=True).hidden_states[-2] for model in (encoder, whole))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert encoder.dtype == torch.float32 and not isinstance(encoder, UNet2DConditionModel)


@pytest.mark.long
@pytest.mark.parametrize("rank", [16, 0], ids=["lora", "full fine-tune"])
def test_an_export_takes_at_most_a_third_more_memory_than_it_writes(rank: int):
    [found] = measure_export((128, 256, 512), rank, "float16")
    assert found["ratio"] <= 1.3, found
