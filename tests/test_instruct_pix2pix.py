"""InstructPix2Pix on tiny random pipelines of the stock classes: its guidance, its noise, what it refuses."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from eval.editors.editor import EditRequest, measured, settings_of
from eval.editors.instruct_pix2pix import InstructPix2Pix
from eval.editors.randomness import image_keys, image_seed

STEPS = 3
ORDERS = ("make it red", "add a cat")
PROMPTS = ("a star", "grass")


def save_instructive(backbone: str, path: Path, channels: int = 8) -> Path:
    """The pipeline of a folder with a UNet that takes the image too, random and all."""
    parts = DiffusionPipeline.from_pretrained(backbone).components
    with torch.random.fork_rng():
        torch.manual_seed(4)
        unet = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": channels}).eval()
    shared = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    if "text_encoder_2" in parts:
        second = {name: parts[name] for name in ("text_encoder_2", "tokenizer_2")}
        pipeline = StableDiffusionXLInstructPix2PixPipeline(**shared, **second, unet=unet, add_watermarker=False)
    else:
        pipeline = StableDiffusionInstructPix2PixPipeline(
            **shared, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(any_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_instructive(any_backbone, tmp_path_factory.mktemp("folders") / "Magic-Brush")


@pytest.fixture(scope="module")
def editor(folder: Path) -> InstructPix2Pix:
    return InstructPix2Pix(str(folder), num_steps=STEPS)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def by_hand(editor: InstructPix2Pix, image: Tensor, order: str, guidance: float, image_guidance: float) -> Tensor:
    """The paper's equation 3 in Euler-ancestral steps, one evaluation at a time, for one image [1, 3, H, W]."""
    pipeline = editor.pipeline
    size, scheduler = image.shape[-1], EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    seen = pipeline.vae.encode(image).latent_dist.mode()  # unscaled
    generator = torch.Generator().manual_seed(image_seed(image_keys(image)[0], editor.name, 0))
    scheduler.set_timesteps(STEPS)
    x = torch.randn(seen.shape, generator=generator) * scheduler.init_noise_sigma

    def noise(x: Tensor, t: Tensor, words: str, seen: Tensor) -> Tensor:
        if isinstance(pipeline, StableDiffusionXLInstructPix2PixPipeline):
            # Nothing is all zeros for SDXL, not the empty text
            embeds, _, pooled, _ = pipeline.encode_prompt(order, device="cpu", do_classifier_free_guidance=False)
            given = words != ""
            time_ids = torch.tensor([[size, size, 0, 0, size, size]])
            text = {
                "encoder_hidden_states": embeds * given,
                "added_cond_kwargs": {"text_embeds": pooled * given, "time_ids": time_ids},
            }
        else:
            ids = pipeline.tokenizer(
                words, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            text = {"encoder_hidden_states": pipeline.text_encoder(ids).last_hidden_state}
        scaled = scheduler.scale_model_input(x, t)
        return pipeline.unet(torch.cat([scaled, seen], dim=1), t, **text).sample

    for t in scheduler.timesteps:
        nothing, looked, told = (
            noise(x, t, words, image) for words, image in (("", 0 * seen), ("", seen), (order, seen))
        )
        combined = nothing + image_guidance * (looked - nothing) + guidance * (told - looked)
        x = scheduler.step(combined, t, x, generator=generator).prev_sample
    return pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)


@pytest.mark.parametrize(("strength", "scale"), [(None, 1.5), (1.0, 1.0)])
def test_edit_is_the_papers_guidance(editor, images, strength, scale):
    found = editor.edit(editor.invert(images, PROMPTS), EditRequest(PROMPTS, ORDERS, strength=strength))
    assert found.shape == images.shape
    for row in range(2):
        expected = by_hand(editor, images[row : row + 1], ORDERS[row], 7.5, scale)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=2e-3)


def test_only_the_order_the_image_and_the_seed_count(editor, images):
    meter = measured(editor)
    inversion = meter.invert(images, PROMPTS)
    first = meter.edit(inversion, EditRequest(PROMPTS, ORDERS))
    torch.manual_seed(77)  # the global generator has no say
    assert torch.equal(meter.edit(inversion, EditRequest(("x", "y"), ORDERS)), first)
    assert not torch.equal(meter.edit(inversion, EditRequest(PROMPTS, ORDERS, seed=1)), first)
    assert not torch.equal(meter.edit(inversion, EditRequest(PROMPTS, ORDERS[::-1])), first)
    alone = editor.edit(editor.invert(images[1:], PROMPTS[1:]), EditRequest(PROMPTS[1:], ORDERS[1:]))
    assert (first[1:] - alone).abs().max() < 2e-3
    assert meter.invert_costs[0].nfe == 0
    assert {cost.nfe for cost in meter.edit_costs} == {3 * STEPS}


def test_swept_shares_the_networks_under_another_guidance(editor, folder, images):
    other = editor.swept("strict", 3.0, (2.0, 1.0))
    alone = InstructPix2Pix(str(folder), name=editor.name, num_steps=STEPS, guidance=3.0)
    request = EditRequest(PROMPTS, ORDERS, strength=1.0)
    assert torch.equal(
        other.edit(other.invert(images, PROMPTS), request), alone.edit(alone.invert(images, PROMPTS), request)
    )
    assert other.unet is editor.unet and other.strengths == (2.0, 1.0)
    assert (editor.name, editor.guidance, editor.strengths) == ("magic_brush", 7.5, InstructPix2Pix.strengths)
    assert settings_of(other) != settings_of(editor)
    with pytest.raises(ValueError, match="guidance is 1"):
        editor.swept("free", 1.0, (1.0,))


def test_row_is_named_and_told_apart_by_its_weights(editor, folder, any_backbone, tmp_path):
    assert editor.name == "magic_brush"
    assert InstructPix2Pix(str(folder), name="hq_edit").name == "hq_edit"
    assert settings_of(editor) == settings_of(InstructPix2Pix(str(folder), num_steps=STEPS))
    other = save_instructive(any_backbone, tmp_path / "Magic-Brush")
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    unet = UNet2DConditionModel.from_pretrained(other / "unet")
    unet.conv_in.weight.data += 1
    unet.save_pretrained(other / "unet")
    assert weights.is_file()
    assert settings_of(editor) != settings_of(InstructPix2Pix(str(other), num_steps=STEPS))


def test_what_cannot_be_is_refused(editor, any_backbone, images, tmp_path):
    inversion = editor.invert(images, PROMPTS)
    with pytest.raises(ValueError, match=r"magic_brush follows orders only; give EditRequest\.instruction"):
        editor.edit(inversion, EditRequest(PROMPTS))
    with pytest.raises(ValueError, match=r"strength is 0\.5; image guidance below 1"):
        editor.edit(inversion, EditRequest(PROMPTS, ORDERS, strength=0.5))
    with pytest.raises(ValueError, match="has 4 input channels, expected 8"):
        InstructPix2Pix(str(save_instructive(any_backbone, tmp_path / "plain", channels=4)))
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        InstructPix2Pix(str(tmp_path))
    with pytest.raises(ValueError, match="guidance is 1"):
        InstructPix2Pix("anything", guidance=1)
