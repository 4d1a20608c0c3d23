"""The other TurboEdit against its official form written down in float64, and what it promises."""

import math

import pytest
import torch
from torch import Tensor

from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents, size_ratio
from eval.editors.randomness import image_keys, image_noise
from eval.editors.shifted_ddpm import FOUR_STEPS, ShiftedDdpm, ShiftedSteps
from models.backbone import Backbone
from models.schedule import trailing_timesteps
from models.text import Prompt
from tests.plain_attention import ExactGenerator
from tests.test_turboedit_pipeline import pictures

SOURCE, TARGET = "a red circle", "a blue star"
THREE_STEPS = ShiftedSteps((799, 499, 199), (599, 299, 0))  # the official code's other setting
SETTINGS = pytest.mark.parametrize("steps", [FOUR_STEPS, THREE_STEPS])


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone, dtype=torch.float64)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ddpm_mean(exact: ExactGenerator, x: Tensor, prompt: Prompt, t: int, s: int) -> Tensor:
    """Ho et al. 2020, eq. 7, with the step's own alpha and beta."""
    a, b = exact.abar[t], exact.abar[s]
    alpha, beta = a / b, 1 - a / b
    x0, _ = exact.x0_and_noise(x, prompt, t)
    return b**0.5 * beta / (1 - a) * x0 + alpha**0.5 * (1 - b) / (1 - a) * x


def test_steps_are_those_of_the_official_code():
    trailing = trailing_timesteps(5)
    assert FOUR_STEPS.timesteps == trailing[1:]
    assert FOUR_STEPS.noised == tuple(max(0, t - 200) for t in trailing[1:])
    with pytest.raises(ValueError, match="2 timesteps but 1 noised"):
        ShiftedSteps((799, 399), (0,))


@SETTINGS
@pytest.mark.parametrize("weight", [None, 0.5])
def test_edit_is_the_official_step(backbone: Backbone, steps: ShiftedSteps, weight: float | None):
    editor = ShiftedDdpm(backbone, steps, max_norm=2.0, seed=5)
    found = editor.edit(editor.invert(pictures(1), (SOURCE,)), EditRequest((TARGET,), strength=weight))

    exact = ExactGenerator(backbone.unet, backbone.schedule.alphas_cumprod, backbone.schedule.prediction_type)
    source, target = (backbone.encode_text([text]) for text in (SOURCE, TARGET))
    x0, keys = backbone.encode_image(pictures(1)).double(), image_keys(pictures(1))
    latents = [
        exact.abar[t] ** 0.5 * x0 + (1 - exact.abar[t]) ** 0.5 * image_noise(keys, f"shifted {t}", 5, x0)
        for t in steps.noised[:-1]
    ]
    latents += [x0, x0]
    w = 1.5 if weight is None else weight
    x = latents[0]
    for i, t in enumerate(steps.timesteps):
        last = i + 1 == len(steps.timesteps)
        s = -1 if last else steps.timesteps[i + 1]
        mean = ddpm_mean(exact, latents[i], source, t, s)
        limit = 2.0 * (4 * 16 * 16 / (4 * 64 * 64)) ** 0.5
        g = min(1.0, limit / (latents[i + 1] - mean).norm().item()) if last else 1.0
        edited = ddpm_mean(exact, x, source, t, s)
        x = g * latents[i + 1] + (edited - g * mean) + w * (ddpm_mean(exact, x, target, t, s) - edited)
    assert g < 1, "the last noise has to be clipped for this test to see it"
    torch.testing.assert_close(found, decode_latents(backbone, x.float()), atol=1e-3, rtol=0)


@SETTINGS
@pytest.mark.parametrize(("prompt", "weight"), [(SOURCE, 1.5), (TARGET, 0.0)])
def test_without_a_difference_or_a_weight_the_source_comes_back(
    backbone: Backbone, steps: ShiftedSteps, prompt: str, weight: float
):
    editor = ShiftedDdpm(backbone, steps, max_norm=math.inf)
    inversion = editor.invert(pictures(2), (SOURCE, TARGET))
    latent = backbone.encode_image(pictures(2))
    torch.testing.assert_close(editor.reconstruct(inversion)[-1], latent, atol=1e-5, rtol=0)
    other = TARGET if prompt == SOURCE else SOURCE
    images = editor.edit(inversion, EditRequest((prompt, other), strength=weight))
    torch.testing.assert_close(images, decode_latents(backbone, latent), atol=1e-3, rtol=0)


def test_the_last_noise_is_clipped_to_its_norm(backbone: Backbone):
    """The reconstruction then lies on the way from the generator's estimate to the image."""
    inversion = ShiftedDdpm(backbone).invert(pictures(1), (SOURCE,))
    estimate, image = (ShiftedDdpm(backbone, max_norm=norm).reconstruct(inversion)[-1] for norm in (0.0, math.inf))
    clipped = ShiftedDdpm(backbone, max_norm=8.0).reconstruct(inversion)[-1]
    assert size_ratio(image) == 1 / 16
    assert (clipped - estimate).norm().item() == pytest.approx(8.0 / 4, rel=1e-4)
    way, whole = clipped - estimate, image - estimate
    assert torch.cosine_similarity(way.flatten(), whole.flatten(), dim=0).item() == pytest.approx(1, abs=1e-5)


def test_the_seed_decides(backbone: Backbone):
    edits = [
        editor.edit(editor.invert(pictures(1), (SOURCE,)), EditRequest((TARGET,)))
        for editor in (ShiftedDdpm(backbone, seed=seed) for seed in (0, 0, 1))
    ]
    assert torch.equal(edits[0], edits[1]) and not torch.allclose(edits[0], edits[2], atol=1e-3)
