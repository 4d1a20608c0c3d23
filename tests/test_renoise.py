"""ReNoise: its sampler against diffusers', its search and regularisation against the official form written down."""

import math

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor

from eval.editors.ddpm import ddpm_posterior
from eval.editors.editor import EditRequest, measured
from eval.editors.few_steps import CLEAN, ancestral_step, decode_latents, downwards
from eval.editors.randomness import image_keys, image_noise
from eval.editors.renoise import PatchRegularisation, Renoise, Search, moved_towards, patch_divergence
from eval.metrics.pixels import psnr
from eval.scene_edits.edit_set import EditSet, edit_set
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.options import TURBO_TIMESTEPS
from models.schedule import NoiseSchedule
from tests.plain_attention import ExactGenerator
from tests.test_turboedit_pipeline import pictures
from tests.tiny_editing import one_edit_of_each_kind

BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
SOURCE, TARGET = "a red circle", "a blue star"


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone, dtype=torch.float64)


@pytest.fixture(scope="module")
def generator(backbone: Backbone) -> FewStepGenerator:
    return FewStepGenerator(backbone)


@pytest.fixture(scope="module")
def student() -> FewStepGenerator:
    return FewStepGenerator(Backbone.load("models/miniature/student"))


@pytest.fixture(scope="module")
def edits() -> EditSet:
    return edit_set(one_edit_of_each_kind("validation")[:3])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_sampler_is_diffusers_euler_ancestral(prediction_type: str, num_steps: int):
    """Its samples are ours over sqrt(abar); it scales them itself before they enter a network."""
    stock = EulerAncestralDiscreteScheduler(**BETAS, prediction_type=prediction_type, timestep_spacing="trailing")
    stock.set_timesteps(num_steps)
    schedule = NoiseSchedule.from_scheduler(stock)
    x, output = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    for stock_t, (t, s) in zip(stock.timesteps, downwards([int(t) for t in stock.timesteps]), strict=True):
        root = schedule.alphas_cumprod[t].sqrt().item()
        root_after = 1.0 if s == CLEAN else schedule.alphas_cumprod[s].sqrt().item()
        torch.testing.assert_close(stock.scale_model_input(x / root, stock_t), x, atol=1e-5, rtol=1e-5)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)
        found = stock.step(output, stock_t, x / root, generator=torch.Generator().manual_seed(7))
        steps = torch.full((2,), t)
        noise = schedule.predict_noise(x, output, steps)
        moved = ancestral_step(schedule, t, s).forward(x, noise, z)
        torch.testing.assert_close(moved, found.prev_sample * root_after, atol=1e-4, rtol=1e-4)
        x = moved


def test_a_step_can_be_gone_back_and_is_ddpms():
    schedule = NoiseSchedule.from_scheduler(EulerAncestralDiscreteScheduler(**BETAS))
    x, noise, z = (draw(1, 4, 8, 8, seed=seed) for seed in range(3))
    for t, s in downwards(TURBO_TIMESTEPS):
        step = ancestral_step(schedule, t, s)
        torch.testing.assert_close(step.back(step.forward(x, noise, z), noise, z), x, atol=1e-10, rtol=0)
        torch.testing.assert_close(step.back(step.forward(x, noise, None), noise, None), x, atol=1e-10, rtol=0)
        a = schedule.alphas_cumprod[t].item()
        x0 = (x - (1 - a) ** 0.5 * noise) / a**0.5
        mean, sigma = ddpm_posterior(schedule, x, x0, t, s)
        torch.testing.assert_close(step.forward(x, noise, None), mean, atol=1e-10, rtol=0)
        assert step.sigma == pytest.approx(sigma, abs=1e-12)


def slow_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """Of one image [C, h, w]; patches one after another, with Bessel's correction by hand."""
    total = torch.zeros((), dtype=noise.dtype)
    for channel in range(noise.shape[0]):
        for top in range(0, noise.shape[1] - 3, 4):
            for left in range(0, noise.shape[2] - 3, 4):
                moments = []
                for image in (noise, reference):
                    patch = image[channel, top : top + 4, left : left + 4]
                    mean = patch.sum() / 16
                    moments.append((mean, ((patch - mean) ** 2).sum() / 15 + 1e-6))
                (m0, v0), (m1, v1) = moments
                total = total + (torch.log(v1 / v0) + (v0 + (m0 - m1) ** 2) / v1 - 1).abs()
    return total


def slow_correlation(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Of one image [C, h, w], shifts drawn by channel and level as pix2pix-zero's code does."""
    total = torch.zeros((), dtype=noise.dtype)
    for channel in noise:
        while True:
            shift = int(torch.randint(channel.shape[0] // 2, (1,), generator=generator))
            for dim in (0, 1):
                total = total + (channel * torch.roll(channel, shift, dim)).mean() ** 2
            if channel.shape[0] <= 8:
                break
            channel = channel.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).mean((1, 3))
    return total


def slow_regularisation(noise: Tensor, reference: Tensor, generator: torch.Generator) -> Tensor:
    """The official loop with its constants, on a latent of a sixteenth of the official size."""
    with torch.enable_grad():
        for _ in range(4):
            x = noise.detach().requires_grad_()
            slow_divergence(x, reference).backward()
            noise = noise - 0.065 * x.grad.clip(-100, 100)
            for _ in range(5):
                x = noise.detach().requires_grad_()
                slow_correlation(x, generator).backward()
                noise = noise - 20 / 16 * x.grad / 5
    return noise


def test_regularisation_is_the_official_loop_for_each_image():
    noise, reference = 1.5 * draw(2, 4, 16, 16) + 0.2, draw(2, 4, 16, 16, seed=1)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    found = PatchRegularisation()(noise, reference, generators)
    for row, seed in enumerate((3, 4)):
        expected = slow_regularisation(noise[row], reference[row], torch.Generator().manual_seed(seed))
        torch.testing.assert_close(found[row], expected, atol=1e-9, rtol=0)
    assert not torch.allclose(found, noise, atol=1e-2)
    assert not found.requires_grad


def test_patch_divergence_is_zero_for_equal_statistics():
    """Patches may be turned, they need not be equal; a remainder at the edge does not count."""
    noise = draw(2, 4, 18, 18)
    turned = noise.clone()
    turned[..., :16, :16] = noise[..., :16, :16].unflatten(3, (4, 4)).flip(-1).flatten(3)
    turned[..., 16:, :] += 5
    torch.testing.assert_close(patch_divergence(turned, noise), torch.zeros(2).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(patch_divergence(noise, 2 * noise)[1], slow_divergence(noise[1], 2 * noise[1]))


def test_a_noise_moves_straight_and_not_too_far():
    noise = torch.zeros(3, 1, 2, 2)
    needed = torch.ones(3, 1, 2, 2) * torch.tensor([0.0, 0.5, 4.0]).view(3, 1, 1, 1)
    moved = moved_towards(noise, needed, 2.0)
    torch.testing.assert_close(moved.flatten(1)[:, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(moved_towards(noise, needed, math.inf), needed)


def test_search_is_the_official_iteration_in_its_own_space(backbone: Backbone, generator: FewStepGenerator):
    """y = x / sqrt(abar), as diffusers' scheduler has it; float64, without regularisation."""
    editor = Renoise(generator, Search(3, (1, 3)), Search(2, (0, 3)), regularisation=None, seed=5)
    found = editor.invert(pictures(1), (SOURCE,)).state

    exact = ExactGenerator(backbone.unet, backbone.schedule.alphas_cumprod, backbone.schedule.prediction_type)
    prompt, keys = backbone.encode_text([SOURCE]), image_keys(pictures(1))
    y = backbone.encode_image(pictures(1)).double()
    timesteps = (*TURBO_TIMESTEPS, -1)
    for i in reversed(range(4)):
        t, s = timesteps[i], timesteps[i + 1]
        r_t, r_s = ((1 - exact.abar[k]) ** 0.5 / exact.abar[k] ** 0.5 for k in (t, s))
        up = (r_s**2 * (r_t**2 - r_s**2) / r_t**2) ** 0.5
        down = (r_s**2 - up**2) ** 0.5
        z = image_noise(keys, f"renoise {t}", 5, y) if i < 3 else torch.zeros_like(y)

        def seen(y_t: Tensor, r_t: float = r_t, t: int = t) -> Tensor:
            return exact.x0_and_noise(y_t / (r_t**2 + 1) ** 0.5, prompt, t)[1]

        guess, noises = y, []
        for _ in range(4 if i < 3 else 3):
            noises.append(seen(guess))
            guess = y - noises[-1] * (down - r_t) - up * z
        average = torch.stack(noises[1:3] if i < 3 else noises).mean(0)
        y_t = y - average * (down - r_t) - up * z
        if i < 3:
            needed = (y - (y_t + seen(y_t) * (down - r_t))) / up
            expected = moved_towards(z, needed, 18 / 4)
            torch.testing.assert_close(found.noises[i].double(), expected, atol=1e-3, rtol=1e-3)
        y = y_t
        torch.testing.assert_close(found.latents[i].double(), y * exact.abar[t] ** 0.5, atol=1e-3, rtol=1e-3)


def test_with_full_correction_all_steps_but_the_last_are_exact(student: FewStepGenerator, edits: EditSet):
    editor = Renoise(student, Search(1, (1, 2)), reach=math.inf)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    latents = inversion.state.latents
    estimates = editor.reconstruct(inversion)
    x = latents[0]
    for i, (t, s) in enumerate(downwards(TURBO_TIMESTEPS)[:-1]):
        a = student.schedule.alphas_cumprod[t].item()
        noise = (x - a**0.5 * estimates[i]) / (1 - a) ** 0.5
        x = ancestral_step(student.schedule, t, s).forward(x, noise, inversion.state.noises[i])
        torch.testing.assert_close(x, latents[i + 1], atol=1e-3, rtol=0)
    last = student.predict_x0(latents[3], inversion.state.prompt, torch.full((3,), 249))
    torch.testing.assert_close(estimates[-1], last, atol=1e-3, rtol=0)
    assert torch.equal(latents[-1], student.backbone.encode_image(edits.sources))


def test_correction_and_iterations_improve_the_inversion(student: FewStepGenerator, edits: EditSet):
    sources, prompts = edits.sources[:1], edits.source_prompts[:1]
    trip = decode_latents(student.backbone, student.backbone.encode_image(sources))

    def fidelity(iterations: int, reach: float) -> float:
        search = Search(iterations, (iterations, iterations + 1))
        editor = Renoise(student, search, search, regularisation=None, reach=reach)
        estimate = editor.reconstruct(editor.invert(sources, prompts))[-1]
        return psnr(decode_latents(student.backbone, estimate), trip).mean().item()

    once, some, many = (fidelity(iterations, 0.0) for iterations in (0, 3, 6))
    assert once + 1 < some and some + 1 < many
    partly, fully = fidelity(3, 18.0), fidelity(3, math.inf)
    assert some + 1 < partly and partly + 5 < fully


def test_regularisation_keeps_noise_white(student: FewStepGenerator, edits: EditSet):
    """Neighbours in the noisiest latents have less in common."""
    whiteness = []
    for regularisation in (None, PatchRegularisation()):
        editor = Renoise(student, Search(1, (1, 2)), regularisation=regularisation)
        latent = editor.invert(edits.sources, edits.source_prompts).state.latents[0]
        assert latent.isfinite().all()
        whiteness.append((latent * latent.roll(1, 3)).mean((2, 3)).square().mean().item())
    assert whiteness[1] < whiteness[0]


def test_evaluations_follow_from_the_search(generator: FewStepGenerator):
    """Of four steps three are far: 9 + 1 and the reference and the correction; the last has 5 + 1 and the reference."""
    for options, expected in (
        ({}, 3 * (10 + 1 + 1) + 6 + 1),
        ({"search": Search(2, (0, 3)), "regularisation": None}, 3 * (3 + 1) + 6),
        ({"search": Search(2, (0, 3)), "regularisation": None, "reach": 0.0}, 3 * 3 + 6),
        ({"search": Search(0, (0, 1)), "nearly_clean": Search(0, (0, 1))}, 3 * (1 + 1 + 1) + 1 + 1),
    ):
        meter = measured(Renoise(generator, **options))
        inversion = meter.invert(pictures(2), (SOURCE, TARGET))
        meter.edit(inversion, EditRequest((TARGET, SOURCE)))
        assert (meter.invert_costs[0].nfe, meter.edit_costs[0].nfe) == (expected, 4)


@pytest.mark.parametrize("averaged", [(0, 0), (-1, 2), (2, 1), (0, 5)])
def test_an_average_of_nothing_is_refused(averaged: tuple[int, int]):
    with pytest.raises(ValueError, match="expected a first and an end among the 4 evaluations"):
        Search(3, averaged)
