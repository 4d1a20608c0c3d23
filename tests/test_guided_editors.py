"""Editors of the many-step backbone on a tiny random one: exactness, identities, costs, independence of the batch."""

from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from eval.editors.catalogue import Command, available
from eval.editors.editor import Cost, EditRequest, ReconstructingEditor, measured
from eval.editors.few_steps import decode_latents, full
from eval.editors.guided import usual_sharing
from eval.editors.guided_ddim import DirectInversion, GuidedDdim
from eval.editors.guided_ddpm import GuidedDdpm
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.models import ManyStepModel
from eval.editors.negative_prompt import NegativePrompt, Proximal, ProximalNegativePrompt
from eval.editors.null_text import NullText
from eval.editors.options import NullTextSchedule
from eval.editors.randomness import image_keys, image_noise
from eval.scene_edits.edit_set import EditSet, edit_set
from models.backbone import Backbone
from models.ddim import Ddim, matching
from models.prompt_to_prompt import NOTHING, Trajectory, edit, reconstruct
from tests.tiny_editing import one_edit_of_each_kind

STEPS, GUIDANCE = 3, 3.0
FIT = NullTextSchedule(2)

EVALUATIONS = {  # with n steps: inversion, edit
    "ddim": (3, 6),  # n, 2 n
    "ddim_p2p": (3, 12),  # n, 4 n: source and target, each with its guidance
    "null_text": (3 + 3 * (1 + 2 + 1), 12),  # n + n (prompt + N empty ones + the last one)
    "npi": (3, 12),
    "prox_npi": (3, 12),
    "direct": (3, 12),  # without the official code's pass for the offsets
    "masactrl": (3, 9),  # n, 3 n: the source without guidance, the target with it
    "direct_masactrl": (3, 9),
    "plug_and_play": (3, 9),
    "direct_plug_and_play": (3, 9),
    "pix2pix_zero": (3, 15),  # n, n for the reference and 2 n for each of gradient and step
    "direct_pix2pix_zero": (3, 15),
    "ddpm": (3, 4),  # n without guidance, 2 (n - skip)
    "sdedit": (0, 4),
    "null_text_sdedit": (15, 4),
    "identity": (0, 0),
    "truth": (0, 0),
    "ceiling": (0, 6),
}


@dataclass(frozen=True)
class Run:
    """What came of an editor's work on three edits."""

    images: Tensor
    invert: Cost
    edit: Cost


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS)


@pytest.fixture(scope="module")
def edits() -> EditSet:
    return edit_set(one_edit_of_each_kind()[:3])


@pytest.fixture(scope="module")
def editors(backbone: Backbone, ddim: Ddim):
    found = available(Command.MANY_STEP, ManyStepModel(backbone, ddim, GUIDANCE, FIT)).editors
    return {editor.name: editor for known, editor in found if not known.needs and known.name != "imagic"}


@pytest.fixture(scope="module")
def runs(editors, edits) -> dict[str, Run]:
    """Every editor on three edits."""
    found = {}
    for name, editor in editors.items():
        meter = measured(editor)
        inversion = meter.invert(edits.sources, edits.source_prompts)
        images = meter.edit(inversion, EditRequest(edits.target_prompts, truth=edits.truths))
        found[name] = Run(images, meter.invert_costs[0], meter.edit_costs[0])
    return found


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_suite_has_all_editors_once(backbone, ddim, editors):
    assert list(editors) == list(EVALUATIONS)
    schedule = NullTextSchedule(25)
    found = available(Command.MANY_STEP, ManyStepModel(backbone, ddim, GUIDANCE, schedule))
    others, left_out = {editor.name: editor for _, editor in found.editors}, found.left_out
    assert others["null_text"].schedule is others["null_text_sdedit"].inversion.schedule is schedule
    assert list(left_out) == ["leditspp"] and "third level" in left_out["leditspp"]  # the tiny UNet has two


def test_official_offset_is_that_of_the_codes_that_have_it(backbone):
    official = Ddim(backbone.schedule, STEPS, steps_offset=0)
    found = available(Command.MANY_STEP, ManyStepModel(backbone, official)).editors
    offsets = {editor.name: editor.ddim.timesteps[-1] for _, editor in found if hasattr(editor, "ddim")}
    del offsets["blended"]  # diffusers' own pipeline, as for inpainting, has the usual steps
    one = {name for name, offset in offsets.items() if offset == 1}
    assert one == {"plug_and_play", "direct_plug_and_play", "pix2pix_zero", "direct_pix2pix_zero"}
    assert {offsets[name] for name in offsets.keys() - one} == {0}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_edit_gives_pictures_at_the_counted_cost(runs, edits, name):
    run = runs[name]
    assert run.images.shape == edits.sources.shape
    assert run.images.dtype == torch.float32
    assert run.images.isfinite().all() and run.images.abs().max() <= 1
    assert (run.invert.nfe, run.edit.nfe) == EVALUATIONS[name]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_result_does_not_depend_on_the_batch(editors, runs, edits, name):
    rows = slice(1, 2)
    inversion = editors[name].invert(edits.sources[rows], edits.source_prompts[rows])
    alone = editors[name].edit(inversion, EditRequest(edits.target_prompts[rows], truth=edits.truths[rows]))
    # The random backbone multiplies rounding errors; a wrong noise or prompt would show as a difference of order one.
    assert (runs[name].images[rows] - alone).abs().mean() < 0.01


def test_direct_inversion_reconstructs_exactly(backbone, ddim, edits):
    editor = DirectInversion(backbone, ddim, GUIDANCE)
    assert isinstance(editor, ReconstructingEditor)
    found = editor.reconstruct(editor.invert(edits.sources, edits.source_prompts))[-1]
    torch.testing.assert_close(found, backbone.encode_image(edits.sources), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps_offset", [0, 1])
def test_ddpm_inversion_reconstructs_exactly(backbone, edits, steps_offset):
    editor = GuidedDdpm(backbone, Ddim(backbone.schedule, STEPS, steps_offset), GUIDANCE)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    latent = backbone.encode_image(edits.sources)
    torch.testing.assert_close(editor.reconstruct(inversion)[-1], latent, atol=1e-4, rtol=0)


def test_ddpm_passes_through_independently_noised_latents(backbone, ddim, edits):
    editor = GuidedDdpm(backbone, ddim, GUIDANCE, seed=3)
    state = editor.invert(edits.sources, edits.source_prompts).state
    latent, keys = backbone.encode_image(edits.sources), image_keys(edits.sources)
    for level, t in enumerate(ddim.timesteps):
        expected = backbone.schedule.add_noise(latent, image_noise(keys, f"ddpm {level}", 3, latent), full(t, latent))
        torch.testing.assert_close(state.latents[level], expected, atol=1e-4, rtol=0)


def test_ddpm_edit_with_the_sources_prompt_and_guidance_changes_nothing(backbone, ddim, edits):
    editor = GuidedDdpm(backbone, ddim, guidance=2.0, source_guidance=2.0)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    trip = decode_latents(backbone, backbone.encode_image(edits.sources))
    for strength in (0.0, 0.6, 1.0):
        found = editor.edit(inversion, EditRequest(edits.source_prompts, strength=strength))
        torch.testing.assert_close(found, trip, atol=1e-3, rtol=0)


def test_npi_is_ddim_at_guidance_1_on_the_source(backbone, ddim, edits):
    npi, unguided = NegativePrompt(backbone, ddim, GUIDANCE), GuidedDdim(backbone, ddim, guidance=1.0)
    found, expected = (e.reconstruct(e.invert(edits.sources, edits.source_prompts))[-1] for e in (npi, unguided))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_proximal_npi_without_a_threshold_is_npi(backbone, ddim, edits, norm):
    proximal = Proximal(norm, quantile=0.0, inversion_guidance=False)
    request = EditRequest(edits.target_prompts)
    found, expected = (
        editor.edit(editor.invert(edits.sources, edits.source_prompts), request)
        for editor in (
            ProximalNegativePrompt(backbone, ddim, GUIDANCE, proximal=proximal),
            NegativePrompt(backbone, ddim, GUIDANCE),
        )
    )
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_proximal_npi_that_sets_everything_to_zero_is_the_reconstruction(backbone, ddim, edits):
    request = EditRequest(edits.target_prompts, strength=1.0)
    free = ProximalNegativePrompt(backbone, ddim, GUIDANCE, proximal=Proximal(quantile=1.0, inversion_guidance=False))
    inversion = free.invert(edits.sources, edits.source_prompts)
    found = free.edit(inversion, request)
    torch.testing.assert_close(found, decode_latents(backbone, free.reconstruct(inversion)[-1]), atol=1e-3, rtol=0)
    held = ProximalNegativePrompt(backbone, ddim, GUIDANCE, proximal=Proximal(quantile=1.0))
    trip = decode_latents(backbone, backbone.encode_image(edits.sources))
    torch.testing.assert_close(held.edit(inversion, request), trip, atol=1e-4, rtol=0)


def test_proximal_npi_sets_the_source_to_its_pivots_where_its_guidance_does(backbone, ddim, edits):
    npi = NegativePrompt(backbone, ddim, GUIDANCE)
    expected = npi.reconstruct(npi.invert(edits.sources, edits.source_prompts))[-1]
    for guided in (False, True):
        editor = ProximalNegativePrompt(backbone, ddim, GUIDANCE, proximal=Proximal(inversion_guidance=guided))
        found = editor.reconstruct(editor.invert(edits.sources, edits.source_prompts))[-1]
        latent = backbone.encode_image(edits.sources)
        torch.testing.assert_close(found, latent if guided else expected, atol=1e-4, rtol=1e-4)
    assert (expected - latent).abs().max() > 1e-2  # so that the two cases differ


def test_proximal_steps():
    delta = torch.tensor([0.0, 0.0, 0.0, 0.0, -4.0, 1.0, -2.0, 3.0]).view(2, 1, 2, 2)  # a source and its target
    hard, edited = Proximal("l0", quantile=5 / 7)(delta)  # threshold 2
    assert hard[1].flatten().tolist() == [-4, 0, 0, 3] and edited[1].flatten().tolist() == [True, False, False, True]
    soft, edited = Proximal("l1", quantile=5 / 7)(delta)
    assert soft[1].flatten().tolist() == [-2, 0, 0, 1] and not edited.any()
    assert not hard[0].any() and not soft[0].any()
    with pytest.raises(ValueError, match=r"quantile is 1\.5"):
        Proximal(quantile=1.5)


def test_guided_sampling_equals_the_stock_pipeline(backbone, ddim, tiny_sd_backbone, edits):
    """From the same latent, DDIM with guidance gives what StableDiffusionPipeline gives."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_backbone)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, steps_offset=1)
    pipeline.set_progress_bar_config(disable=True)
    prompt = backbone.encode_text(edits.source_prompts)
    null = matching(backbone.encode_text([""]), prompt)
    start = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = pipeline(
        list(edits.source_prompts),
        latents=start,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    found = reconstruct(backbone, ddim, Trajectory(start, prompt, (null,) * STEPS), GUIDANCE)[-1]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_target_alone_is_the_target_of_both_branches(backbone, ddim, edits):
    editor = GuidedDdim(backbone, ddim, GUIDANCE)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    target = backbone.encode_text(edits.target_prompts)
    expected = decode_latents(backbone, edit(backbone, ddim, inversion.state, target, GUIDANCE, NOTHING))
    found = editor.edit(inversion, EditRequest(edits.target_prompts))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_strength_goes_from_the_swap_of_words_to_the_source(backbone, ddim, edits):
    plain = GuidedDdim(backbone, ddim, GUIDANCE)
    shared = GuidedDdim(backbone, ddim, GUIDANCE, usual_sharing(), "ddim_p2p")
    assert (plain.strengths, len(shared.strengths)) == ((1.0,), 4)
    inversion = shared.invert(edits.sources, edits.source_prompts)
    swap = plain.edit(inversion, EditRequest(edits.target_prompts))
    full_strength = shared.edit(inversion, EditRequest(edits.target_prompts, strength=1.0))
    torch.testing.assert_close(full_strength, swap)
    for strength in (0.0, 1.0):
        same = shared.edit(inversion, EditRequest(edits.source_prompts, strength=strength))
        torch.testing.assert_close(same, decode_latents(backbone, shared.reconstruct(inversion)[-1]), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"strength is 1\.2; expected a share of the 3 steps"):
        shared.edit(inversion, EditRequest(edits.target_prompts, strength=1.2))


@pytest.mark.parametrize(("size", "largest"), [((64, 64), 32 * 32), ((16, 16), 8 * 8), ((64, 96), 32 * 48)])
def test_sharing_keeps_the_resolution_of_the_papers(size, largest):
    assert usual_sharing().max_queries(torch.zeros(1, 4, *size)) == largest


def test_sdedit_keeps_more_with_fewer_steps(backbone, ddim, edits):
    editor = GuidedSdedit(backbone, ddim, GUIDANCE)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    trip = decode_latents(backbone, backbone.encode_image(edits.sources))
    torch.testing.assert_close(editor.edit(inversion, EditRequest(edits.target_prompts, strength=0.0)), trip)
    meter = measured(editor)
    for strength in (1 / 3, 2 / 3, 1.0):
        meter.edit(inversion, EditRequest(edits.target_prompts, strength=strength))
    assert [cost.nfe for cost in meter.edit_costs] == [2, 4, 6]
    first, again, other = (editor.edit(inversion, EditRequest(edits.target_prompts, seed=s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_sdedit_takes_the_prompts_of_null_text(backbone, ddim, edits):
    """With no iteration they are the empty prompt; with some the edit differs."""
    request = EditRequest(edits.target_prompts, strength=1.0)

    def run(null_text: NullText | None) -> Tensor:
        editor = GuidedSdedit(backbone, ddim, GUIDANCE, null_text)
        return editor.edit(editor.invert(edits.sources, edits.source_prompts), request)

    plain = run(None)
    nothing, some = (run(NullText(backbone, ddim, GUIDANCE, schedule=NullTextSchedule(n))) for n in (0, 2))
    torch.testing.assert_close(nothing, plain)
    assert (some - plain).abs().max() > 1e-3


def test_editors_leave_the_track_as_it_is(backbone, ddim, edits):
    """An inversion serves many edits."""
    editor = ProximalNegativePrompt(backbone, ddim, GUIDANCE)
    inversion = editor.invert(edits.sources, edits.source_prompts)
    before = replace(inversion.state, pivots=inversion.state.pivots.clone())
    first, again = (editor.edit(inversion, EditRequest(edits.target_prompts)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(inversion.state.pivots, before.pivots)
