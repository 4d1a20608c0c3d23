"""Editors inside the user's mask: what a mask means, what stays outside it, and that there has to be one."""

import pytest
import torch

from eval.editors.blended import BlendedLatentDiffusion, latent_mask
from eval.editors.catalogue import Command, available
from eval.editors.editor import EditRequest, measured
from eval.editors.few_steps import decode_latents
from eval.editors.guided import noised
from eval.editors.inpaint import Inpaint, stock_ddim
from eval.editors.models import ManyStepModel, Needs
from eval.editors.randomness import image_keys, image_noise, image_seed
from eval.scene_edits.edit_set import EditSet, edit_set
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching
from tests.tiny_editing import one_edit_of_each_kind

STEPS, GUIDANCE = 4, 3.0
NAMES = ("blended", "inpaint")


@pytest.fixture(scope="module")
def edits() -> EditSet:
    return edit_set(one_edit_of_each_kind()[:3])


@pytest.fixture(scope="module")
def editors(backbone: Backbone):
    model = ManyStepModel(backbone, Ddim(backbone.schedule, STEPS), GUIDANCE)
    found = available(Command.MANY_STEP, model).editors
    return {known.name: editor for known, editor in found if known.needs == Needs.MASK}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def run(editor, edits: EditSet, rows: slice = slice(None), mask: float | None = None, **request):
    """Pictures; the mask is the true edit's, or everywhere `mask`."""
    masks = edits.masks[rows] if mask is None else torch.full((len(edits.sources[rows]), 1, 64, 64), mask)
    inversion = editor.invert(edits.sources[rows], edits.source_prompts[rows])
    return editor.edit(inversion, EditRequest(edits.target_prompts[rows], mask=masks, **request))


@pytest.mark.parametrize("name", NAMES)
def test_without_a_mask_the_request_is_refused(editors, edits, name):
    inversion = editors[name].invert(edits.sources, edits.source_prompts)
    with pytest.raises(ValueError, match=rf"{name} edits inside a mask only; give EditRequest\.mask"):
        editors[name].edit(inversion, EditRequest(edits.target_prompts))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_costs(editors, edits, name):
    meter = measured(editors[name])
    inversion = meter.invert(edits.sources, edits.source_prompts)
    for strength, steps in ((0.5, 2), (1.0, 4)):
        images = meter.edit(inversion, EditRequest(edits.target_prompts, mask=edits.masks, strength=strength))
        assert images.shape == edits.sources.shape and images.isfinite().all() and images.abs().max() <= 1
        assert meter.edit_costs[-1].nfe == 2 * steps
    assert meter.invert_costs[0].nfe == 0


@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_the_batch_but_on_the_seed(editors, edits, name):
    rows = slice(1, 2)
    together, alone, other = (
        run(editors[name], edits),
        run(editors[name], edits, rows),
        run(editors[name], edits, rows, seed=1),
    )
    assert (together[rows] - alone).abs().mean() < 0.01
    assert not torch.equal(alone, other)


def test_blending_with_an_empty_mask_keeps_everything(backbone, editors, edits):
    trip = decode_latents(backbone, backbone.encode_image(edits.sources))
    torch.testing.assert_close(run(editors["blended"], edits, mask=0.0), trip)


def test_blending_with_a_full_mask_is_sampling_from_the_noised_image(backbone, editors, edits):
    ddim = Ddim(backbone.schedule, STEPS)
    latent, prompt = backbone.encode_image(edits.sources), backbone.encode_text(edits.target_prompts)
    null = matching(backbone.encode_text([""]), prompt)
    start = noised(ddim, latent, image_noise(image_keys(edits.sources), "blended 1", 0, latent), 1)
    expected = ddim.denoise(
        start, lambda x, i: guided_noise(backbone, x, ddim.timesteps[i], prompt, null, GUIDANCE), first=1
    )
    found = run(editors["blended"], edits, mask=1.0, strength=0.75)
    torch.testing.assert_close(found, decode_latents(backbone, expected[-1]), atol=1e-4, rtol=0)


def test_inpainting_with_an_empty_mask_gives_the_latent_that_the_pipeline_drew(backbone, editors, edits):
    latents = []
    for image, key in zip(edits.sources.split(1), image_keys(edits.sources), strict=True):
        draw = torch.Generator().manual_seed(image_seed(key, "inpaint", 0))
        latents.append(backbone.vae.encode(image).latent_dist.sample(draw))
    expected = backbone.decode(torch.cat(latents) * backbone.vae.config.scaling_factor).clamp(-1, 1)
    torch.testing.assert_close(run(editors["inpaint"], edits, mask=0.0), expected, atol=1e-3, rtol=0)


def test_a_place_of_the_latent_is_inside_if_half_of_it_is():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :3] = 1  # of the places of 4 x 4 pixels three quarters of the first
    mask[..., 4:, 4:5] = 1  # and a quarter of the last
    found = latent_mask(mask, torch.zeros(1, 4, 2, 2))
    assert found.flatten().tolist() == [1, 0, 0, 0]


def test_the_stock_scheduler_has_the_backbones_schedule(backbone):
    scheduler = stock_ddim(backbone.schedule)
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double(), backbone.schedule.alphas_cumprod, atol=1e-5, rtol=1e-4
    )
    scheduler.set_timesteps(STEPS)
    assert tuple(scheduler.timesteps.tolist()) == Ddim(backbone.schedule, STEPS).timesteps
    assert scheduler.config.prediction_type == backbone.schedule.prediction_type


def test_blending_works_on_sdxl_and_inpainting_says_that_it_does_not(tiny_backbone, edits):
    backbone = Backbone.load(tiny_backbone)
    images = run(BlendedLatentDiffusion(backbone, Ddim(backbone.schedule, STEPS), GUIDANCE), edits)
    assert images.shape == edits.sources.shape
    with pytest.raises(ValueError, match="SDXL"):
        Inpaint(backbone, STEPS)
