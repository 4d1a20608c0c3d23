"""Z-Image through this project's words against diffusers' own pipeline, on a tiny random one."""

from dataclasses import replace

import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from models.backbone import Backbone
from models.z_image import CHAT_TOKENS, ZImage

CAPTIONS = ("a fox", "two red foxes on a small green hill, in the rain, seen from far away; nobody else is there")


@pytest.fixture(scope="module")
def backbone(tiny_z_image: str) -> Backbone:
    return Backbone.load(tiny_z_image)


@pytest.fixture(scope="module")
def stock(tiny_z_image: str) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(tiny_z_image)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_prompts_are_the_stock_pipelines_rows(backbone: Backbone, stock: ZImagePipeline):
    prompt = backbone.encode_text([*CAPTIONS, "word " * 200])
    rows, _ = stock.encode_prompt([*CAPTIONS, "word " * 200], do_classifier_free_guidance=False)
    assert prompt.mask.sum(1).tolist() == [len(row) for row in rows] and len(rows[2]) == CHAT_TOKENS
    assert prompt.embeds.shape == (3, CHAT_TOKENS, 16)
    for embeds, row in zip(prompt.embeds, rows, strict=True):
        assert torch.equal(embeds[: len(row)], row)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_its_steps_and_pictures_are_the_stock_pipelines(
    backbone: Backbone, stock: ZImagePipeline, size: tuple[int, int]
):
    start = noise(size[0] // 4, size[1] // 4)
    options = {"height": size[0], "width": size[1], "num_inference_steps": 3, "guidance_scale": 0.0}
    latents = []
    pictures = stock(
        list(CAPTIONS),
        latents=start,
        output_type="pt",
        callback_on_step_end=lambda _, i, t, found: latents.append(found["latents"]) or {},
        **options,
    ).images
    sigmas, prompt, x_t = stock.scheduler.sigmas, backbone.encode_text(CAPTIONS), start
    for sigma, following, expected in zip(sigmas, sigmas[1:], latents, strict=False):
        t = sigma.expand(2)
        output = backbone.predict(x_t, prompt, t)
        x0, eps = (backbone.schedule.predict_x0(x_t, output, t), backbone.schedule.predict_noise(x_t, output, t))
        x_t = (1 - following) * x0 + following * eps  # Euler's step of a rectified flow
        torch.testing.assert_close(x_t, expected, rtol=1e-5, atol=1e-5)
        x_t = expected
    torch.testing.assert_close((backbone.decode(x_t) / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latents_are_the_vaes_scaled_and_shifted(backbone: Backbone, stock: ZImagePipeline):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = (stock.vae.encode(picture).latent_dist.mode() - 0.1159) * 0.3611
    torch.testing.assert_close(backbone.encode_image(picture), expected)
    assert (backbone.image_size, backbone.multiple, backbone.latent_channels) == (64, 16, 16)


@torch.no_grad()
def test_a_prompt_with_its_mask_on_the_host_asks_the_device_for_nothing(tiny_z_image: str):
    backbone = Backbone.load(tiny_z_image)
    prompt, rows = backbone.encode_text(CAPTIONS), torch.tensor([1, 0, 1])
    assert prompt.mask.device.type == "cpu" and prompt[rows].mask.sum(1).tolist() == prompt.mask.sum(1)[rows].tolist()
    backbone.network.to("meta")  # on which no number can be read
    moved, x, t = prompt.to("meta", torch.float32), noise().to("meta"), torch.ones(2, device="meta")
    assert backbone.predict(x, moved[rows[:2]], t).device.type == "meta" and moved.mask.dtype == torch.bool
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        backbone.predict(x, replace(prompt, mask=prompt.mask.to("meta")).to("meta"), t)


@torch.no_grad()
def test_bfloat16_does_not_round_the_time(tiny_z_image: str):
    backbone = Backbone.load(tiny_z_image, dtype=torch.bfloat16)
    fed: list[Tensor] = []
    backbone.network.t_embedder.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    backbone.predict(noise(), backbone.encode_text(CAPTIONS), torch.tensor([0.001, 0.7513]))
    torch.testing.assert_close(fed[0], torch.tensor([999.0, 248.7]), rtol=0, atol=1e-4)
    assert isinstance(backbone, ZImage)
