"""StyleDiffusion's step and fit: losses against a plain reference, images on their own, the official schedule."""

import math

import pytest
import torch
from torch import Tensor

from eval.metrics.pixels import psnr
from eval.scene_edits.edit_set import sample_edit_set
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots, matching, predict_noise
from models.options import FitSchedule, StyleObjective
from models.prompt_to_prompt import Trajectory, reconstruct
from models.stylediffusion import GuidedStep, amortised, fit_modulations
from models.text import Prompt
from models.value_mapper import AmortisedMapper, Modulation

STEPS = 4


class World:
    """Two images on a tiny backbone, with pivots and made-up image tokens."""

    def __init__(self, folder: str) -> None:
        draw = torch.Generator().manual_seed(0)
        self.backbone = Backbone.load(folder)
        self.ddim = Ddim(self.backbone.schedule, STEPS)
        self.tokens = torch.randn(2, 5, 16, generator=draw)
        self.prompt = self.backbone.encode_text(["a red circle", "grass"])
        self.null = matching(self.backbone.encode_text([""]), self.prompt)
        self.x0 = torch.randn(2, 4, 16, 16, generator=draw)
        self.pivots = ddim_pivots(self.backbone, self.ddim, self.x0, self.prompt)

    def step(self, **objective) -> GuidedStep:
        return GuidedStep(
            self.backbone, self.ddim, StyleObjective(**{"guidance": 3.0, "attention_side": 8, **objective})
        )

    def rows(self, rows: slice) -> tuple[Tensor, Tensor, Prompt, Prompt]:
        return self.tokens[rows], self.pivots[:, rows], self.prompt[rows], self.null[rows]


@pytest.fixture(scope="module")
def world(tiny_sd_backbone) -> World:
    return World(tiny_sd_backbone)


def text_itself(world: World) -> Modulation:
    return Modulation(torch.ones_like(world.prompt.embeds), torch.zeros_like(world.prompt.embeds))


def test_the_text_itself_gives_plain_guided_ddim(world):
    steps = torch.tensor([1, 1])
    x = world.pivots[1]
    step = world.step()
    reference = step.reference(x, x, steps, world.prompt, world.null)
    rec, attention = step.losses(x, world.pivots[2], steps, world.prompt, reference, text_itself(world))
    with torch.no_grad():
        t = world.ddim.timesteps[1]
        null, text = (predict_noise(world.backbone, x, t, p) for p in (world.null, world.prompt))
        expected = world.ddim.move(x, null + 3.0 * (text - null), 1, 2)
    torch.testing.assert_close(rec, (expected - world.pivots[2]).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(attention, torch.zeros(2), atol=1e-9, rtol=0)  # the same maps at the same latent


def test_maps_are_compared_with_those_at_the_pivot(world):
    steps, step = torch.tensor([2, 2]), world.step()
    x = world.pivots[2] + 0.3
    reference = step.reference(x, world.pivots[2], steps, world.prompt, world.null)
    _, attention = step.losses(x, world.pivots[3], steps, world.prompt, reference, text_itself(world))
    at_x = step.reference(x, x, steps, world.prompt, world.null).maps
    expected = sum((at_x[name] - reference.maps[name]).square().mean((1, 2, 3)) for name in at_x)
    assert len(at_x) == 3 and all(name.startswith(("down_blocks", "up_blocks")) for name in at_x)
    torch.testing.assert_close(attention, expected)
    assert attention.min() > 0


def test_rows_may_be_at_steps_of_their_own(world):
    step, steps = world.step(), torch.tensor([0, 3])
    x = torch.stack([world.pivots[0, 0], world.pivots[3, 1]])
    target = torch.stack([world.pivots[1, 0], world.pivots[4, 1]])
    reference = step.reference(x, x, steps, world.prompt, world.null)
    rec, _ = step.losses(x, target, steps, world.prompt, reference, text_itself(world))
    for row, number in enumerate((0, 3)):
        alone = torch.tensor([number])
        part = slice(row, row + 1)
        reference = step.reference(x[part], x[part], alone, world.prompt[part], world.null[part])
        embeds = world.prompt.embeds[part]
        same = Modulation(torch.ones_like(embeds), torch.zeros_like(embeds))
        expected, _ = step.losses(x[part], target[part], alone, world.prompt[part], reference, same)
        torch.testing.assert_close(rec[part], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("into", ["values", "keys", "both"])
def test_gradients_reach_the_modulation_and_the_backbone_stays(world, into):
    step, steps = world.step(into=into), torch.tensor([1, 1])
    x = world.pivots[1]
    shift = torch.zeros_like(world.prompt.embeds, requires_grad=True)
    reference = step.reference(x, x, steps, world.prompt, world.null)
    rec, attention = step.losses(
        x, world.pivots[2], steps, world.prompt, reference, Modulation(torch.ones_like(shift), shift)
    )
    (rec + attention).sum().backward()
    assert shift.grad.abs().sum() > 0
    world.backbone.assert_frozen()
    assert all(weight.grad is None for weight in world.backbone.unet.parameters())


def test_official_schedule():
    schedule = FitSchedule()
    found = [schedule.at(step) for step in range(30)]
    assert [iterations for iterations, _, _ in found[:5]] == [100, 91, 82, 75, 68]
    assert sum(iterations for iterations, _, _ in found) == 1015
    assert sum(schedule.at(step)[0] for step in range(50)) == 1071
    assert found[10][1] == pytest.approx(9e-3) and found[10][2] == pytest.approx(1e-5 + 10 * 2e-5)


def psnr_of(world: World, latent: Tensor) -> Tensor:
    return -10 * torch.log10((latent - world.x0).square().mean((1, 2, 3)))


@pytest.mark.parametrize("form", ["modulate", "replace", "direct"])
def test_fit_follows_the_pivots_better_than_ddim(world, form):
    torch.manual_seed(0)
    fitted = fit_modulations(world.step(), *world.rows(slice(None)), FitSchedule(form=form, iterations=10))
    plain = Trajectory(world.pivots[0], world.prompt, (world.null,) * STEPS)
    ddim = reconstruct(world.backbone, world.ddim, plain, 3.0)[-1]
    assert (psnr_of(world, fitted.latents[-1]) > psnr_of(world, ddim)).all()  # random weights hardly heed the text
    trajectory = Trajectory(world.pivots[0], world.prompt, (world.null,) * STEPS, fitted.modulations)
    again = reconstruct(world.backbone, world.ddim, trajectory, 3.0)
    torch.testing.assert_close(again, fitted.latents, rtol=1e-3, atol=1e-4)
    assert fitted.iterations.max() <= 10 and fitted.losses.shape == (STEPS, 2)


def test_a_short_fit_on_the_miniature_is_decibels_better_than_ddim():
    backbone = Backbone.load("models/miniature/teacher")
    edits = sample_edit_set("test", 1)
    images = edits.sources[:2]
    ddim = Ddim(backbone.schedule, 5)
    prompt = backbone.encode_text(edits.source_prompts[:2])
    null = matching(backbone.encode_text([""]), prompt)
    x0 = backbone.encode_image(images)
    pivots = ddim_pivots(backbone, ddim, x0, prompt)
    step = GuidedStep(backbone, ddim, StyleObjective(guidance=3.0, attention_side=8))
    torch.manual_seed(0)
    fitted = fit_modulations(
        step, ImageTokens.load("models/miniature/clip")(images), pivots, prompt, null, FitSchedule(iterations=8)
    )
    plain = reconstruct(backbone, ddim, Trajectory(pivots[0], prompt, (null,) * len(ddim)), 3.0)
    round_trip = backbone.decode(x0)
    ours, theirs = (psnr(backbone.decode(latents[-1]), round_trip) for latents in (fitted.latents, plain))
    assert (ours > theirs + 3).all()


def test_an_image_is_fitted_alike_in_any_batch(world):
    schedule = FitSchedule(iterations=5, stop=0.018)  # one image stops before the other
    torch.manual_seed(0)
    both = fit_modulations(world.step(), *world.rows(slice(None)), schedule)
    torch.manual_seed(0)
    alone = fit_modulations(world.step(), *world.rows(slice(1, 2)), schedule)
    assert (both.iterations[:, 0] > both.iterations[:, 1]).any()
    assert torch.equal(both.iterations[:, 1:], alone.iterations)
    torch.testing.assert_close(both.latents[:, 1:], alone.latents, rtol=1e-3, atol=1e-4)


def test_an_image_that_is_good_enough_stops(world):
    torch.manual_seed(0)
    fitted = fit_modulations(world.step(), *world.rows(slice(None)), FitSchedule(iterations=5, stop=1e9))
    assert (fitted.iterations == 1).all()
    assert not fitted.losses.isnan().any()


def test_a_fit_without_iterations_is_where_it_started(world):
    torch.manual_seed(1)
    mapper = AmortisedMapper((5, 16), (77, 16), width=8, depth=1, heads=2)
    for parameter in mapper.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    start = amortised(mapper, world.tokens, world.ddim, world.prompt)
    fitted = fit_modulations(world.step(), *world.rows(slice(None)), FitSchedule(iterations=0), start)
    for before, after in zip(start, fitted.modulations, strict=True):
        assert torch.equal(before.scale, after.scale) and torch.equal(before.shift, after.shift)
    refined = fit_modulations(world.step(), *world.rows(slice(None)), FitSchedule(iterations=5), start)
    assert (psnr_of(world, refined.latents[-1]) > psnr_of(world, fitted.latents[-1])).all()
    assert all(math.isfinite(value) for value in refined.losses.flatten().tolist())


def test_values_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="guidance is 0"):
        StyleObjective(guidance=0.5)
    with pytest.raises(ValueError, match="iterations is -1"):
        FitSchedule(iterations=-1)
