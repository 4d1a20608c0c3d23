"""The noise encoder of each family whose t is a real number: how it starts, is adapted, is checkpointed and batched."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from models.text import Prompt
from tests.tiny_backbones import shake
from train.methods.config import LoraConfig
from train.methods.lora import add_lora

CAPTIONS = ("a fox", "two red foxes on a small green hill, in the rain, seen from far away; nobody else is there")


@dataclass(frozen=True)
class Tiny:
    """A tiny backbone, inputs [2, C, 16, 16] and timesteps [2]."""

    folder: str
    backbone: Backbone
    prompt: Prompt
    x0: Tensor
    x0_prev: Tensor
    t: Tensor

    def encoder(self, shared: bool = False) -> NoiseEncoder:
        """F as it starts."""
        return NoiseEncoder.from_generator(self.backbone.network, self.backbone.schedule, shared=shared)


@pytest.fixture(scope="module", params=["z_image", "sana"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    folder = request.getfixturevalue(f"tiny_{request.param}")
    backbone, draw = Backbone.load(folder), torch.Generator().manual_seed(0)
    x0, x0_prev = (torch.randn(2, backbone.latent_channels, 16, 16, generator=draw) for _ in range(2))
    return Tiny(folder, backbone, backbone.encode_text(CAPTIONS), x0, x0_prev, torch.tensor([1.0, 0.3]))


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_it_starts_as_the_generator_at_the_clean_latent(tiny: Tiny, shared: bool):
    expected = tiny.backbone.schedule.predict_noise(
        tiny.x0, tiny.backbone.predict(tiny.x0, tiny.prompt, tiny.t), tiny.t
    )
    encoder = tiny.encoder(shared)
    for previous in (torch.zeros_like(tiny.x0), 100 * tiny.x0_prev):
        mean, logvar = encoder(tiny.x0, previous, tiny.prompt, tiny.t)
        assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
        assert torch.equal(logvar, torch.full_like(tiny.x0, -4.0))


def test_shared_weights_are_the_generators_own(tiny: Tiny):
    theirs = {id(weight) for weight in (*tiny.backbone.network.parameters(), *tiny.backbone.network.buffers())}
    own = {name for name, weight in tiny.encoder(shared=True).unet.named_parameters() if id(weight) not in theirs}
    layers = {name.rpartition(".")[0] for name in own}
    assert layers in ({"all_x_embedder.2-1", "all_final_layer.2-1.linear"}, {"patch_embed.proj", "proj_out"})
    tiny.backbone.assert_frozen()


def test_a_stored_encoder_is_loaded_by_its_stock_class(tiny: Tiny, tmp_path: Path):
    encoder = tiny.encoder()
    shake(encoder, 0.02)
    encoder.unet.save_pretrained(tmp_path)
    again = NoiseEncoder(type(encoder.unet).from_pretrained(tmp_path), encoder.schedule)
    assert type(again.unet).__module__.startswith("diffusers.")
    inputs = tiny.x0, tiny.x0_prev, tiny.prompt, tiny.t
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(*inputs), again(*inputs), strict=True))


def test_gradients_reach_what_is_new_and_are_the_same_with_checkpointing(tiny: Tiny):
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        encoder = tiny.encoder()
        shake(encoder, 0.02)
        if checkpointed:
            encoder.unet.enable_gradient_checkpointing()
        mean, logvar = encoder(tiny.x0, tiny.x0_prev, tiny.prompt, tiny.t)
        (mean.square().mean() + logvar.square().mean()).backward()
        return {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    unused = plain.keys() ^ dict(tiny.encoder().named_parameters()).keys()
    assert not unused


def test_adapters_lie_on_the_attention(tiny: Tiny):
    encoder = tiny.encoder(shared=True)
    before = encoder.posterior(tiny.x0, tiny.x0_prev, tiny.prompt, tiny.t)
    add_lora(encoder.unet, LoraConfig(rank=2), seed=0)
    posterior = encoder.posterior(tiny.x0, tiny.x0_prev, tiny.prompt, tiny.t)
    torch.testing.assert_close(posterior.mean, before.mean)
    (posterior.mean.square().mean() + posterior.logvar.mean()).backward()
    adapted = [name for name, weight in encoder.unet.named_parameters() if "lora_B" in name and weight.grad.any()]
    blocks = [layer for layer in encoder.unet.modules() if isinstance(layer, nn.Module) and hasattr(layer, "to_q")]
    assert len(adapted) == 4 * len(blocks) > 0


@torch.no_grad()
def test_prompts_of_one_batch_do_not_touch_each_other(tiny: Tiny):
    together = tiny.backbone.predict(tiny.x0, tiny.prompt, tiny.t)
    for row in range(2):
        one = slice(row, row + 1)
        alone = tiny.backbone.predict(tiny.x0[one], tiny.prompt[one], tiny.t[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)
    mask = tiny.prompt.mask
    other = Prompt(torch.where(mask[:, :, None], tiny.prompt.embeds, 7.0), mask=mask)
    torch.testing.assert_close(tiny.backbone.predict(tiny.x0, other, tiny.t), together, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bfloat16_is_close_to_float32(tiny: Tiny):
    coarse = Backbone.load(tiny.folder, dtype=torch.bfloat16)
    exact = tiny.backbone.predict(tiny.x0, tiny.prompt, tiny.t)
    found = coarse.predict(tiny.x0, tiny.prompt, tiny.t)
    assert found.dtype == torch.float32 and (found - exact).std() < 0.05 * exact.std()
    encoder = tiny.encoder()
    mean, _ = encoder(tiny.x0, tiny.x0_prev, tiny.prompt, tiny.t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, logvar = encoder(tiny.x0, tiny.x0_prev, tiny.prompt.to(torch.bfloat16), tiny.t)
    assert cast.dtype == logvar.dtype == torch.float32 and (cast - mean).std() < 0.05 * mean.std()
