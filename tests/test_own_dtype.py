"""Frozen networks compute in their own dtype whatever autocast says, and gradients survive a float16 one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eval.editors.null_text import NullText
from models.backbone import Backbone, dtype_of
from models.ddim import Ddim, ddim_pivots, matching
from models.generator import FewStepGenerator
from models.options import StyleObjective
from models.own_dtype import GradientScale, in_own_dtype
from models.stylediffusion import GuidedStep
from models.text import Prompt
from models.value_mapper import Modulation

CAPTIONS = ["a red star on a wall", "grass", "a blue circle"]
DTYPES = ("float32", "bfloat16", "float16")
LARGE, SMALL = 1e-1, 1e-8
"""Sizes of gradients at G's output: SDXL's loss is a mean over 16,384 elements and a batch."""


@pytest.fixture(scope="module")
def backbones(any_backbone: str) -> dict[str, Backbone]:
    """The same backbone in each dtype; the VAE, which may overflow in float16, is float32 there."""
    return {
        name: Backbone.load(
            any_backbone,
            dtype=dtype_of(name),
            vae_dtype=torch.float32 if name == "float16" else dtype_of(name),
        )
        for name in DTYPES
    }


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DTYPES)
@torch.no_grad()
def test_autocast_changes_nothing_of_a_frozen_network(backbones: dict[str, Backbone], name: str, autocast: torch.dtype):
    backbone = backbones[name]
    x_t, t, image = drawn(3, 4, 16, 16), torch.tensor([999, 499, 249]), drawn(1, 3, 64, 64).clamp(-1, 1)

    def outputs() -> list[Tensor]:
        prompt = backbone.encode_text(CAPTIONS)
        found = [
            prompt.embeds,
            backbone.predict(x_t, prompt, t),
            backbone.encode_image(image),
            backbone.decode(x_t[:1]),
        ]
        return found if prompt.pooled is None else [*found, prompt.pooled]

    expected = outputs()
    with torch.autocast("cpu", autocast):
        found = outputs()
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    assert expected[0].dtype == dtype_of(name)


@pytest.mark.parametrize("name", DTYPES)
@torch.no_grad()
def test_x0_follows_from_the_latent_that_the_network_saw(backbones: dict[str, Backbone], name: str):
    generator = FewStepGenerator(backbones[name])
    prompt, t = generator.backbone.encode_text(CAPTIONS), torch.tensor([999, 999, 249])
    x_t = drawn(3, 4, 16, 16)
    rounded = x_t.to(dtype_of(name)).float()
    assert torch.equal(generator.predict_x0(x_t, prompt, t), generator.predict_x0(rounded, prompt, t))
    # eq. 3 restated in double precision
    output = generator.backbone.predict(rounded, prompt, t).double()
    abar = generator.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    epsilon = generator.schedule.prediction_type == "epsilon"
    a, b = abar.sqrt(), (1 - abar).sqrt()
    x0 = (rounded - b * output) / a if epsilon else a * rounded - b * output
    torch.testing.assert_close(generator.predict_x0(x_t, prompt, t).double(), x0, rtol=1e-5, atol=1e-4)


def gradients(backbone: Backbone, upstream: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Gradients of the UNet's output to its latent and to its prompt, of a float32 `prompt`, by `predict`."""
    x_t, embeds = drawn(3, 4, 16, 16).requires_grad_(), prompt.embeds.clone().requires_grad_()
    output = backbone.predict(x_t, replace(prompt, embeds=embeds), torch.tensor([999, 499, 249]))
    to_latent, to_prompt = torch.autograd.grad(output, (x_t, embeds), upstream)
    return to_latent, to_prompt


def unscaled(backbone: Backbone, upstream: Tensor, prompt: Prompt) -> Tensor:
    """The gradient to the latent by the plain call of the network."""
    x_t = drawn(3, 4, 16, 16).requires_grad_()
    inputs = prompt.to(dtype=backbone.unet.dtype).unet_inputs()
    output = backbone.unet(x_t.to(backbone.unet.dtype), torch.tensor([999, 499, 249]), **inputs).sample.float()
    return torch.autograd.grad(output, x_t, upstream)[0]


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """Error of each row as a share of its size."""
    return (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_gradients_cross_a_float16_network(backbones: dict[str, Backbone], size: float):
    exact, half = backbones["float32"], backbones["float16"]
    prompt = exact.encode_text(CAPTIONS)
    # Rows a thousand times larger and smaller than each other, as timesteps make them.
    upstream = size * drawn(3, 4, 16, 16, seed=1) * torch.tensor([1.0, 1e-3, 1e3])[:, None, None, None]
    expected = gradients(exact, upstream, prompt)
    for mine, theirs in zip(gradients(half, upstream, prompt), expected, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, theirs).max() < 0.01
    if size == SMALL:  # and this test would see it if nothing was scaled
        assert relative_error(unscaled(half, upstream, prompt), expected[0])[1] > 0.1


def test_gradient_checkpointing_keeps_the_scale(any_backbone: str):
    backbone = Backbone.load(any_backbone, dtype=torch.float16, parts=("vae", "text", "network"))
    prompt = backbone.encode_text(CAPTIONS).map(Tensor.float)
    upstream = SMALL * drawn(3, 4, 16, 16, seed=1)
    plain = gradients(backbone, upstream, prompt)
    backbone.unet.train().enable_gradient_checkpointing()
    for mine, theirs in zip(gradients(backbone, upstream, prompt), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=0)


def test_a_gradient_that_is_not_finite_stays_so():
    inputs = torch.ones(2, 3, requires_grad=True)
    output = in_own_dtype(lambda x, _: 2 * x, torch.float16, inputs)
    upstream = torch.tensor([[1e-6, 2e-6, 0.0], [1.0, float("nan"), float("inf")]])
    [gradient] = torch.autograd.grad(output, inputs, upstream)
    torch.testing.assert_close(gradient[0], 2 * upstream[0], rtol=1e-3, atol=0)
    assert not gradient[1].isfinite().all()


def test_a_row_without_gradient_has_none():
    scale, inputs = GradientScale(torch.float16), torch.ones(2, 3, requires_grad=True)
    [output] = scale.leave(3 * scale.enter(inputs).half().float())
    upstream = torch.tensor([[0.0, 0.0, 0.0], [1e-9, 1e3, 0.0]])
    torch.testing.assert_close(torch.autograd.grad(output, inputs, upstream)[0], 3 * upstream, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("attention_weight", [0.0, 1.0])
def test_stylediffusions_gradients_cross_a_float16_network(tiny_sd_backbone: str, attention_weight: float):
    found = []
    for dtype in (torch.float32, torch.float16):
        backbone = Backbone.load(tiny_sd_backbone, dtype=dtype)
        step = GuidedStep(
            backbone, Ddim(backbone.schedule, 5), StyleObjective(attention_weight=attention_weight, attention_side=8)
        )
        prompt = backbone.encode_text(CAPTIONS)
        null, steps = matching(backbone.encode_text([""]), prompt), torch.tensor([0, 2, 4])
        x, target = drawn(3, 4, 16, 16), drawn(3, 4, 16, 16, seed=1)
        shape = prompt.embeds.shape
        learned = Modulation(1 + 0.1 * drawn(*shape, seed=2), 0.1 * drawn(*shape, seed=3))
        for part in (learned.scale, learned.shift):
            part.requires_grad_()
        reference = step.reference(x, x, steps, prompt, null)
        rec, attention = step.losses(x, target, steps, prompt, reference, learned)
        loss = 1e-5 * (rec.mean() + attention_weight * attention.mean())
        found.append(torch.autograd.grad(loss, (learned.scale, learned.shift)))
    for mine, theirs in zip(*reversed(found), strict=True):
        assert relative_error(mine, theirs).max() < 0.03


def test_null_text_learns_in_float16(tiny_sd_backbone: str):
    losses = []
    for dtype in (torch.float32, torch.float16):
        backbone = Backbone.load(tiny_sd_backbone, dtype=dtype)
        editor = NullText(backbone, Ddim(backbone.schedule, 2), guidance=3.0)
        editor.schedule = replace(editor.schedule, iterations=4)
        image = drawn(1, 3, 64, 64).clamp(-1, 1)
        losses.append(editor.fit(editor.source(image, ["a red star"])).losses)
    exact, half = (torch.tensor([loss for step in found for of_image in step for loss in of_image]) for found in losses)
    torch.testing.assert_close(half, exact, rtol=0.03, atol=1e-5)


def test_pivots_in_float16_are_near(backbones: dict[str, Backbone]):
    x0, found = drawn(2, 4, 16, 16), []
    for name in ("float32", "float16"):
        backbone = backbones[name]
        found.append(ddim_pivots(backbone, Ddim(backbone.schedule, 5), x0, backbone.encode_text(CAPTIONS[:2])))
    assert (found[0] - found[1]).abs().max() < 0.01 * found[0].abs().max()
