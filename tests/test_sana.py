"""SANA-Sprint through this project's words against diffusers' own pipeline, on a tiny random one."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import SanaSprintPipeline, SCMScheduler
from torch import Tensor

from models.backbone import Backbone
from models.sana import CAPTION_TOKENS, GUIDANCE, INSTRUCTION

CAPTIONS = ("a fox", "two red foxes on a small green hill, in the rain, seen from far away; nobody else is there")


class RememberingScheduler(SCMScheduler):
    """Diffusers' own, which keeps what goes through it: the angle, x_t before and x0 after each step."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        if not hasattr(self, "steps"):
            self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        made = super().step(model_output, timestep, sample, **options)
        self.steps.append((timestep, sample, made[1]))
        return made


@pytest.fixture(scope="module")
def backbone(tiny_sana: str) -> Backbone:
    return Backbone.load(tiny_sana)


@pytest.fixture
def stock(tiny_sana: str) -> SanaSprintPipeline:
    scheduler = RememberingScheduler.from_pretrained(tiny_sana, subfolder="scheduler")
    pipeline = SanaSprintPipeline.from_pretrained(tiny_sana, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 32, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_prompts_are_the_stock_pipelines(backbone: Backbone, stock: SanaSprintPipeline):
    prompt = backbone.encode_text([*CAPTIONS, "word " * 100])
    embeds, mask = stock.encode_prompt(
        [*CAPTIONS, "word " * 100], max_sequence_length=CAPTION_TOKENS, complex_human_instruction=list(INSTRUCTION)
    )
    assert torch.equal(prompt.embeds, embeds) and torch.equal(prompt.mask, mask.bool())
    assert prompt.embeds.shape == (3, CAPTION_TOKENS, 16)
    assert prompt.mask.sum(1).tolist() == [2 + len(CAPTIONS[0]), 2 + len(CAPTIONS[1]), CAPTION_TOKENS]
    defaults = inspect.signature(SanaSprintPipeline.__call__).parameters
    assert (defaults["guidance_scale"].default, defaults["max_sequence_length"].default) == (GUIDANCE, CAPTION_TOKENS)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_its_steps_and_pictures_are_the_stock_pipelines(
    backbone: Backbone, stock: SanaSprintPipeline, size: tuple[int, int]
):
    pictures = stock(
        list(CAPTIONS),
        latents=noise(size[0] // 4, size[1] // 4),
        height=size[0],
        width=size[1],
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images
    prompt, sigma_data = backbone.encode_text(CAPTIONS), stock.scheduler.config.sigma_data
    steps = stock.scheduler.steps
    assert [round(float(t[0]), 4) for t, _, _ in steps] == [1.5708, 1.3]
    for t, sample, denoised in steps:
        x_t = sample / sigma_data
        x0 = backbone.schedule.predict_x0(x_t, backbone.predict(x_t, prompt, t), t)
        torch.testing.assert_close(x0, denoised / sigma_data, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((backbone.decode(x0) / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latents_are_the_autoencoders_scaled(backbone: Backbone, stock: SanaSprintPipeline):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(backbone.encode_image(picture), stock.vae.encode(picture).latent * 0.41407)
    assert (backbone.image_size, backbone.multiple, backbone.latent_channels) == (64, 16, 32)


@torch.no_grad()
def test_it_is_told_the_guidance_in_float32(tiny_sana: str):
    backbone = Backbone.load(tiny_sana, dtype=torch.bfloat16)
    fed: list[Tensor] = []
    backbone.network.time_embed.guidance_condition_proj.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
    backbone.predict(noise(), backbone.encode_text(CAPTIONS), torch.tensor([0.4321, 1.3]))
    torch.testing.assert_close(fed[0], torch.full((2,), 0.45), rtol=0, atol=1e-6)
