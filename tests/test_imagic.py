"""Imagic: both fits learn, eta 0 gives the image back, the UNet is the same afterwards."""

from dataclasses import replace

import pytest
import torch

from eval.editors.editor import EditRequest, ReconstructingEditor, TargetFittingEditor, measured
from eval.editors.finetuning import finetune, finetune_adapter, wearing
from eval.editors.imagic import Imagic, denoising_loss
from eval.editors.options import ImagicConfig
from models.backbone import Backbone
from models.ddim import Ddim
from models.schedule import NoiseSchedule

TARGETS = ("a red square", "a blue circle")
FULL = ImagicConfig(embedding_steps=5, embedding_lr=0.1, unet_steps=8, unet_lr=3e-3, draws=4)
ADAPTER = ImagicConfig(embedding_steps=5, embedding_lr=0.1, unet_steps=8, unet_lr=3e-2, draws=4, lora_rank=4)
# Enough for what holds of every fit, however little it learns.
SHORT = ImagicConfig(embedding_steps=2, embedding_lr=0.02, unet_steps=3, unet_lr=3e-3, draws=2)
SHORT_ADAPTER = replace(SHORT, unet_lr=3e-2, lora_rank=4)


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def backbone(request, tiny_sd_backbone) -> Backbone:
    """The tiny Stable Diffusion with a schedule of either prediction type."""
    found = Backbone.load(tiny_sd_backbone)
    found.schedule = NoiseSchedule(found.schedule.alphas_cumprod, request.param)
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def imagic(backbone: Backbone, config: ImagicConfig, guidance: float = 1.0) -> Imagic:
    return Imagic(backbone, Ddim(backbone.schedule, 4), guidance, config)


def fixed_loss(backbone: Backbone, x0, prompt) -> float:
    """The loss at 64 fixed draws."""
    draw = torch.Generator().manual_seed(5)
    t, noise = torch.randint(1000, (64,), generator=draw), torch.randn((64, *x0.shape[1:]), generator=draw)
    return denoising_loss(backbone, x0, prompt, t, noise).item()


class Fit:
    """An image fitted to a target and edited, and the UNet as it was before."""

    @torch.no_grad()
    def __init__(self, backbone: Backbone, image: torch.Tensor, config: ImagicConfig) -> None:
        self.weights = {name: weight.clone() for name, weight in backbone.unet.state_dict().items()}
        self.modules = [name for name, _ in backbone.unet.named_modules()]
        self.editor = imagic(backbone, config)
        self.inversion = self.editor.invert(image, ["a shape"])
        self.editor.fit_target(self.inversion, EditRequest(TARGETS[:1]))
        self.editor.edit(self.inversion, EditRequest(TARGETS[:1], strength=0.9))


@pytest.fixture(scope="module", params=[FULL, ADAPTER], ids=["full", "lora"])
def fit(request, backbone, images) -> Fit:
    return Fit(backbone, images[:1], request.param)


def test_the_unet_is_left_alone(backbone, fit):
    backbone.assert_frozen()
    assert [name for name, _ in backbone.unet.named_modules()] == fit.modules
    assert all(torch.equal(fit.weights[name], weight) for name, weight in backbone.unet.state_dict().items())
    assert all(weight.grad is None for weight in backbone.unet.parameters())


@torch.no_grad()
def test_both_fits_learn(backbone, fit):
    fitted = fit.inversion.state.fitted[0, TARGETS[0]]
    x0 = fit.inversion.state.latents
    target, optimised = (fixed_loss(backbone, x0, prompt) for prompt in (fitted.target, fitted.optimised))
    with wearing(backbone.unet, fitted.weights):
        tuned = fixed_loss(backbone, x0, fitted.optimised)
    assert optimised < target
    assert tuned < 0.98 * optimised


@torch.no_grad()
def test_eta_zero_is_nearer_to_the_image_with_the_unet_fitted(backbone, images, fit):
    editor = imagic(backbone, replace(FULL, unet_steps=0))
    untuned = editor.invert(images[:1], ["a shape"])
    editor.fit_target(untuned, EditRequest(TARGETS[:1]))
    plain, tuned = (
        (by.reconstruct(inversion)[-1] - inversion.state.latents).square().mean()
        for by, inversion in ((editor, untuned), (fit.editor, fit.inversion))
    )
    assert tuned < plain


@torch.no_grad()
def test_prediction_type_decides_what_is_learned(backbone):
    """With the image's own latent at 0, the velocity is -b x0 + a noise and the noise is noise."""
    x0 = torch.ones(1, 4, 16, 16)
    prompt, t, noise = backbone.encode_text(["a"]), torch.tensor([400]), torch.zeros(1, 4, 16, 16)
    a, b = backbone.schedule.coefficients(t, x0)
    output = backbone.predict(a * x0, prompt, t)
    wanted = 0.0 if backbone.schedule.prediction_type == "epsilon" else -b
    assert denoising_loss(backbone, x0, prompt, t, noise).item() == pytest.approx(
        (output - wanted).square().mean().item()
    )


def test_a_second_strength_costs_no_second_fit(tiny_sd_backbone, images):
    editor = imagic(Backbone.load(tiny_sd_backbone), SHORT)
    meter = measured(editor)
    inversion = meter.invert(images, ["a shape"] * 2)
    first = meter.edit(inversion, EditRequest(TARGETS, strength=0.5))
    meter.fit_target(inversion, EditRequest(TARGETS))
    second = meter.edit(inversion, EditRequest(TARGETS, strength=1.1))
    steps = SHORT.draws * (SHORT.embedding_steps + SHORT.unet_steps)
    assert [cost.nfe for cost in meter.edit_costs] == [steps + 4, 4]
    assert meter.fit_costs[0].nfe == 0
    assert not torch.equal(first, second)
    meter.edit(inversion, EditRequest(TARGETS[::-1], strength=0.5))
    assert meter.edit_costs[-1].nfe == steps + 4  # other targets


@torch.no_grad()
@pytest.mark.parametrize("config", [SHORT, SHORT_ADAPTER], ids=["full", "lora"])
def test_result_belongs_to_the_image_not_to_its_batch(tiny_sd_backbone, images, config):
    editor = imagic(Backbone.load(tiny_sd_backbone), config, guidance=3.0)
    inversion = editor.invert(images, ["a shape"] * 2)
    whole, rebuilt = editor.edit(inversion, EditRequest(TARGETS)), editor.reconstruct(inversion)[-1]
    torch.manual_seed(77)  # the global generator has no say
    inversion = editor.invert(images[1:], ["a shape"])
    alone = editor.edit(inversion, EditRequest(TARGETS[1:]))
    assert torch.allclose(whole[1:], alone, atol=1e-5)
    assert torch.allclose(rebuilt[1:], editor.reconstruct(inversion)[-1], atol=1e-5)


@torch.no_grad()
def test_strength_mixes_the_embeddings(tiny_sd_backbone, images):
    """At eta 1 without a fitted UNet the edit is plain sampling of the target, whatever was optimised."""
    backbone = Backbone.load(tiny_sd_backbone)
    config = ImagicConfig(embedding_steps=5, embedding_lr=0.1, unet_steps=0)
    plain = ImagicConfig(embedding_steps=0, unet_steps=0)
    request = EditRequest(TARGETS, strength=1.0)
    found = [e.edit(e.invert(images, ["a"] * 2), request) for e in (imagic(backbone, c) for c in (config, plain))]
    assert torch.equal(*found)
    assert not torch.equal(
        found[0],
        imagic(backbone, config).edit(
            imagic(backbone, config).invert(images, ["a"] * 2), EditRequest(TARGETS, strength=0.5)
        ),
    )


def test_sdxl_has_its_pooled_embedding_too(tiny_backbone, images):
    editor = imagic(Backbone.load(tiny_backbone), ImagicConfig(embedding_steps=2, unet_steps=2), guidance=3.0)
    edited = measured(editor).edit(editor.invert(images, ["a shape"] * 2), EditRequest(TARGETS))
    assert edited.shape == images.shape
    assert edited.isfinite().all()


def test_unet_is_given_back_when_a_fit_fails(tiny_sd_backbone):
    unet = Backbone.load(tiny_sd_backbone).unet
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}

    def fail() -> torch.Tensor:
        raise RuntimeError("out of memory")

    for attempt in (lambda: finetune(unet, fail, 1, 1e-3), lambda: finetune_adapter(unet, fail, 1, 1e-3, 2, 0)):
        with pytest.raises(RuntimeError, match="out of memory"):
            attempt()
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in unet.parameters())


def test_it_is_the_editor_that_it_says(tiny_sd_backbone):
    editor = imagic(Backbone.load(tiny_sd_backbone), FULL)
    assert isinstance(editor, TargetFittingEditor)
    assert isinstance(editor, ReconstructingEditor)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_steps", -1),
        ("unet_steps", -1),
        ("embedding_lr", 0.0),
        ("unet_lr", -1.0),
        ("lora_rank", 0),
        ("draws", 0),
    ],
)
def test_impossible_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ImagicConfig(**{name: value})


def test_half_precision_is_refused(tiny_sd_backbone):
    backbone = Backbone.load(tiny_sd_backbone, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16; load the backbone in float32"):
        Imagic(backbone, Ddim(backbone.schedule, 4), 3.0)
