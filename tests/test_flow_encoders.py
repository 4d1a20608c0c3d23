"""The noise encoder of each family whose t is a real number: how it starts, is adapted, is checkpointed and batched."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from models.text import Prompt
from tests.tiny_backbones import shake

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


def test_a_stored_encoder_is_loaded_by_its_stock_class(tiny: Tiny, tmp_path: Path):
    encoder = tiny.encoder()
    shake(encoder, 0.02)
    encoder.unet.save_pretrained(tmp_path)
    again = NoiseEncoder(type(encoder.unet).from_pretrained(tmp_path), encoder.schedule)
    assert type(again.unet).__module__.startswith("diffusers.")
    inputs = tiny.x0, tiny.x0_prev, tiny.prompt, tiny.t
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(*inputs), again(*inputs), strict=True))


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
