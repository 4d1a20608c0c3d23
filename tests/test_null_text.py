"""Null-text inversion and the variants of its ablation: the official loop, early stops, losses, independent images."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, measured
from eval.editors.few_steps import decode_latents
from eval.editors.guided import EncodedSource, usual_sharing
from eval.editors.guided_ddim import GuidedDdim
from eval.editors.null_text import NullText, optimise
from eval.editors.null_text_variants import (
    GlobalNullText,
    PivotalTextualInversion,
    RandomPivot,
    TextualInversion,
    WithoutPivot,
    random_captions,
)
from eval.editors.options import NEVER, NullTextSchedule
from eval.scene_edits.edit_set import EditSet, edit_set
from models.backbone import Backbone
from models.ddim import Ddim
from tests.tiny_editing import one_edit_of_each_kind

STEPS, GUIDANCE = 3, 3.0
VARIANTS = [NullText, RandomPivot, GlobalNullText, WithoutPivot, TextualInversion, PivotalTextualInversion]


def without_stop(iterations: int, lr: float = 1e-2) -> NullTextSchedule:
    return NullTextSchedule(iterations, lr=lr, stop=NEVER, stop_growth=0.0)


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS)


@pytest.fixture(scope="module")
def edits() -> EditSet:
    return edit_set(one_edit_of_each_kind()[:3])


def make(kind: type[NullText], backbone: Backbone, ddim: Ddim, schedule: NullTextSchedule) -> NullText:
    return kind(backbone, ddim, GUIDANCE, schedule=schedule)


def source_of(editor: NullText, edits: EditSet, rows: slice = slice(None)) -> EncodedSource:
    return editor.source(edits.sources[rows], edits.source_prompts[rows])


def official(backbone: Backbone, pivots: Tensor, prompt: Tensor, null: Tensor, iterations: int) -> list[Tensor]:
    """Null embeddings of one image by the official code's loop around diffusers' scheduler."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=backbone.schedule.prediction_type,
    )
    scheduler.set_timesteps(STEPS)

    def output(x: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        return backbone.unet(x, t, encoder_hidden_states=embeds).sample

    found, x = [], pivots[0]
    for i, t in enumerate(scheduler.timesteps):
        null = null.clone().detach().requires_grad_()
        adam = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
        with torch.no_grad():
            conditional = output(x, t, prompt)
        for _ in range(iterations):
            unconditional = output(x, t, null)
            moved = scheduler.step(unconditional + GUIDANCE * (conditional - unconditional), t, x).prev_sample
            loss = F.mse_loss(moved, pivots[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < 1e-5 + i * 2e-5:
                break
        found.append(null.detach())
        with torch.no_grad():
            unconditional = output(x, t, null)
            x = scheduler.step(unconditional + GUIDANCE * (conditional - unconditional), t, x).prev_sample
    return found


def test_schedule_is_the_official_one():
    schedule = NullTextSchedule()
    assert schedule.at(0) == (10, 1e-2, 1e-5)
    assert schedule.at(49) == pytest.approx((10, 0.51e-2, 99e-5))
    with pytest.raises(ValueError, match="iterations is -1"):
        NullTextSchedule(iterations=-1)


def test_null_text_is_the_official_loop(backbone, ddim, edits):
    editor = make(NullText, backbone, ddim, NullTextSchedule(3))
    source = source_of(editor, edits, slice(1, 2))
    trajectory = editor.fit(source).trajectory
    expected = official(backbone, editor.pivots(source), source.prompt.embeds, source.null.embeds, 3)
    for null, reference in zip(trajectory.nulls, expected, strict=True):
        # Adam divides by the gradient's size: where that is rounding error, so is a part of the step
        assert (null.embeds - reference).abs().mean() < 1e-3
        assert (reference - source.null.embeds).abs().mean() > 5e-3


@pytest.mark.parametrize("kind", [NullText, PivotalTextualInversion, RandomPivot])
def test_loss_falls_at_every_timestep(backbone, ddim, edits, kind):
    editor = make(kind, backbone, ddim, without_stop(4, lr=5e-2))
    fit = editor.fit(source_of(editor, edits))
    assert len(fit.losses) == STEPS and fit.updates == [4 * STEPS] * 3
    for of_step in fit.losses:
        for losses in of_step:
            assert losses[-1] < losses[0]


def test_null_text_is_nearer_to_the_latent_than_ddim(backbone, ddim, edits):
    latent = backbone.encode_image(edits.sources)

    def error(editor: NullText | GuidedDdim) -> Tensor:
        found = editor.reconstruct(editor.invert(edits.sources, edits.source_prompts))[-1]
        return (found - latent).square().mean((1, 2, 3))

    unguided = error(GuidedDdim(backbone, ddim, GUIDANCE))
    assert (error(make(NullText, backbone, ddim, without_stop(4))) < unguided).all()


def test_evaluations_are_those_of_the_updates(backbone, ddim, edits):
    """n to invert; then the prompt and the last empty prompt once a timestep, and one for each update."""
    editor = make(NullText, backbone, ddim, NullTextSchedule(3, stop=0.01))
    meter = measured(editor)
    meter.invert(edits.sources, edits.source_prompts)
    updates = editor.fit(source_of(editor, edits)).updates
    assert meter.invert_costs[0].nfe == pytest.approx(3 * STEPS + sum(updates) / 3)


def quadratic(goals: Tensor) -> Callable[[Tensor, list[int], int], Tensor]:
    return lambda embeds, rows, iteration: (embeds - goals[rows]).square().mean((1, 2))


def test_an_image_stops_on_its_own():
    goals = torch.tensor([0.0, 0.02, 0.5]).view(3, 1, 1).expand(3, 2, 4)
    start = torch.zeros(3, 2, 4)
    found, losses = optimise(start, quadratic(goals), 30, 1e-2, enough=1e-5)
    counts = [len(of_image) for of_image in losses]
    assert counts[0] == 1 and 1 < counts[1] < 30 and counts[2] == 30
    for row in range(3):
        alone, alone_losses = optimise(start[row : row + 1], quadratic(goals[row : row + 1]), 30, 1e-2, enough=1e-5)
        assert torch.equal(alone[0], found[row]) and alone_losses == (losses[row],)


def test_optimising_is_adam(backbone):
    goals, start = torch.full((2, 3, 4), 0.3), torch.zeros(2, 3, 4)
    found, _ = optimise(start, quadratic(goals), 7, 1e-2, enough=NEVER)
    embeds = start.clone().requires_grad_()
    adam = torch.optim.Adam([embeds], 1e-2)
    for _ in range(7):
        adam.zero_grad()
        (embeds - goals).square().mean((1, 2)).sum().backward()
        adam.step()
    torch.testing.assert_close(found, embeds.detach())
    assert torch.equal(start, torch.zeros(2, 3, 4)) and not found.requires_grad


@pytest.mark.parametrize("kind", VARIANTS)
def test_images_do_not_depend_on_each_other(backbone, ddim, edits, kind):
    editor = make(kind, backbone, ddim, NullTextSchedule(2))
    rows = slice(1, 2)
    together, alone = (editor.fit(source_of(editor, edits, part)).trajectory for part in (slice(None), rows))
    for a, b in zip(together.nulls, alone.nulls, strict=True):
        assert (a.embeds[rows] - b.embeds).abs().mean() < 1e-3
    assert (together.prompt.embeds[rows] - alone.prompt.embeds).abs().mean() < 1e-3
    backbone.assert_frozen()
    assert all(weight.grad is None for weight in backbone.unet.parameters())


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_variant_can_be_edited(backbone, ddim, edits, kind):
    sharing = replace(usual_sharing(), values=1.0)
    editor = kind(backbone, ddim, GUIDANCE, sharing, NullTextSchedule(1))
    inversion = editor.invert(edits.sources, edits.source_prompts)
    images = editor.edit(inversion, EditRequest(edits.target_prompts))
    assert images.shape == edits.sources.shape and images.isfinite().all() and not images.requires_grad
    same = editor.edit(inversion, EditRequest(edits.source_prompts, strength=1.0))
    reconstruction = decode_latents(backbone, editor.reconstruct(inversion)[-1])
    if kind is TextualInversion:  # its source has another embedding than the words
        assert not torch.allclose(same, reconstruction, atol=1e-3)
    else:
        torch.testing.assert_close(same, reconstruction, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in VARIANTS if kind is not RandomPivot])
def test_without_iterations_each_is_ddim(backbone, ddim, edits, kind):
    editor = make(kind, backbone, ddim, NullTextSchedule(0))
    fit = editor.fit(source_of(editor, edits))
    assert fit.updates == [0] * 3
    plain = GuidedDdim(backbone, ddim, GUIDANCE)
    expected = plain.reconstruct(plain.invert(edits.sources, edits.source_prompts))[-1]
    found = editor.reconstruct(InvertedImages(edits.source_prompts, {}, fit.trajectory))[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_random_pivot_is_one_noise_at_all_levels(backbone, ddim, edits):
    editor = make(RandomPivot, backbone, ddim, NullTextSchedule(0))
    source = source_of(editor, edits)
    pivots = editor.pivots(source)
    assert torch.equal(pivots[-1], source.latent)
    noises = [
        (pivots[level] - ddim.abar(level) ** 0.5 * source.latent) / (1 - ddim.abar(level)) ** 0.5
        for level in range(STEPS)
    ]
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], atol=1e-4, rtol=0)
    assert abs(noises[0].std() - 1) < 0.1


def test_global_null_text_has_one_prompt_and_goes_round(backbone, ddim, edits):
    editor = make(GlobalNullText, backbone, ddim, without_stop(2))
    fit = editor.fit(source_of(editor, edits))
    assert all(null is fit.trajectory.nulls[0] for null in fit.trajectory.nulls)
    assert fit.updates == [2 * STEPS] * 3


def test_textual_inversion_takes_as_many_updates(backbone, ddim, edits):
    editor = make(TextualInversion, backbone, ddim, without_stop(2))
    fit = editor.fit(source_of(editor, edits))
    assert fit.updates == [2 * STEPS] * 3
    assert not torch.equal(fit.trajectory.prompt.embeds, source_of(editor, edits).prompt.embeds)


def test_random_captions_are_others(edits):
    captions = ["a", "b", edits.source_prompts[0]]
    chosen = random_captions(edits.sources, edits.source_prompts, captions)
    assert chosen == random_captions(edits.sources, edits.source_prompts, captions)
    assert chosen[1:] == random_captions(edits.sources[1:], edits.source_prompts[1:], captions)
    assert all(a in captions and a != own for a, own in zip(chosen, edits.source_prompts, strict=True))
    with pytest.raises(ValueError, match="give more of them"):
        random_captions(edits.sources[:1], edits.source_prompts[:1], captions[2:])
