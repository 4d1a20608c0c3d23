"""Networks of a pipeline elsewhere, smaller or compiled: offloading, half precision, torch.compile, the VAE in parts.

The second device is "meta" (tests/second_device.py): it computes shapes alone.
"""

from collections.abc import Iterator

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from models.turboedit_pipeline import TurboEditPipeline
from tests.second_device import offloaded
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET = "a red star", "a blue star"


@pytest.fixture
def pipeline(tiny_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_backbone)


@pytest.fixture(scope="module")
def expected(tiny_backbone: str) -> Tensor:
    return edited(tiny_pipeline(tiny_backbone))


def edited(pipeline: TurboEditPipeline, **options: str) -> Tensor:
    return pipeline(image(), SOURCE, TARGET, mask="auto", frozen_steps=1, output_type="pt", **options).images


def image() -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def carried(pipeline: TurboEditPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with offloaded(pipeline, monkeypatch) as moves:
        yield moves


def test_the_encoder_is_carried_once_for_an_inversion(pipeline: TurboEditPipeline, carried: list[str]):
    inversion = pipeline.invert(image(), SOURCE)
    arrive = ["+vae", "+text_encoder", "-text_encoder", "+text_encoder_2", "+encoder", "-text_encoder_2", "+unet"]
    assert carried[:-3] == arrive and set(carried[-3:]) == {"-encoder", "-unet", "-vae"}
    assert inversion.noises[0].device.type == inversion.prompt.embeds.device.type == "meta"


def test_an_edit_has_one_large_network_at_a_time(pipeline: TurboEditPipeline, carried: list[str]):
    inversion = pipeline.invert(image(), SOURCE)
    carried.clear()
    output = pipeline.edit(inversion, TARGET, mask="auto", output_type="pt")
    texts = ["+text_encoder", "-text_encoder", "+text_encoder_2", "-text_encoder_2"]
    assert carried == [*texts, "+unet", "-unet", "+vae", "-vae"]
    assert output.images.device.type == "meta" and output.images.shape == (1, 3, 64, 64)


def test_one_call_leaves_the_encoder_before_it_edits(pipeline: TurboEditPipeline, carried: list[str]):
    output = pipeline(image(), SOURCE, TARGET, mask="auto", frozen_steps=1, output_type="pt")
    assert output.images.device.type == "meta"
    assert carried.count("+encoder") == 1 and carried.index("-encoder") < carried.index("+vae", 1)
    assert carried.count("+unet") == 2


def test_a_call_that_fails_leaves_the_device_too(pipeline: TurboEditPipeline, carried: list[str]):
    with pytest.raises(ValueError, match="2 prompts for 1 images"):
        pipeline.invert(image(), [SOURCE] * 2)


def test_weights_may_come_layer_by_layer(pipeline: TurboEditPipeline, expected: Tensor):
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):  # as enable_sequential_cpu_offload does it
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert pipeline.unet.device.type == "meta" and pipeline.vae.device.type == "meta"
    assert torch.equal(edited(pipeline), expected)


def test_a_vae_that_overflows_is_widened_before_it_goes(pipeline: TurboEditPipeline):
    assert pipeline.vae.config.force_upcast
    pipeline.to(torch.float16).enable_sequential_cpu_offload(device="cpu")
    assert pipeline.vae.dtype == torch.float32 and pipeline.unet.dtype == torch.float16


def test_groups_of_layers_may_be_offloaded(pipeline: TurboEditPipeline, expected: Tensor):
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(edited(pipeline), expected)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_makes_nearly_the_same_picture(
    pipeline: TurboEditPipeline, expected: Tensor, dtype: torch.dtype, error: float
):
    """In the form of the paper: the share of the source that stays is steep in the large latents of random networks."""
    paper = edited(pipeline, outside="reconstruction")
    assert not torch.equal(paper, expected)
    found = edited(pipeline.to(dtype), outside="reconstruction")
    assert pipeline.unet.dtype == pipeline.encoder.dtype == dtype
    assert 0 < (found - paper).abs().mean() < error


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.long), False])
def test_compiled_networks_give_the_same_and_are_compiled_once(
    pipeline: TurboEditPipeline, expected: Tensor, whole: bool
):
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(1)
        return graph.forward

    if whole:
        pipeline.unet, pipeline.encoder = (torch.compile(x, backend=count) for x in (pipeline.unet, pipeline.encoder))
    else:
        pipeline.unet.compile_repeated_blocks(backend=count)
    plain = pipeline(image(), SOURCE, TARGET, output_type="pt").images
    compiled = len(graphs)
    assert compiled > 0
    assert torch.equal(edited(pipeline), expected), "attention rules run beside what is compiled"
    assert torch.equal(pipeline(image(), SOURCE, TARGET, output_type="pt").images, plain)
    assert len(graphs) == compiled


def test_the_vae_may_work_in_slices_and_tiles(pipeline: TurboEditPipeline):
    pair = torch.cat([image(), image().flip(3)])
    whole = pipeline.invert(pair, SOURCE)
    images = pipeline.edit(whole, TARGET, output_type="pt").images
    pipeline.vae.enable_slicing()
    sliced = pipeline.edit(pipeline.invert(pair, SOURCE), TARGET, output_type="pt").images
    torch.testing.assert_close(sliced, images, atol=1e-4, rtol=0)
    calls: list[int] = []
    hook = pipeline.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = 32, 8
    assert pipeline.edit(pipeline.invert(pair, SOURCE), TARGET, output_type="pt").images.shape == images.shape
    hook.remove()
    assert len(calls) > 2
