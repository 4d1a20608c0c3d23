"""The noise encoder at step 0 against the generator that it comes from, and its Gaussian against torch's."""

import copy

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models.backbone import Backbone
from models.noise_encoder import LOGVAR_RANGE, NoiseEncoder, NoisePosterior
from models.options import INITIAL_LOGVAR
from models.schedule import NoiseSchedule
from models.text import Prompt

STEPS = torch.tensor([999, 749, 499, 249])


@pytest.fixture
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


@pytest.fixture
def prompt(backbone: Backbone) -> Prompt:
    return backbone.encode_text(["one", "two", "three", "four"])


def latents(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 4, 16, 16, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_initial_mean_is_the_generators_noise_prediction_at_x0(
    backbone: Backbone, prompt: Prompt, prediction_type: str
):
    schedule = NoiseSchedule(backbone.schedule.alphas_cumprod, prediction_type)
    encoder = NoiseEncoder.from_generator(backbone.unet, schedule)
    x0, x0_prev = latents()
    expected = schedule.predict_noise(x0, backbone.predict(x0, prompt, STEPS), STEPS)
    for previous in (torch.zeros_like(x0), x0_prev, 100 * x0_prev):
        mean, logvar = encoder(x0, previous, prompt, STEPS)
        assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
        assert torch.equal(logvar, torch.full_like(x0, INITIAL_LOGVAR))


@torch.no_grad()
def test_initial_logvar_is_a_choice(backbone: Backbone, prompt: Prompt):
    encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule, initial_logvar=-1.5)
    x0, x0_prev = latents()
    posterior = encoder.posterior(x0, x0_prev, prompt, STEPS)
    assert torch.equal(posterior.logvar, torch.full_like(x0, -1.5))


def test_generator_is_left_as_it_was(backbone: Backbone):
    before = copy.deepcopy(backbone.unet)
    encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule)
    for weight in encoder.parameters():
        weight.data.add_(1.0)
    assert dict(backbone.unet.config) == dict(before.config)
    for name, weight in backbone.unet.state_dict().items():
        assert torch.equal(weight, before.state_dict()[name]), name
    backbone.assert_frozen()


def test_every_weight_is_trainable_float32_whatever_the_generator(any_backbone: str):
    backbone = Backbone.load(any_backbone, dtype=torch.bfloat16)
    encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in encoder.parameters())
    assert encoder.unet.config.in_channels == encoder.unet.config.out_channels == 8


def test_where_x_t_is_pure_noise_the_mean_is_learned_by_an_addition(backbone: Backbone, prompt: Prompt):
    """There a velocity or v says nothing of the noise: x_t + a v with a = 0."""
    abar = backbone.schedule.alphas_cumprod.clone()
    abar[999] = 0.0
    schedule = NoiseSchedule(abar, "v_prediction")
    encoder = NoiseEncoder.from_generator(backbone.network, schedule, shared=True)
    x0, x0_prev = latents()
    mean, logvar = encoder(x0, x0_prev, prompt, STEPS)
    expected = schedule.predict_noise(x0, backbone.predict(x0, prompt, STEPS), STEPS)
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(mean[0], x0[0]) and torch.equal(logvar, torch.full_like(x0, INITIAL_LOGVAR))
    mean[0].sum().backward()
    gradient = encoder.unet.conv_out.weight.grad
    assert gradient[:8].abs().max() == 0 and gradient[8:].abs().amax((1, 2, 3)).min() > 0


@torch.no_grad()
def test_bfloat16_autocast_is_close_to_float32(backbone: Backbone, prompt: Prompt):
    encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule)
    x0, x0_prev = latents()
    exact, _ = encoder(x0, x0_prev, prompt, STEPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse, logvar = encoder(x0, x0_prev, prompt.to(torch.bfloat16), STEPS)
    assert coarse.dtype == logvar.dtype == torch.float32
    assert (coarse - exact).std() < 0.05 * exact.std()


@torch.no_grad()
def test_logvar_stays_in_its_range(backbone: Backbone, prompt: Prompt):
    x0, x0_prev = latents()
    for initial, bound in ((-1000.0, LOGVAR_RANGE[0]), (1000.0, LOGVAR_RANGE[1])):
        encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule, initial_logvar=initial)
        assert encoder(x0, x0_prev, prompt, STEPS)[1].unique().tolist() == [bound]


def test_kl_is_that_of_torch_summed_over_elements():
    mean, logvar = (x.double() for x in latents())
    normal = Normal(mean, torch.exp(0.5 * logvar))
    expected = kl_divergence(normal, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum((1, 2, 3))
    torch.testing.assert_close(NoisePosterior(mean, logvar).kl(), expected, rtol=1e-12, atol=1e-12)
    assert NoisePosterior(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)).kl().tolist() == [0.0, 0.0]


def test_samples_have_the_mean_and_variance():
    mean, logvar = torch.tensor([[[[0.5, -3.0]]]]), torch.tensor([[[[-2.0, 1.0]]]])
    noise = torch.randn(200_000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    samples = NoisePosterior(mean, logvar).sample(noise)
    torch.testing.assert_close(samples.mean(0, keepdim=True), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(samples.var(0, keepdim=True), logvar.exp(), rtol=0.02, atol=0)
    assert torch.equal(NoisePosterior(mean, logvar).sample(torch.zeros_like(mean)), mean)
