"""pix2pix-zero against diffusers' pipeline of it, and what it is without its parts."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
    StableDiffusionPix2PixZeroPipeline,
)
from torch import Tensor

from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents
from eval.editors.negative_prompt import NegativePrompt
from eval.editors.noise_regularisation import (
    NoiseRegularisation,
    autocorrelation,
    divergence,
    pyramid_sides,
    random_shifts,
    rolled,
)
from eval.editors.pix2pix_zero import Pix2PixZero
from eval.editors.randomness import image_keys, image_seed
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots
from models.prompt_to_prompt import NOTHING
from models.schedule import NoiseSchedule

SOURCES, TARGETS = ("a red star", "grass"), ("a blue star", "a cat on grass")
STEPS, GUIDANCE = 4, 3.0
UNREGULARISED = NoiseRegularisation(0.0, 0.0)


@pytest.fixture(scope="module")
def backbone(tiny_sd_backbone: str) -> Backbone:
    """The tiny Stable Diffusion, taken to predict noise as Stable Diffusion 1 does."""
    found = Backbone.load(tiny_sd_backbone)
    found.schedule = NoiseSchedule(found.schedule.alphas_cumprod, "epsilon")
    return found


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def stock(tiny_sd_backbone: str) -> StableDiffusionPix2PixZeroPipeline:
    """diffusers' pipeline on the same weights, with the same steps."""
    parts = StableDiffusionPipeline.from_pretrained(tiny_sd_backbone).components
    config = {**parts["scheduler"].config, "prediction_type": "epsilon", "steps_offset": 1}
    pipeline = StableDiffusionPix2PixZeroPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet")},
        scheduler=DDIMScheduler.from_config(config),
        inverse_scheduler=DDIMInverseScheduler.from_config(config),
        feature_extractor=None,
        safety_checker=None,
        caption_generator=None,
        caption_processor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The regularisation


def test_losses_are_those_of_diffusers(stock):
    x = noise(2, 3, 32, 32)
    shifts = random_shifts(x.shape, [generator(3), generator(4)])
    assert pyramid_sides(32) == [32, 16, 8]
    expected = [stock.auto_corr_loss(x[i : i + 1], generator(seed)) for i, seed in enumerate((3, 4))]
    torch.testing.assert_close(autocorrelation(x, shifts), torch.stack(expected))
    torch.testing.assert_close(divergence(x), torch.stack([stock.kl_divergence(row) for row in x]))


def test_every_channel_is_rolled_by_its_own_shift():
    x, shifts = noise(2, 3, 8, 6), torch.tensor([[0, 1, 2], [3, 1, 0]])
    for dim in (2, 3):
        expected = torch.stack([torch.stack([c.roll(int(s), dim - 2) for c, s in zip(*row)]) for row in zip(x, shifts)])
        assert torch.equal(rolled(x, shifts, dim), expected)


def test_regularised_noise_is_whiter():
    """Steps of the official rates bring both losses down on noise that is too smooth and too wide, at their 64 x 64."""
    x = 1.3 * torch.nn.functional.avg_pool2d(noise(2, 4, 66, 66), 3, stride=1) * 3 + 0.1
    found = NoiseRegularisation()(x, [generator(1), generator(2)])
    assert (divergence(found) < divergence(x)).all()
    draws = [generator(8), generator(9)]
    shifts = [random_shifts(x.shape, draws) for _ in range(20)]
    before, after = (sum(autocorrelation(noise, s) for s in shifts) for noise in (x, found))
    assert (after < before).all()


def test_regularisation_is_by_row_and_off_at_weights_of_zero():
    x = noise(3, 4, 16, 16)
    whole = NoiseRegularisation()(x, [generator(i) for i in range(3)])
    torch.testing.assert_close(NoiseRegularisation()(x[1:2], [generator(1)]), whole[1:2])
    assert torch.equal(UNREGULARISED(x, [generator(i) for i in range(3)]), x)


# The editor


def test_inversion_is_that_of_diffusers(backbone, ddim, stock, images):
    editor = Pix2PixZero(backbone, ddim, GUIDANCE, seed=5)
    found = editor.invert(images[:1], SOURCES[:1]).state.pivots[0]
    draws = torch.Generator().manual_seed(image_seed(image_keys(images[:1])[0], "pix2pix_zero", 5))
    expected = stock.invert(
        SOURCES[0], image=backbone.encode_image(images[:1]), num_inference_steps=STEPS, generator=draws
    ).latents
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    plain = Pix2PixZero(backbone, ddim, GUIDANCE, regularisation=UNREGULARISED).invert(images[:1], SOURCES[:1])
    assert (plain.state.pivots[0] - found).abs().max() > 0.05  # so that it is not the inversion alone that agrees


@pytest.mark.parametrize("amount", [0.1, 100.0])  # the maps of the random backbone hardly move
def test_edit_is_that_of_diffusers(backbone, ddim, stock, images, amount):
    editor = Pix2PixZero(backbone, ddim, GUIDANCE, amount)
    inversion = editor.invert(images[:1], SOURCES[:1])
    expected = stock(
        SOURCES[0],
        source_embeds=stock.get_embeds([SOURCES[0]]),
        target_embeds=stock.get_embeds([TARGETS[0]]),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        negative_prompt=SOURCES[0],
        latents=inversion.state.pivots[0],
        cross_attention_guidance_amount=amount,
        output_type="latent",
    ).images
    found = editor.edit(inversion, EditRequest(TARGETS[:1]))
    torch.testing.assert_close(found, decode_latents(backbone, expected), rtol=0, atol=1e-3)
    unguided = Pix2PixZero(backbone, ddim, GUIDANCE, 0.0).edit(inversion, EditRequest(TARGETS[:1]))
    assert ((found - unguided).abs().max() > 0.02) == (amount > 1)


def test_without_its_parts_it_is_negative_prompt_inversion(backbone, ddim, images):
    editor = Pix2PixZero(backbone, ddim, GUIDANCE, 0.0, UNREGULARISED)
    plain = NegativePrompt(backbone, ddim, GUIDANCE, NOTHING)
    found, expected = (e.edit(e.invert(images, SOURCES), EditRequest(TARGETS)) for e in (editor, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    pivots = ddim_pivots(backbone, ddim, backbone.encode_image(images), backbone.encode_text(SOURCES))
    torch.testing.assert_close(editor.invert(images, SOURCES).state.pivots, pivots, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("held", [False, True])
def test_the_sources_prompt_or_no_direction_gives_the_source(backbone, ddim, images, held):
    editor = Pix2PixZero(backbone, ddim, GUIDANCE, held=held)
    inversion = editor.invert(images, SOURCES)
    source = editor.reconstruct(inversion)[-1]
    for request in (EditRequest(SOURCES), EditRequest(TARGETS, strength=0.0)):
        torch.testing.assert_close(editor.edit(inversion, request), decode_latents(backbone, source), rtol=0, atol=1e-3)
    on_image = torch.allclose(source, backbone.encode_image(images), atol=1e-4)
    assert on_image == held


def test_a_gradient_step_brings_the_maps_nearer(any_backbone, images):
    backbone = Backbone.load(any_backbone)
    editor = Pix2PixZero(backbone, Ddim(backbone.schedule, STEPS), amount=0.05)
    x = backbone.encode_image(images)
    source, pair = backbone.encode_text(SOURCES), backbone.encode_text([*SOURCES, *TARGETS])
    reference = editor._maps(x, 0, source)[1]

    def distance(both: Tensor) -> Tensor:
        """Of each image, over both of its rows."""
        maps = editor._maps(both, 0, pair)[1]
        squares = [(maps[name] - torch.cat([reference[name]] * 2)).square().flatten(1).sum(1) for name in maps]
        return torch.stack(squares).sum(0).view(2, 2).sum(0)

    both = torch.cat([x, x]) + 0.3 * noise(4, 4, 16, 16).float()
    with torch.no_grad():
        moved = editor._guided(both, 0, pair, reference)
        assert (distance(moved) < distance(both)).all()
        alone = editor._guided(both[[1, 3]], 0, pair[[1, 3]], {name: maps[1:] for name, maps in reference.items()})
    torch.testing.assert_close(alone, moved[[1, 3]], rtol=1e-4, atol=1e-5)
