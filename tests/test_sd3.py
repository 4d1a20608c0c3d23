"""Stable Diffusion 3.5 as a backbone, on a tiny random pipeline, against diffusers' own pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from eval.editors.ddim import DdimInversion, ddim_move
from eval.editors.ddpm import Ddpm
from eval.editors.editor import EditRequest
from eval.editors.sdedit import Sdedit
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.noise_encoder import NoiseEncoder
from models.options import INITIAL_LOGVAR
from models.quantized import quantize
from models.sd3 import StableDiffusion3
from models.shapes import SizeConditioning
from models.text import Prompt
from tests.conftest import save
from tests.tiny_sd3 import CHANNELS, save_tiny_sd3
from train.methods.config import LoraConfig
from train.methods.lora import add_lora

TEXTS = ["a cat on a mat", "a photograph of a dog, which is longer than what CLIP reads of letters, " + 3 * "x" * 10]
SIGMAS = [1.0, 0.9, 0.75, 0.5]
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def stock(tiny_sd3: str) -> StableDiffusion3Pipeline:
    pipeline = DiffusionPipeline.from_pretrained(tiny_sd3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def backbone(tiny_sd3: str) -> Backbone:
    return Backbone.load(tiny_sd3)


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_it_draws_what_the_stock_pipeline_draws(backbone: Backbone, stock: StableDiffusion3Pipeline):
    assert isinstance(backbone, StableDiffusion3) and (backbone.image_size, backbone.multiple) == (64, 16)
    options = {"latents": latents(), "guidance_scale": 1.0, "num_inference_steps": 4, "sigmas": SIGMAS}
    expected = stock(TEXTS, output_type="latent", **options).images
    prompt, schedule, x = backbone.encode_text(TEXTS), backbone.schedule, latents()
    sigmas = stock.scheduler.sigmas  # shifted by 3, and 0 at the end
    assert sigmas[1] == pytest.approx(3 * 0.9 / (1 + 2 * 0.9))
    for start, end in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        t = schedule.times([start]).expand(2)
        output = backbone.predict(x, prompt, t)
        x0, noise = schedule.predict_x0(x, output, t), schedule.predict_noise(x, output, t)
        x = schedule.add_noise(x0, noise, torch.full((2,), end))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    pictures = stock(TEXTS, output_type="pt", **options).images
    torch.testing.assert_close((backbone.decode(x) / 2 + 0.5).clamp(0, 1), pictures, rtol=0, atol=1e-5)


@torch.no_grad()
def test_latents_are_the_stock_pipelines(backbone: Backbone, stock: StableDiffusion3Pipeline):
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = stock.vae.encode(picture).latent_dist.mode()
    expected = (found - stock.vae.config.shift_factor) * stock.vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode_image(picture), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(backbone.unscale(expected), found, rtol=0, atol=1e-6)


@torch.no_grad()
def test_without_a_t5_it_reads_what_the_stock_pipeline_reads(tmp_path: Path):
    folder = save(lambda folder: save_tiny_sd3(folder, with_t5=False), tmp_path, seed=0)
    found, stock = Backbone.load(folder).encode_text(TEXTS), DiffusionPipeline.from_pretrained(folder, **WITHOUT_T5)
    embeds, _, pooled, _ = stock.encode_prompt(TEXTS, None, None, do_classifier_free_guidance=False)
    assert torch.equal(found.embeds, embeds) and torch.equal(found.pooled, pooled)
    assert [reader.tokens for reader in Backbone.load(folder).readers] == [75, 75]
    assert torch.equal(
        Backbone.load(folder, parts=["text"]).encode_text(TEXTS, SizeConditioning.uncropped(64, 64)).embeds, embeds
    )


@pytest.fixture
def encoder_inputs(backbone: Backbone) -> tuple[Tensor, Prompt, Tensor]:
    return latents(1), backbone.encode_text(TEXTS), backbone.schedule.times([1.0, 0.25])


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_the_encoder_starts_as_the_generator(backbone: Backbone, encoder_inputs: tuple, shared: bool):
    x0, prompt, t = encoder_inputs
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=shared)
    expected = backbone.schedule.predict_noise(x0, backbone.predict(x0, prompt, t), t)
    for previous in (torch.zeros_like(x0), latents(2), 100 * latents(2)):
        mean, logvar = encoder(x0, previous, prompt, t)
        assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
        assert torch.equal(logvar, torch.full_like(x0, INITIAL_LOGVAR))
    base = {id(weight) for weight in backbone.network.parameters()}
    own = {name.removeprefix("unet.") for name, weight in encoder.named_parameters() if id(weight) not in base}
    ends = {"pos_embed.proj.weight", "pos_embed.proj.bias", "proj_out.weight", "proj_out.bias"}
    assert own == (ends if shared else {name for name, _ in encoder.unet.named_parameters()})
    backbone.assert_frozen()


@torch.no_grad()
def test_an_encoder_over_8_bits_starts_as_their_generator(tiny_sd3: str, encoder_inputs: tuple):
    x0, prompt, t = encoder_inputs
    backbone = Backbone.load(tiny_sd3)
    quantize(backbone.network, "int8")
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True)
    expected = backbone.schedule.predict_noise(x0, backbone.predict(x0, prompt, t), t)
    mean, logvar = encoder(x0, latents(2), prompt, t)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logvar, torch.full_like(x0, INITIAL_LOGVAR))


def test_checkpointing_and_adapters_change_no_gradient(backbone: Backbone, encoder_inputs: tuple):
    x0, prompt, t = encoder_inputs
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True)
    add_lora(encoder.unet, LoraConfig(rank=2), seed=0)
    before = _gradients(encoder, x0, prompt, t)
    encoder.unet.enable_gradient_checkpointing()
    after = _gradients(encoder, x0, prompt, t)
    assert any(".attn2.to_q.lora_B" in name for name in before) and any("add_q_proj.lora_B" in name for name in before)
    assert set(before) == set(after)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-6, atol=1e-8)


def _gradients(encoder: NoiseEncoder, x0: Tensor, prompt: Prompt, t: Tensor) -> dict[str, Tensor]:
    """Gradients of all that is trained, every one of which has one."""
    encoder.zero_grad()
    mean, logvar = encoder.train()(x0, latents(3), prompt, t)
    (mean.square().mean() + logvar.square().mean()).backward()
    trained = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None for weight in trained.values())
    return {name: weight.grad.clone() for name, weight in trained.items()}


@torch.no_grad()
def test_bfloat16_never_rounds_a_time(tiny_sd3: str, encoder_inputs: tuple):
    x0, prompt, _ = encoder_inputs
    backbone = Backbone.load(tiny_sd3, dtype=torch.bfloat16)
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule)
    embedded = list[Tensor]()
    for network in (backbone.network, encoder.unet):
        with _watched(network, embedded):
            t = backbone.schedule.times([0.999])
            if network is backbone.network:
                backbone.predict(x0[:1], prompt[:1], t)
            else:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    encoder(x0[:1], x0[:1], prompt[:1].to(torch.bfloat16), t)
    assert [time.dtype for time in embedded] == [torch.float32] * 2
    assert [time.item() for time in embedded] == pytest.approx([999.0] * 2, abs=1e-3)  # 1000 in bfloat16


@contextmanager
def _watched(network: Any, kept: list[Tensor]) -> Iterator[None]:
    """Keep the times that a network embeds within the block."""
    hook = network.time_text_embed.time_proj.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    yield
    hook.remove()


@torch.no_grad()
def test_other_inversions_follow_its_schedule(backbone: Backbone):
    generator = FewStepGenerator(backbone, SIGMAS)
    pictures = backbone.decode(latents()).clamp(-1, 1)
    exact = Ddpm(generator, residual=True)
    last = exact.reconstruct(exact.invert(pictures, TEXTS))[-1]
    torch.testing.assert_close(last, backbone.encode_image(pictures), rtol=0, atol=1e-5)
    # Euler's step of the flow, backwards: x_end = x_start + (end - start) v
    ddim, x, v, t = DdimInversion(generator), latents(), latents(1), 0.5
    noise = backbone.schedule.predict_noise(x, v, backbone.schedule.times([t]).expand(2))
    torch.testing.assert_close(ddim_move(backbone.schedule, x, noise, t, 0.75), x + 0.25 * v, rtol=0, atol=1e-5)
    assert ddim.invert(pictures, TEXTS).noises[1.0].shape == x.shape
    drawn, none = (EditRequest(TEXTS, strength=strength) for strength in (0.75, 0.0))
    sdedit = Sdedit(generator)
    start = sdedit.invert(pictures, TEXTS)
    assert not torch.equal(sdedit.edit(start, drawn), sdedit.edit(start, none))
    with pytest.raises(ValueError, match="SDEdit's strength is 500"):
        sdedit.edit(start, EditRequest(TEXTS, strength=500.0))


def test_what_needs_a_unet_is_refused(backbone: Backbone):
    assert FewStepGenerator(backbone, SIGMAS).timesteps == tuple(SIGMAS)
    with pytest.raises(ValueError, match="work on Stable Diffusion and SDXL alone"):
        _ = backbone.unet
    with pytest.raises(ValueError, match="numbers from 1 to above 0"):
        FewStepGenerator(backbone, (999, 499))
