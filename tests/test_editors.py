"""Editors on a tiny random generator: formulas against diffusers, exactness, costs, independence of the batch."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from eval.editors.catalogue import Command, available
from eval.editors.ddim import DdimInversion, ddim_move
from eval.editors.ddpm import Ddpm, ddpm_posterior
from eval.editors.editor import Cost, Editor, EditRequest, InvertedImages, ReconstructingEditor, measured
from eval.editors.few_steps import CLEAN, decode_latents, downwards, full, generator_of
from eval.editors.models import FewStepModel
from eval.editors.randomness import image_keys, image_noise
from eval.editors.references import Truth
from eval.editors.sdedit import Sdedit
from eval.editors.titles import few_step_name, title_of
from eval.editors.turboedit import TurboEdit
from eval.scene_edits.edit_set import EditSet, edit_set
from models.ddim import predict_noise
from models.generator import FewStepGenerator
from models.turboedit_pipeline import TurboEditPipeline
from tests.tiny_editing import one_edit_of_each_kind, tiny_pipeline

BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
STOCK = dict(**BETAS, set_alpha_to_one=True, clip_sample=False, timestep_spacing="trailing")

OURS = {"turboedit": (8, 4), "turboedit_mask": (8, 4), "turboedit_2": (4, 2), "turboedit_frozen": (8, 5)}
FEW_STEP = {
    "ddim": (4, 4),
    "ddpm": (3, 4),
    "ddpm_residual": (4, 4),
    "renoise": (43, 4),
    "turboedit_deutch": (0, 12),
    "infedit": (0, 36),
    "chordedit": (0, 5),
    "chordedit_transport": (0, 4),
    "sdedit": (0, 3),
}
REFERENCES = {"identity": (0, 0), "truth": (0, 0), "ceiling": (0, 4)}
NOT_RECONSTRUCTED = ("infedit", "chordedit", "chordedit_transport", "sdedit", *OURS)
"""Editors that do not end in a reconstruction at strength 0."""

OF_SCENES = (
    "turboedit",
    "turboedit_paper",
    "turboedit_mask",
    "turboedit_mask_paper",
    "ddim",
    "ddpm",
    "ddpm_residual",
    "sdedit",
    *REFERENCES,
)
EVALUATIONS = OURS | FEW_STEP | REFERENCES


@dataclass(frozen=True)
class Run:
    """What came of an editor's work on two edits; an inversion serves any number of edits."""

    editor: Editor
    inversion: InvertedImages
    images: Tensor
    invert: Cost
    edit: Cost


@pytest.fixture(scope="module")
def pipeline(either_backbone) -> TurboEditPipeline:
    """In float64: kernels round differently for each batch size, and many passes of a random generator amplify it."""
    return tiny_pipeline(either_backbone).to(torch.float64)


@pytest.fixture(scope="module")
def generator(pipeline) -> FewStepGenerator:
    return generator_of(pipeline)


@pytest.fixture(scope="module")
def edits() -> EditSet:
    return edit_set(one_edit_of_each_kind()[:2])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def editors_by_name(pipeline):
    ours = [
        TurboEdit(pipeline, name="turboedit_2", num_steps=2),
        TurboEdit(pipeline, name="turboedit_frozen", frozen_steps=1),
    ]
    known = available(Command.SCENES | Command.PIE, FewStepModel(pipeline)).editors
    return {editor.name: editor for editor in (*(editor for _, editor in known), *ours)}


def test_commands_compare_each_of_their_editors_once(pipeline):
    model = FewStepModel(pipeline)
    assert [editor.name for editor in available(Command.SCENES, model).choose()] == list(OF_SCENES)
    of_pie = [known.name for known, _ in available(Command.PIE, model).editors]
    assert [name for name in of_pie if not name.startswith("turboedit") or name in FEW_STEP] == list(FEW_STEP)
    reconstructed = available(Command.RECONSTRUCTION, model)
    assert [known.name for known, _ in reconstructed.editors] == ["turboedit", "ddim", "ddpm", "ddpm_residual"]
    assert reconstructed.default == ("turboedit", "ddim", "ddpm_residual")


def test_titles_name_the_forms_of_an_editor():
    assert title_of("turboedit_frozen_1") == "TurboEdit, attention frozen, 1 step"
    assert title_of("turboedit_4") == "TurboEdit, 4 steps"
    assert title_of("instruct_pix2pix_text_7.5") == "InstructPix2Pix, s_T 7.5"
    assert [title_of(few_step_name(name)) for name in ("sdedit", "renoise")] == ["SDEdit, few-step", "ReNoise"]
    assert title_of("ddpm_turbo_1") == "DDPM inversion, few-step, 1 step"
    assert title_of("my_own_row_3") == "my own row 3"


def test_steps_that_the_encoder_cannot_do_are_refused_at_once(pipeline):
    with pytest.raises(ValueError, match="num_steps is 3; the encoder was trained on 4 timesteps"):
        TurboEdit(pipeline, num_steps=3)


@pytest.fixture(scope="module")
def runs(pipeline, edits) -> dict[str, Run]:
    """Every editor on two edits."""
    found = {}
    with torch.no_grad():
        for name, editor in editors_by_name(pipeline).items():
            meter = measured(editor)
            inversion = meter.invert(edits.sources, edits.source_prompts)
            images = meter.edit(inversion, EditRequest(edits.target_prompts, truth=edits.truths))
            found[name] = Run(editor, inversion, images, meter.invert_costs[0], meter.edit_costs[0])
    return found


@pytest.mark.parametrize("name", EVALUATIONS)
def test_edit_gives_pictures_at_the_counted_cost(runs, edits, name):
    run = runs[name]
    assert run.images.shape == edits.sources.shape
    assert run.images.dtype == torch.float32
    assert run.images.abs().max() <= 1
    assert (run.invert.nfe, run.edit.nfe) == EVALUATIONS[name]
    assert all(cost.seconds > 0 and cost.images == 2 for cost in (run.invert, run.edit))


@pytest.mark.parametrize("name", [name for name in (OURS | FEW_STEP) if name not in NOT_RECONSTRUCTED])
def test_strength_zero_is_the_reconstruction(pipeline, runs, edits, name):
    editor, inversion = runs[name].editor, runs[name].inversion
    assert isinstance(editor, ReconstructingEditor)
    images = editor.edit(inversion, EditRequest(edits.target_prompts, strength=0.0))
    expected = decode_latents(pipeline.backbone, editor.reconstruct(inversion)[-1])
    torch.testing.assert_close(images, expected, atol=1 / 127, rtol=0)  # TurboEdit's pictures have 8 bits


@pytest.mark.parametrize("name", OURS)
def test_strength_zero_of_ours_is_the_picture_itself(pipeline, runs, edits, name):
    editor, inversion = runs[name].editor, runs[name].inversion
    images = editor.edit(inversion, EditRequest(edits.target_prompts, strength=0.0))
    expected = decode_latents(pipeline.backbone, pipeline.backbone.encode_image(edits.sources))
    torch.testing.assert_close(images, expected, atol=1 / 127, rtol=0)
    paper = TurboEdit(pipeline, num_steps=editor.num_steps, outside="reconstruction")
    images = paper.edit(inversion, EditRequest(edits.target_prompts, strength=0.0))
    expected = decode_latents(pipeline.backbone, paper.reconstruct(inversion)[-1])
    torch.testing.assert_close(images, expected, atol=1 / 127, rtol=0)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_result_does_not_depend_on_the_batch(runs, edits, name):
    rows, editor = slice(1, 2), runs[name].editor
    inversion = editor.invert(edits.sources[rows], edits.source_prompts[rows])
    alone = editor.edit(inversion, EditRequest(edits.target_prompts[rows], truth=edits.truths[rows]))
    # Latents between the passes are float32. A wrong noise or prompt would show as a difference of order one.
    assert (runs[name].images[rows] - alone).abs().mean() < 1e-3


def test_ddpm_with_residual_reconstructs_exactly(generator, edits):
    editor = Ddpm(generator, residual=True)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    latent = generator.backbone.encode_image(edits.sources)
    torch.testing.assert_close(editor.reconstruct(inversion)[-1], latent, atol=1e-5, rtol=0)


def test_ddpm_without_residual_differs_by_the_residual(generator, edits):
    plain, full_inversion = Ddpm(generator), Ddpm(generator, residual=True)
    without = plain.reconstruct(plain.invert(edits.sources, edits.source_prompts))[-1]
    inversion = full_inversion.invert(edits.sources, edits.source_prompts)
    missing = generator.backbone.encode_image(edits.sources) - without
    torch.testing.assert_close(inversion.state.residual, missing, atol=1e-5, rtol=0)
    assert missing.abs().max() > 1e-3


def test_one_step_ddpm_keeps_nothing_of_the_picture_but_its_residual(pipeline, edits):
    """TurboEdit's figure 8: the only step's noise is zero, so the edit is the generator's picture of pure noise."""
    one = FewStepModel(pipeline, num_steps=1)
    known = {known.name: editor for known, editor in available(Command.PIE, one).editors}
    plain, exact = known["ddpm"], known["ddpm_residual"]
    assert plain.generator.timesteps == exact.generator.timesteps == (999,)
    found = plain.edit(plain.invert(edits.sources, edits.source_prompts), EditRequest(edits.target_prompts))
    x0 = pipeline.backbone.encode_image(edits.sources)
    noise = image_noise(image_keys(edits.sources), "ddpm 999", 0, x0)
    a = pipeline.backbone.schedule.alphas_cumprod[999].item()
    prompt = pipeline.backbone.encode_text(edits.target_prompts, pipeline.backbone.size_of(x0))
    estimate = one.generator.predict_x0(a**0.5 * x0 + (1 - a) ** 0.5 * noise, prompt, full(999, x0))
    torch.testing.assert_close(found, decode_latents(pipeline.backbone, estimate), atol=1e-3, rtol=0)
    kept = exact.reconstruct(exact.invert(edits.sources, edits.source_prompts))[-1]
    torch.testing.assert_close(kept, x0, atol=1e-4, rtol=1e-4)


def test_ddpm_passes_through_independently_noised_latents(generator, edits):
    """After each step the sampler stands where the forward process put it, so the noises carry the image."""
    editor = Ddpm(generator, seed=3)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    latent, keys = generator.backbone.encode_image(edits.sources), image_keys(edits.sources)
    x_t = inversion.state.latent
    for (t, s), z in zip(downwards(generator.timesteps)[:-1], inversion.state.noises, strict=True):
        x0 = generator.predict_x0(x_t, inversion.state.prompt, full(t, x_t))
        mean, sigma = ddpm_posterior(generator.schedule, x_t, x0, t, s)
        x_t = mean + sigma * z
        noise = image_noise(keys, f"ddpm {s}", 3, latent)
        torch.testing.assert_close(x_t, generator.schedule.add_noise(latent, noise, full(s, latent)), atol=1e-4, rtol=0)


def test_ddim_round_trip_equals_diffusers(generator, edits):
    """Inversion and sampling against DDIMInverseScheduler and DDIMScheduler around the same UNet."""
    backbone = generator.backbone
    latent, prompt = backbone.encode_image(edits.sources), backbone.encode_text(edits.source_prompts)
    up, down = DDIMInverseScheduler(**STOCK), DDIMScheduler(**STOCK)
    x = latent
    for t in reversed(generator.timesteps):
        # The stock schedule counts its own timesteps from below; only the levels between which it moves matter here.
        up.num_inference_steps = 4
        x = up.step(predict_noise(backbone, x, t, prompt), t, x).prev_sample
    editor = DdimInversion(generator)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    torch.testing.assert_close(inversion.state.latent, x, atol=1e-4, rtol=1e-4)

    down.set_timesteps(4)
    assert tuple(down.timesteps.tolist()) == generator.timesteps
    for t in down.timesteps.tolist():
        x = down.step(predict_noise(backbone, x, t, prompt), t, x).prev_sample
    torch.testing.assert_close(editor.reconstruct(inversion)[-1], x, atol=1e-3, rtol=1e-3)


def test_ddim_move_is_reversible_in_float64(generator):
    draw = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 4, 16, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    for start, end in downwards(generator.timesteps):
        moved = ddim_move(generator.schedule, x, noise, start, end)
        torch.testing.assert_close(ddim_move(generator.schedule, moved, noise, end, start), x, atol=1e-10, rtol=0)


def test_ddpm_posterior_equals_diffusers_with_eta_1(generator):
    stock = DDIMScheduler(**STOCK)
    stock.set_timesteps(4)
    draw = torch.Generator().manual_seed(0)
    x_t, noise, z = (torch.randn(2, 4, 16, 16, generator=draw, dtype=torch.float64) for _ in range(3))
    for t, s in downwards(generator.timesteps):
        x0 = ddim_move(generator.schedule, x_t, noise, t, CLEAN)
        mean, sigma = ddpm_posterior(generator.schedule, x_t, x0, t, s)
        expected = stock.step(noise, t, x_t, eta=1.0, variance_noise=z).prev_sample
        torch.testing.assert_close(mean + sigma * z, expected, atol=1e-4, rtol=1e-4)
    assert sigma == 0  # the step to the clean image adds no noise


def test_sdedit_keeps_more_from_a_cleaner_timestep(generator, edits):
    """Whatever the network predicts, at timestep 0 nothing happens and at 999 hardly anything of the image is left."""
    editor = Sdedit(generator)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    trip = decode_latents(generator.backbone, generator.backbone.encode_image(edits.sources))
    untouched = editor.edit(inversion, EditRequest(edits.target_prompts, strength=0))
    torch.testing.assert_close(untouched, trip)
    meter = measured(editor)
    for strength in editor.strengths:
        meter.edit(inversion, EditRequest(edits.target_prompts, strength=strength))
    assert [cost.nfe for cost in meter.edit_costs] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="from 0"):
        editor.edit(inversion, EditRequest(edits.target_prompts, strength=1000))


def test_sdedit_seed_decides(generator, edits):
    editor = Sdedit(generator)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    first, again, other = (editor.edit(inversion, EditRequest(edits.target_prompts, seed=s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_truth_needs_the_true_edit(pipeline, edits):
    editor = Truth(pipeline.backbone)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    with pytest.raises(ValueError, match="truth"):
        editor.edit(inversion, EditRequest(edits.target_prompts))


def test_users_mask_keeps_what_it_covers(pipeline, edits):
    editor = TurboEdit(pipeline)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    nothing = EditRequest(edits.target_prompts, mask=torch.zeros(2, 1, 64, 64))
    trip = decode_latents(pipeline.backbone, pipeline.backbone.encode_image(edits.sources))
    torch.testing.assert_close(editor.edit(inversion, nothing), trip, atol=1 / 127, rtol=0)
    paper = TurboEdit(pipeline, outside="reconstruction")
    kept = decode_latents(pipeline.backbone, editor.reconstruct(inversion)[-1])
    torch.testing.assert_close(paper.edit(inversion, nothing), kept, atol=1 / 127, rtol=0)
    # An edit of no strength differs nowhere, so an automatic mask is empty.
    still = TurboEdit(pipeline, "auto").edit(inversion, EditRequest(edits.target_prompts, strength=0.0))
    torch.testing.assert_close(still, trip, atol=1 / 127, rtol=0)


def test_last_mask_is_that_of_the_edit(pipeline, edits):
    given = torch.zeros(2, 1, 64, 64)
    given[:, :, 16:48, 16:48] = 1
    for editor, mask, expected in (
        (TurboEdit(pipeline), None, None),
        (TurboEdit(pipeline, "auto", 0.5), None, "auto"),
        (TurboEdit(pipeline, frozen_steps=1), given, given),
    ):
        inversion = editor.invert(edits.sources, edits.source_prompts)
        editor.edit(inversion, EditRequest(edits.target_prompts, mask=mask))
        if expected is None:
            assert editor.last_mask is None
        else:
            output = pipeline.edit(inversion.state, edits.target_prompts, mask=expected, threshold=0.5)
            torch.testing.assert_close(editor.last_mask, output.mask)
            assert editor.last_mask.shape == (2, 1, 16, 16)


def test_noise_belongs_to_the_image():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    keys = image_keys(images)
    like = torch.zeros(3, 4, 16, 16)
    noise = image_noise(keys, "a", 0, like)
    torch.testing.assert_close(image_noise(keys[1:], "a", 0, like[1:]), noise[1:])
    assert len(set(keys)) == 3
    for other in (image_noise(keys, "b", 0, like), image_noise(keys, "a", 1, like)):
        assert (other * noise).mean().abs() < 0.1
