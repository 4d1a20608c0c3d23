"""FLUX.1 and FLUX.2-klein against the stock pipelines, and their noise encoders against the generators."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, Flux2KleinPipeline, FluxPipeline
from torch import Tensor

from data.jobs.command import parse
from models.backbone import Backbone
from models.families import family_of
from models.noise_encoder import NoiseEncoder
from models.options import INITIAL_LOGVAR
from models.quantized import quantize
from models.text import Prompt
from tests.conftest import save
from tests.full_flux import write_flux_configs, write_klein_configs
from tests.tiny_flux import save_tiny_flux, save_tiny_flux2
from train.methods.config import LoraConfig
from train.methods.lora import add_lora
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.plan import PLAN

TEXTS = ["a cat", "the dog sits on a red sofa"]


@pytest.fixture(scope="module", params=["flux", "flux2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny pipeline of each family."""
    write = {"flux": save_tiny_flux, "flux2": save_tiny_flux2}[request.param]
    return save(write, tmp_path_factory.mktemp(request.param), seed=0)


@pytest.fixture(scope="module")
def backbone(folder: str) -> Backbone:
    return Backbone.load(folder)


@pytest.fixture(scope="module")
def stock(folder: str) -> Any:
    return DiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompt(backbone: Backbone) -> Prompt:
    return backbone.encode_text(TEXTS)


def tokens(stock: Any) -> int:
    """The number for which the few-step model of a family was distilled."""
    return 256 if isinstance(stock, FluxPipeline) else 512


def latents(backbone: Backbone, count: int = 1) -> list[Tensor]:
    """Random latents [2, C, h, w] of a width that is not the height."""
    draw = torch.Generator().manual_seed(0)
    height, width = 64 // backbone.vae_factor, 96 // backbone.vae_factor
    return [torch.randn(2, backbone.latent_channels, height, width, generator=draw) for _ in range(count)]


@torch.no_grad()
def test_it_samples_as_the_stock_pipeline(backbone: Backbone, stock: Any, prompt: Prompt):
    (noise,) = latents(backbone)
    packed = FluxPipeline._pack_latents(noise, *noise.shape) if isinstance(stock, FluxPipeline) else noise
    seen: list[Tensor] = []
    pictures = stock(
        prompt=TEXTS,
        height=64,
        width=96,
        latents=packed,
        sigmas=[1.0, 0.6],
        num_inference_steps=2,
        max_sequence_length=tokens(stock),
        output_type="pt",
        callback_on_step_end=lambda pipeline, i, t, made: seen.append(made["latents"]) or made,
    ).images
    schedule, sigmas = backbone.schedule, stock.scheduler.sigmas
    x = noise
    for i, expected in enumerate(seen):
        t, after = sigmas[i].expand(2), sigmas[i + 1].expand(2)
        output = backbone.predict(x, prompt, t)
        x = schedule.add_noise(schedule.predict_x0(x, output, t), schedule.predict_noise(x, output, t), after)
        patches = F.pixel_unshuffle(x, 2) if isinstance(stock, FluxPipeline) else x
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((backbone.decode(x) / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_are_the_stock_pipelines(backbone: Backbone, stock: Any, prompt: Prompt):
    expected = stock.encode_prompt(TEXTS, max_sequence_length=tokens(stock))
    assert torch.equal(prompt.embeds, expected[0])
    if isinstance(stock, FluxPipeline):
        assert prompt.pooled is not None and torch.equal(prompt.pooled, expected[1])


@torch.no_grad()
def test_latents_are_the_stock_pipelines_and_come_back(backbone: Backbone, stock: Any):
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = backbone.encode_image(image)
    if isinstance(stock, Flux2KleinPipeline):
        expected = stock._encode_vae_image(image, None)
    else:
        mode, config = stock.vae.encode(image).latent_dist.mode(), stock.vae.config
        expected = (mode - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(latent, expected, rtol=1e-5, atol=1e-6)
    direct = stock.vae.decode(stock.vae.encode(image).latent_dist.mode()).sample
    torch.testing.assert_close(backbone.decode(latent), direct, rtol=1e-4, atol=1e-5)
    assert backbone.pixels((latent.shape[2], latent.shape[3])) == (64, 96)
    assert backbone.image_size == 64 and backbone.multiple == 16


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_f_starts_as_g_at_the_clean_latent(backbone: Backbone, prompt: Prompt, shared: bool):
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=shared)
    x0, x0_prev = latents(backbone, 2)
    t = torch.tensor([1.0, 0.3])
    expected = backbone.schedule.predict_noise(x0, backbone.predict(x0, prompt, t), t)
    for previous in (torch.zeros_like(x0), 100 * x0_prev):
        mean, logvar = encoder(x0, previous, prompt, t)
        assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
        assert torch.equal(logvar, torch.full_like(x0, INITIAL_LOGVAR))
    trained = {name for name, weight in encoder.unet.named_parameters() if weight.requires_grad}
    owned = {id(weight) for weight in backbone.network.parameters()}
    own = {name for name, weight in encoder.unet.named_parameters() if id(weight) not in owned}
    assert own == trained
    if shared:
        assert {name.split(".")[0] for name in own} == {"x_embedder", "proj_out"}
    backbone.assert_frozen()


def test_8_bits_of_g_under_adapters_start_alike(folder: str, prompt: Prompt):
    backbone = Backbone.load(folder)
    quantize(backbone.network, "int8")
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True)
    x0, t = latents(backbone)[0], torch.tensor([0.75, 0.25])
    expected = backbone.schedule.predict_noise(x0, backbone.predict(x0, prompt, t), t)
    torch.testing.assert_close(encoder(x0, x0, prompt, t)[0], expected, rtol=1e-4, atol=1e-5)


def gradients(encoder: NoiseEncoder, x0: Tensor, prompt: Prompt) -> dict[str, Tensor]:
    """Gradients of the weights that are trained, by name."""
    encoder.zero_grad()
    posterior = encoder.posterior(x0, x0.flip(0), prompt, torch.tensor([0.9, 0.3]))
    (posterior.mean.square().mean() + posterior.logvar.square().mean()).backward()
    return {name: w.grad.clone() for name, w in encoder.named_parameters() if w.grad is not None}


def test_checkpointing_changes_no_gradient_and_all_weights_have_one(backbone: Backbone, prompt: Prompt):
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule)
    (x0,) = latents(backbone)
    plain = gradients(encoder, x0, prompt)
    encoder.unet.enable_gradient_checkpointing()
    checkpointed = gradients(encoder, x0, prompt)
    assert plain.keys() == checkpointed.keys() >= {"unet.x_embedder.weight", "unet.proj_out.weight"}
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
    half = len(plain["unet.x_embedder.weight"][0]) // 2
    assert plain["unet.x_embedder.weight"][:, half:].abs().amax(0).min() > 0
    third = len(plain["unet.proj_out.weight"]) // 3
    assert plain["unet.proj_out.weight"][third : 2 * third].abs().amax(1).min() > 0


def test_lora_on_the_familys_attention(backbone: Backbone, prompt: Prompt):
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True)
    (x0,), t = latents(backbone), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        before = encoder(x0, x0, prompt, t)[0]
    add_lora(encoder.unet, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x0, x0, prompt, t)[0], before, rtol=0, atol=1e-6)
    found = gradients(encoder, x0, prompt)
    for stack in ("transformer_blocks.0.attn", "single_transformer_blocks.1.attn"):
        assert any(stack in name and "lora_B" in name and g.abs().max() > 0 for name, g in found.items())
    backbone.assert_frozen()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_time_is_rounded_to_bfloat16(backbone: Backbone, prompt: Prompt, dtype: torch.dtype):
    network = copy.deepcopy(backbone.network).to(dtype)
    part = network.time_text_embed if hasattr(network, "time_text_embed") else network.time_guidance_embed
    seen: list[Tensor] = []
    part.time_proj.register_forward_hook(lambda module, given, output: seen.append(output))
    t, x = torch.tensor([0.999, 0.7501]), latents(backbone)[0].to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        family_of(network).evaluate(network, x, prompt.to(dtype=dtype), t)
    assert torch.equal(seen[0], copy.deepcopy(part.time_proj)(1000 * t))
    assert not torch.equal(seen[0], copy.deepcopy(part.time_proj)((1000 * t).bfloat16()))


@torch.no_grad()
def test_dev_is_told_the_stock_guidance(tmp_path: Path):
    folder = save(lambda path: save_tiny_flux(path, guidance_embeds=True), tmp_path, seed=0)
    backbone, stock = Backbone.load(folder), FluxPipeline.from_pretrained(folder)
    (noise,) = latents(backbone)
    rows = FluxPipeline._pack_latents(noise, *noise.shape)
    settings = {"height": 64, "width": 96, "sigmas": [1.0], "num_inference_steps": 1, "output_type": "latent"}
    expected = stock(TEXTS, latents=rows, max_sequence_length=tokens(stock), **settings).images
    ones = torch.ones(2)
    x0 = backbone.schedule.predict_x0(noise, backbone.predict(noise, backbone.encode_text(TEXTS), ones), ones)
    torch.testing.assert_close(FluxPipeline._pack_latents(x0, *noise.shape), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_f_may_be_the_first_blocks_alone(backbone: Backbone, prompt: Prompt, tiny_backbone: str):
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True, blocks=(1, 2))
    assert encoder.unet.config.num_layers == 1 and encoder.unet.config.num_single_layers == 2
    assert (
        encoder.unet.transformer_blocks[0].attn.to_q.weight is backbone.network.transformer_blocks[0].attn.to_q.weight
    )
    assert len(backbone.network.transformer_blocks) == backbone.network.config.num_layers == 2
    (x0,), t = latents(backbone), torch.tensor([0.9, 0.3])
    network = copy.deepcopy(backbone.network)
    del network.transformer_blocks[1:]
    expected = backbone.schedule.predict_noise(x0, family_of(network).evaluate(network, x0, prompt, t), t)
    torch.testing.assert_close(encoder(x0, x0, prompt, t)[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"encoder.blocks is \[3, 1\]; expected .* 2 transformer_blocks and 2 single_"):
        NoiseEncoder.from_generator(backbone.network, backbone.schedule, blocks=(3, 1))
    unet = Backbone.load(tiny_backbone, parts=("network",))
    with pytest.raises(ValueError, match="no such lists"):
        NoiseEncoder.from_generator(unet.network, unet.schedule, blocks=(1,))


@pytest.mark.parametrize(
    ("write", "prompt_bytes", "billions", "trained"),
    [(write_flux_configs, 2 * (256 * 4096 + 768), 11.9, 6.2), (write_klein_configs, 2 * 512 * 7680, 3.88, 2.0)],
)
def test_a_plan_of_the_real_size_says_what_cached_text_costs(
    tmp_path: Path, write: Callable[[Path], None], prompt_bytes: int, billions: float, trained: float
):
    write(tmp_path)
    blocks = "[10,20]" if write is write_flux_configs else "[2,11]"
    words = [f"--generator.path={tmp_path}", "--generator.dtype=bfloat16", "--generator.timesteps=[1.0,0.5]"]
    config = parse(TurboEditConfig, [*words, f"--encoder.blocks={blocks}", "--data.shards=none", "--run.folder=none"])
    planned = PLAN.task(config)
    assert planned.prompt_bytes() == prompt_bytes
    assert planned.frozen["G"] / 2e9 == pytest.approx(billions, rel=1e-2)
    assert planned.trained / 1e9 == pytest.approx(trained, rel=0.05)


def test_attention_is_the_unets_alone(backbone: Backbone):
    with pytest.raises(ValueError, match="no UNet: attention maps, frozen attention"):
        _ = backbone.unet
