"""Editors on flows: FlowEdit and RF-Inversion against their papers' lines, and DDPM inversion from pure noise."""

import math

import pytest
import torch
from torch import Tensor

from eval.editors.ddpm import Ddpm
from eval.editors.editor import EditRequest, measured
from eval.editors.few_steps import decode_latents, generator_of
from eval.editors.flow import FlowEdit, RfInversion
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.text import Prompt
from tests.tiny_editing import FLOW_TIMESTEPS, tiny_pipeline

SOURCES, TARGETS = ("a red circle", "a dog"), ("a blue circle", "a cat")
LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("z_image", "flux2")]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module", params=["sd3", "sana", *LONG])
def generator(request: pytest.FixtureRequest) -> FewStepGenerator:
    """A rectified and a trigonometric flow."""
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return FewStepGenerator(Backbone.load(folder), [float(t) for t in FLOW_TIMESTEPS[request.param].split()])


class Plain:
    """A flow as the papers have it: sigma in [0, 1], x = (1 - sigma) x0 + sigma eps, the network giving eps - x0.

    A trigonometric flow at the angle t has sigma = tan t / (1 + tan t), its x being sqrt(1 / ((1 - sigma)^2 + sigma^2))
    times as long; its network gives cos t eps - sin t x0.
    """

    def __init__(self, generator: FewStepGenerator) -> None:
        self.backbone = generator.backbone
        self.timesteps = generator.timesteps
        self.trigonometric = generator.schedule.kind == "trigonometric"

    def sigma(self, t: float) -> float:
        return 1 / (1 + math.tan(math.pi / 2 - t)) if self.trigonometric else t

    def grid(self) -> list[float]:
        return [*map(self.sigma, self.timesteps), 0.0]

    def velocity(self, x: Tensor, step: int, prompt: Prompt) -> Tensor:
        t, sigma = self.timesteps[step], self.sigma(self.timesteps[step])
        times = torch.full((len(x),), t)
        if not self.trigonometric:
            return self.backbone.predict(x, prompt, times)
        at = x / ((1 - sigma) ** 2 + sigma**2) ** 0.5
        output = self.backbone.predict(at, prompt, times)
        x0 = math.cos(t) * at - math.sin(t) * output
        return math.sin(t) * at + math.cos(t) * output - x0


@pytest.mark.parametrize(("n_max", "n_avg"), [(3, 1), (4, 2)])
def test_flowedit_is_algorithm_1(generator: FewStepGenerator, images: Tensor, n_max: int, n_avg: int):
    plain, latent, keys = Plain(generator), generator.backbone.encode_image(images), image_keys(images)
    source, target = (generator.backbone.encode_text(texts) for texts in (SOURCES, TARGETS))
    grid, z_fe = plain.grid(), latent
    for step in range(4 - n_max, 4):
        sigma = grid[step]
        total = torch.zeros_like(latent)
        for draw in range(n_avg):
            n = image_noise(keys, f"flowedit {generator.timesteps[step]} {draw}", 5, latent)
            z_src = (1 - sigma) * latent + sigma * n
            z_tar = z_fe + z_src - latent
            total += (plain.velocity(z_tar, step, target) - plain.velocity(z_src, step, source)) / n_avg
        z_fe = z_fe + (grid[step + 1] - sigma) * total
    editor = FlowEdit(generator, n_avg)
    meter = measured(editor)
    inversion = meter.invert(images, SOURCES)
    edited = meter.edit(inversion, EditRequest(TARGETS, strength=None if n_max == 3 else n_max, seed=5))
    torch.testing.assert_close(edited, decode_latents(generator.backbone, z_fe), atol=1e-4, rtol=0)
    assert (meter.invert_costs[0].nfe, meter.edit_costs[0].nfe) == (0, 2 * n_max * n_avg)


def test_flowedit_leaves_the_picture_where_nothing_is_asked(generator: FewStepGenerator, images: Tensor):
    editor = FlowEdit(generator)
    inversion = editor.invert(images, SOURCES)
    trip = decode_latents(generator.backbone, inversion.state.latent)
    assert torch.equal(editor.edit(inversion, EditRequest(TARGETS, strength=0)), trip)
    torch.testing.assert_close(editor.edit(inversion, EditRequest(SOURCES)), trip, atol=1e-4, rtol=0)
    for strength in (2.5, 5, -1):
        with pytest.raises(ValueError, match=f"strength is {strength}; expected a number of steps from 0 to 4"):
            editor.edit(inversion, EditRequest(TARGETS, strength=strength))


def test_rf_inversion_is_the_papers_odes(generator: FewStepGenerator, images: Tensor):
    """Equations 8 and 15 in the paper's own time: upwards t = sigma, downwards t = 1 - sigma."""
    plain, y_0 = Plain(generator), generator.backbone.encode_image(images)
    null, target = (generator.backbone.encode_text(texts) for texts in (("", ""), TARGETS))
    grid, gamma, eta = plain.grid(), 0.5, 0.9
    y_1, y = image_noise(image_keys(images), "rf_inversion", 0, y_0), y_0
    for step in (3, 2, 1, 0):
        t, dt = grid[step + 1], grid[step] - grid[step + 1]
        u = plain.velocity(y, step, null)
        y = y + (u + gamma * ((y_1 - y) / (1 - t) - u)) * dt
    x = y
    for step in range(4):
        t, dt = 1 - grid[step], grid[step] - grid[step + 1]
        v = -plain.velocity(x, step, target)
        x = x + (v + (eta if step < 1 else 0) * ((y_0 - x) / (1 - t) - v)) * dt
    meter = measured(RfInversion(generator))
    inversion = meter.invert(images, SOURCES)
    torch.testing.assert_close(inversion.noises[generator.timesteps[0]], y, atol=1e-4, rtol=1e-4)
    edited = meter.edit(inversion, EditRequest(TARGETS))
    torch.testing.assert_close(edited, decode_latents(generator.backbone, x), atol=1e-3, rtol=0)
    assert (meter.invert_costs[0].nfe, meter.edit_costs[0].nfe) == (4, 4)


def test_full_control_leads_to_the_noise_and_back_to_the_picture(generator: FewStepGenerator, images: Tensor):
    editor = RfInversion(generator, gamma=1.0, eta=1.0)
    inversion = editor.invert(images, SOURCES)
    latent = generator.backbone.encode_image(images)
    noise = image_noise(image_keys(images), "rf_inversion", 0, latent)
    sigma = Plain(generator).grid()[0]
    torch.testing.assert_close(inversion.state.noise, (1 - sigma) * latent + sigma * noise, atol=1e-4, rtol=1e-4)
    back = editor.edit(inversion, EditRequest(TARGETS, strength=0.0))
    torch.testing.assert_close(back, decode_latents(generator.backbone, latent), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"strength is 1\.2; expected a share"):
        editor.edit(inversion, EditRequest(TARGETS, strength=1.2))


def test_ddpm_inversion_of_a_flow_is_exact_with_its_residual(generator: FewStepGenerator, images: Tensor):
    """Where a step begins in pure noise nothing of x_t stays: z is then the re-noising's own, as in TurboEdit."""
    editor = Ddpm(generator, residual=True)
    inversion = editor.invert(images, SOURCES)
    latent, keys = generator.backbone.encode_image(images), image_keys(images)
    torch.testing.assert_close(editor.reconstruct(inversion)[-1], latent, atol=1e-4, rtol=0)
    first, second = generator.timesteps[:2]
    x_t = image_noise(keys, f"ddpm {first}", 0, latent)
    x0 = generator.predict_x0(x_t, inversion.state.prompt, torch.full((2,), first))
    a, b = generator.schedule.coefficients(torch.full((2,), second), latent)
    x_s = a * latent + b * image_noise(keys, f"ddpm {second}", 0, latent)
    torch.testing.assert_close(inversion.state.noises[0], (x_s - a * x0) / b, atol=1e-3, rtol=1e-3)


def test_models_without_a_flow_are_refused(tiny_backbone: str):
    generator = generator_of(tiny_pipeline(tiny_backbone))
    for editor, name in ((FlowEdit, "FlowEdit"), (RfInversion, "RF-Inversion")):
        with pytest.raises(ValueError, match=f"{name} is a method for flows; the generator's schedule is variance"):
            editor(generator)
