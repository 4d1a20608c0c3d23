"""LEDITS++: what its stock pipelines give by themselves, image by image, and a UNet that is as it was."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    LEditsPPPipelineStableDiffusionXL,
    UNet2DConditionModel,
)
from torch import Tensor

from eval.editors.editor import EditRequest, ReconstructingEditor, measured
from eval.editors.few_steps import decode_latents
from eval.editors.leditspp import LeditsPP, concepts
from eval.editors.randomness import image_keys, image_seed
from models.backbone import Backbone

SOURCES, TARGETS = ("a red star", "a cat on grass"), ("a blue star", "a cat")
STEPS = 4
THREE_LEVELS = {
    "block_out_channels": (16, 16, 32),
    "attention_head_dim": (1, 1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


@pytest.fixture(scope="module")
def folder(any_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline whose UNet has three levels."""
    pipeline = DiffusionPipeline.from_pretrained(any_backbone)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, **THREE_LEVELS}).eval()
    path = tmp_path_factory.mktemp("three_levels")
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return Backbone.load(str(folder))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def stock_pipeline(folder: Path, backbone: Backbone):
    """As diffusers' documentation makes it, on the folder."""
    large = len(backbone.text.encoders) == 2
    kind = LEditsPPPipelineStableDiffusionXL if large else LEditsPPPipelineStableDiffusion
    pipeline = kind.from_pretrained(folder, **({"add_watermarker": False} if large else {"safety_checker": None}))
    pipeline.scheduler = DPMSolverMultistepScheduler.from_pretrained(
        folder, subfolder="scheduler", algorithm_type="sde-dpmsolver++", solver_order=2, steps_offset=1
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_edit_is_that_of_the_stock_pipeline(folder, backbone, images):
    editor = LeditsPP(backbone, STEPS, seed=3)
    found = editor.edit(editor.invert(images, SOURCES), EditRequest(TARGETS))
    pipeline = stock_pipeline(folder, backbone)
    prompts = [(["blue"], ["red"]), ([], ["on grass"])]
    for row, (key, (added, removed)) in enumerate(zip(image_keys(images), prompts)):
        generator = torch.Generator().manual_seed(image_seed(key, "leditspp", 3))
        pipeline.invert((images[row : row + 1] + 1) / 2, num_inversion_steps=STEPS, skip=0.1, generator=generator)
        expected = pipeline(
            editing_prompt=[*added, *removed],
            reverse_editing_direction=[False] * len(added) + [True] * len(removed),
            edit_guidance_scale=10.0,
            edit_threshold=0.75,
            use_intersect_mask=True,
            output_type="pt",
        ).images
        torch.testing.assert_close((found[row : row + 1] + 1) / 2, expected, rtol=0, atol=1e-3)


def test_without_a_changed_word_it_is_the_reconstruction(backbone, images):
    editor = LeditsPP(backbone, STEPS)
    assert isinstance(editor, ReconstructingEditor)
    inversion = editor.invert(images, SOURCES)
    expected = decode_latents(backbone, editor.reconstruct(inversion)[-1])
    for request in (EditRequest(SOURCES), EditRequest(TARGETS, strength=0.0)):
        torch.testing.assert_close(editor.edit(inversion, request), expected, rtol=0, atol=1e-4)
    assert (editor.edit(inversion, EditRequest(TARGETS)) - expected).abs().max() > 1e-3


def test_images_keep_to_themselves(backbone, images):
    editor = LeditsPP(backbone, STEPS)
    inversion = editor.invert(images, SOURCES)
    whole = editor.edit(inversion, EditRequest(TARGETS))
    torch.manual_seed(77)  # the global generator has no say
    alone = editor.edit(editor.invert(images[1:], SOURCES[1:]), EditRequest(TARGETS[1:]))
    torch.testing.assert_close(whole[1:], alone, rtol=0, atol=1e-5)
    assert torch.equal(editor.edit(inversion, EditRequest(TARGETS)), whole)  # another inversion lies between


def test_unet_has_its_own_attention_again(backbone, images):
    before = dict(backbone.unet.attn_processors)
    editor = LeditsPP(backbone, STEPS)
    editor.edit(editor.invert(images[:1], SOURCES[:1]), EditRequest(TARGETS[:1]))
    assert all(backbone.unet.attn_processors[name] is found for name, found in before.items())
    backbone.assert_frozen()


def test_every_concept_costs_an_evaluation(backbone, images):
    meter = measured(LeditsPP(backbone, STEPS))
    inversion = meter.invert(images[:1], ("a red star",))
    for target in ("a red star", "a big red star", "a blue star"):
        meter.edit(inversion, EditRequest((target,)))
    assert meter.invert_costs[0].nfe == STEPS
    assert [cost.nfe for cost in meter.edit_costs] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_concepts_are_runs_of_changed_words():
    assert concepts("a red circle", "a blue circle on grass") == (["blue", "on grass"], ["red"])
    assert concepts("a cat, sky background", "a cat and a dog, sky background") == (["and a dog"], [])
    assert concepts("A cat.", "a cat") == ([], [])


def test_what_the_pipelines_cannot_use_is_said(any_backbone, folder):
    with pytest.raises(ValueError, match="third level of the UNet; this one has 2 levels"):
        LeditsPP(Backbone.load(any_backbone))
    with pytest.raises(ValueError, match=r"one dtype, not torch\.bfloat16, torch\.float32"):
        LeditsPP(Backbone.load(str(folder), dtype=torch.bfloat16))
