"""Inversion and editing: the paper's two algorithms restated, and the properties that a user relies on."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from models.masks import soft_mask
from models.text import Prompt, interpolate
from models.turboedit_pipeline import TurboEditInversion, TurboEditPipeline
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET = "a red circle on grass", "a blue circle on grass"
STEPS = (999, 749, 499, 249)


@pytest.fixture(scope="module")
def pipeline(any_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(any_backbone)


@pytest.fixture(scope="module")
def inversion(pipeline: TurboEditPipeline) -> TurboEditInversion:
    return pipeline.invert(pictures(1), SOURCE)


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def assert_near(actual: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Equal to `share` of the largest value: a random generator's x0 at t = 999 is large."""
    assert (actual - expected).abs().max() <= share * expected.abs().max().clamp_min(1)


def latent(inversion: TurboEditInversion) -> Tensor:
    return inversion.reconstructions[-1]


class Exact:
    """G and F in float64, written down plainly from the paper and the definitions of epsilon and v."""

    def __init__(self, pipeline: TurboEditPipeline) -> None:
        self.unet, self.encoder = (copy.deepcopy(unet).double() for unet in (pipeline.unet, pipeline.encoder))
        self.abar = pipeline.scheduler.alphas_cumprod.double()
        self.velocity = pipeline.scheduler.config.prediction_type == "v_prediction"

    def call(self, unet: Callable, x: Tensor, prompt: Prompt, t: int) -> Tensor:
        added = None
        if prompt.pooled is not None and prompt.time_ids is not None:
            added = {"text_embeds": prompt.pooled.double(), "time_ids": prompt.time_ids.double()}
        return unet(x, t, prompt.embeds.double(), added_cond_kwargs=added).sample

    def noise(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: int) -> Tensor:
        """Mean of F."""
        output = self.call(self.encoder, torch.cat([x0, x0_prev], 1), prompt, t)[:, :4]
        a, b = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
        return b * x0 + a * output if self.velocity else output

    def step(self, x0_prev: Tensor, noise: Tensor, prompt: Prompt, t: int) -> Tensor:
        """G at the noised previous reconstruction."""
        a, b = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
        x_t = a * x0_prev + b * noise
        output = self.call(self.unet, x_t, prompt, t)
        return a * x_t - b * output if self.velocity else (x_t - b * output) / a


@torch.no_grad()
def test_invert_is_algorithm_1(pipeline: TurboEditPipeline):
    image = pictures(2)
    inversion = pipeline.invert(image, [SOURCE, TARGET])
    exact, prompt = Exact(pipeline), pipeline.backbone.encode_text([SOURCE, TARGET])
    x0 = pipeline.backbone.encode_image(image).double()
    reconstruction = torch.zeros_like(x0)
    assert inversion.timesteps == STEPS and inversion.texts == ((SOURCE,), (TARGET,))
    for i, t in enumerate(STEPS):
        noise = exact.noise(x0, reconstruction, prompt, t)
        reconstruction = exact.step(reconstruction, noise, prompt, t)
        assert_near(inversion.noises[i], noise, 1e-4)
        assert_near(inversion.reconstructions[i], reconstruction, 1e-4)


@pytest.mark.parametrize(("masked", "outside"), [(False, "source"), (True, "reconstruction"), (True, "source")])
@torch.no_grad()
def test_edit_is_algorithm_2(pipeline: TurboEditPipeline, masked: bool, outside: str):
    """With "source" the picture's own latent stands outside of the mask after the last step."""
    inversion = pipeline.invert(pictures(2), SOURCE)
    mask = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float() if masked else None
    output = pipeline.edit(inversion, TARGET, mask=mask, blur=0.0, outside=outside)
    exact, prompt = Exact(pipeline), pipeline.backbone.encode_text([TARGET] * 2)
    x0 = torch.zeros(2, 4, 16, 16, dtype=torch.float64)
    for i, t in enumerate(STEPS):
        x0 = exact.step(x0, inversion.noises[i].double(), prompt, t)
        if mask is not None:
            x0 = mask * x0 + (1 - mask) * inversion.reconstructions[i].double()
        assert_near(output.inversion.reconstructions[i], x0, 1e-4)
    if mask is not None and outside == "source":
        latent = pipeline.backbone.encode_image(pictures(2))
        assert torch.equal(output.inversion.latent * (1 - mask), latent * (1 - mask))
    if outside == "reconstruction":
        assert_near(output.inversion.latent, x0, 1e-4)


def test_evaluations_are_counted(pipeline: TurboEditPipeline):
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in (("F", pipeline.encoder), ("G", pipeline.unet))
    ]
    inversion = pipeline.invert(pictures(2), SOURCE)
    assert calls == ["F", "G"] * 4
    for options, count in (
        ({}, 4),
        ({"mask": "auto"}, 4),
        ({"mask": "attention"}, 8),  # the maps of the source are gathered when they are first needed
        ({"mask": "attention"}, 4),
        ({"strength": 1.5}, 4),
        ({"mask": torch.ones(1, 1, 64, 64)}, 4),
    ):
        calls.clear()
        pipeline.edit(inversion, TARGET, **options)
        assert calls == ["G"] * count
    for mask, of_edit in (("auto", []), ("attention", []), ("noise", ["F"])):
        calls.clear()
        pipeline(pictures(2), SOURCE, TARGET, mask=mask)
        assert calls == ["F", "G"] * 4 + of_edit + ["G"] * 4
    for hook in hooks:
        hook.remove()


def test_same_noise_and_prompt_give_back_the_reconstruction_exactly(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion
):
    again = pipeline.edit(inversion, SOURCE).inversion
    assert all(torch.equal(x, y) for x, y in zip(again.reconstructions, inversion.reconstructions, strict=True))


def test_strength_0_is_the_reconstruction_and_1_the_plain_target(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion
):
    still = pipeline.edit(inversion, TARGET, strength=0.0).inversion
    assert torch.equal(latent(still), latent(inversion))
    full = pipeline.edit(inversion, TARGET, strength=1.0).inversion
    assert torch.equal(full.prompt.embeds, pipeline.backbone.encode_text([TARGET]).embeds)
    assert not torch.equal(latent(full), latent(inversion))


@pytest.mark.parametrize("strength", [-0.5, 0.25, 0.5, 1.5])
def test_prompts_are_mixed_linearly(pipeline: TurboEditPipeline, inversion: TurboEditInversion, strength: float):
    mixed = pipeline.edit(inversion, TARGET, strength=strength).inversion.prompt
    source, target = (pipeline.backbone.encode_text([text]) for text in (SOURCE, TARGET))
    for name in ("embeds", "pooled"):
        a, b = getattr(source, name), getattr(target, name)
        if a is None:
            assert name == "pooled" and mixed.pooled is None and pipeline.text_encoder_2 is None
            continue
        torch.testing.assert_close(getattr(mixed, name), (1 - strength) * a + strength * b, rtol=1e-5, atol=1e-6)
    assert source.time_ids is None or torch.equal(mixed.time_ids, source.time_ids)


def test_aligned_words_go_from_place_to_place(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    longer = SOURCE.replace("red", "small red", 1)
    assert longer != SOURCE
    mixed = pipeline.edit(inversion, longer, strength=0.25, align=True).inversion.prompt
    source, target = (pipeline.backbone.encode_text([text]).embeds[0] for text in (SOURCE, longer))
    tokens = [pipeline.backbone.text.tokenizers[0](text).input_ids for text in (SOURCE, longer)]
    first = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
    added = len(tokens[1]) - len(tokens[0])
    for place in range(len(tokens[1])):
        origin = place - added if place >= first + added else place
        expected = 0.75 * source[origin] + 0.25 * target[place]
        torch.testing.assert_close(mixed.embeds[0, place], expected, rtol=1e-5, atol=1e-6)
    same = pipeline.edit(inversion, longer, align=True).inversion.prompt
    assert torch.equal(same.embeds[0], target)
    with pytest.raises(ValueError, match="one description at a time"):
        pipeline.edit(inversion, {longer: 0.5, TARGET: 0.5}, align=True)


def test_several_wishes_add_up(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    other = "a red circle on sand"
    wishes = {TARGET: 0.75, other: -0.5}
    mixed = pipeline.edit(inversion, wishes).inversion.prompt
    source, first, second = (pipeline.backbone.encode_text([text]).embeds for text in (SOURCE, TARGET, other))
    expected = source + 0.75 * (first - source) - 0.5 * (second - source)
    torch.testing.assert_close(mixed.embeds, expected, rtol=1e-5, atol=1e-6)
    one = pipeline.edit(inversion, {TARGET: 1.0}).inversion
    assert torch.equal(latent(one), latent(pipeline.edit(inversion, TARGET).inversion))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), (1.0, -float("inf"))])
def test_strengths_are_finite(pipeline: TurboEditPipeline, inversion: TurboEditInversion, strength: object):
    for prompt, own in ((TARGET, {"strength": strength}), ({TARGET: 1.0, "a cat": strength}, {})):
        with pytest.raises(ValueError, match="expected finite numbers"):
            pipeline.edit(inversion, prompt, **own)


def test_interpolation_wants_a_strength_for_each_target(inversion: TurboEditInversion):
    with pytest.raises(ValueError, match="2 target prompts but 1 strengths"):
        interpolate(inversion.prompt, [inversion.prompt] * 2, [1.0])


def test_an_edit_can_be_edited(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    first = pipeline.edit(inversion, TARGET).inversion
    assert first.texts == ((TARGET,),) and first.timesteps == inversion.timesteps
    again = pipeline.edit(first, TARGET).inversion
    assert torch.equal(latent(again), latent(first))
    back = pipeline.edit(first, SOURCE).inversion
    assert torch.equal(latent(back), latent(inversion))
    nothing = torch.zeros(1, 1, 64, 64)
    kept = pipeline.edit(first, SOURCE, mask=nothing).inversion
    assert torch.equal(kept.latent, first.latent)


@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0])
def test_where_nothing_changes_the_picture_itself_stands(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, strength: float
):
    """As far as the edit is what the reconstruction was; against the formula in plain loops."""
    edited = pipeline.edit(inversion, TARGET, strength).inversion
    paper = pipeline.edit(inversion, TARGET, strength, outside="reconstruction").inversion
    assert torch.equal(latent(edited), latent(paper)) and torch.equal(paper.latent, latent(paper))
    made, source, picture = (x[0].double().numpy() for x in (latent(paper), latent(inversion), inversion.latent))
    expected, shares = made.copy(), []
    for y, x in np.ndindex(*made.shape[1:]):
        distance = math.sqrt(sum((made[c, y, x] - source[c, y, x]) ** 2 for c in range(4)) / 4)
        shares.append(math.exp(-((distance / 0.5) ** 2)))
        expected[:, y, x] += shares[-1] * (picture[:, y, x] - source[:, y, x])
    assert_near(edited.latent[0], torch.from_numpy(expected))
    if strength == 0:
        assert min(shares) > 0.999
        assert_near(edited.latent, inversion.latent, 1e-3)
    elif strength > 1:
        assert 0.001 < np.mean(shares) < 0.999


def test_at_a_masks_soft_edge_edit_and_picture_are_mixed_once(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion
):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    output = pipeline.edit(inversion, TARGET, mask=mask, blur=1.0)
    soft = output.mask
    assert ((soft > 0) & (soft < 1)).float().mean() > 0.1
    # The generator's last estimate, found back from its own mixture with the reconstruction.
    source, picture = latent(inversion), inversion.latent
    made = (latent(output.inversion) - (1 - soft) * source) / soft.clamp_min(1e-3)
    share = torch.exp(-(made - source).square().mean(1, keepdim=True) / 0.25)
    expected = soft * (made + share * (picture - source)) + (1 - soft) * picture
    where = (soft > 0.1).expand_as(expected)
    assert_near(output.inversion.latent[where], expected[where], 1e-3)


def test_outside_the_mask_the_source_stays(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    output = pipeline.edit(inversion, TARGET, mask=mask)
    free = pipeline.edit(inversion, TARGET).inversion
    assert output.mask is not None and output.mask.shape == (1, 1, 16, 16)
    outside = (output.mask == 0).expand(1, 4, 16, 16)
    assert outside.float().mean() > 0.3
    assert torch.equal(inversion.latent, pipeline.backbone.encode_image(pictures(1)))
    for edited, source in zip(output.inversion.reconstructions, inversion.reconstructions, strict=True):
        assert torch.equal(edited[outside], source[outside])
    assert torch.equal(output.inversion.latent[outside], inversion.latent[outside])
    # Without the mask the next edit still has the picture itself there.
    back = pipeline.edit(output.inversion, SOURCE, strength=1.0).inversion
    assert_near(back.latent[outside], inversion.latent[outside], 1e-3)
    assert not torch.equal(latent(output.inversion)[~outside], latent(inversion)[~outside])
    everything = pipeline.edit(inversion, TARGET, mask=torch.ones(1, 1, 64, 64)).inversion
    assert_near(latent(everything), latent(free))


def test_outside_all_masks_of_edits_on_edits_the_picture_stays(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion
):
    """Outside of a mask stands what is edited: here an earlier edit, which outside of its own mask is the source."""
    left, top = torch.zeros(2, 1, 1, 16, 16)
    left[..., :8] = top[..., :8, :] = 1
    first = pipeline.edit(inversion, TARGET, mask=left, blur=0.0).inversion
    second = pipeline.edit(first, "a star", mask=top, blur=0.0).inversion
    outside = ((left + top) == 0).expand_as(second.latent)
    assert torch.equal(second.latent[outside], inversion.latent[outside])
    earlier = ((left == 1) & (top == 0)).expand_as(second.latent)
    assert torch.equal(second.latent[earlier], first.latent[earlier])
    assert not torch.equal(second.latent[earlier], inversion.latent[earlier])
    # An edit without a mask is itself the picture that the next one keeps.
    free = pipeline.edit(inversion, TARGET).inversion
    kept = pipeline.edit(free, SOURCE, mask=torch.zeros(1, 1, 16, 16)).inversion
    assert torch.equal(kept.latent, free.latent)


def test_an_inversion_without_its_latent_keeps_the_reconstruction_and_says_so(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    nothing, path = torch.zeros(1, 1, 16, 16), tmp_path / "file.safetensors"
    inversion.save(path)
    again = pipeline.load_inversion(path)
    assert torch.equal(again.latent, inversion.latent)
    kept = pipeline.edit(again, TARGET, mask=nothing).inversion
    kept.save(path)
    assert torch.equal(pipeline.load_inversion(path).latent, inversion.latent) and not caplog.records
    replace(inversion, latent=None).save(path)
    before = pipeline.load_inversion(path)
    assert before.latent is None
    found = pipeline.edit(before, TARGET, mask=nothing).inversion
    assert torch.equal(latent(found), latent(inversion))
    assert "where nothing changes stands the last reconstruction; invert the picture anew" in caplog.text
    caplog.clear()
    pipeline.edit(before, TARGET, mask=nothing, outside="reconstruction")
    assert not caplog.records
    pipeline.edit(before, TARGET)
    assert "where nothing changes" in caplog.text


def test_an_unknown_outside_is_refused(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    with pytest.raises(ValueError, match="outside is 'black'; expected source or reconstruction"):
        pipeline.edit(inversion, TARGET, outside="black")


def test_a_picture_as_mask_is_the_same_as_its_tensor(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    tensor = torch.zeros(1, 1, 64, 64)
    tensor[..., 10:40, 20:50] = 1
    picture = Image.fromarray((tensor[0, 0] * 255).byte().numpy())
    outputs = [pipeline.edit(inversion, TARGET, mask=mask) for mask in (tensor, picture, picture.convert("RGB"))]
    assert all(torch.equal(output.mask, outputs[0].mask) for output in outputs)


def test_a_picture_as_mask_is_cropped_like_the_image(pipeline: TurboEditPipeline):
    """White where a wide picture is bright: the mask must find the same place in the cropped picture."""
    wide = Image.new("RGB", (128, 64), "black")
    wide.paste("white", (72, 16, 88, 48))
    image = pipeline.preprocess(wide)
    mask = pipeline.edit(pipeline.invert(wide, SOURCE), TARGET, mask=wide, blur=0.0).mask
    assert image.shape[-1] > image.shape[-2]
    expected = soft_mask((image[:, :1] + 1) / 2, (image.shape[-2] // 4, image.shape[-1] // 4), 0.0)
    torch.testing.assert_close(mask, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["auto", "prediction", "noise", "attention"])
def test_automatic_mask(pipeline: TurboEditPipeline, kind: str):
    inversion = pipeline.invert(pictures(2), SOURCE)
    output = pipeline.edit(inversion, [TARGET, SOURCE], mask=kind, threshold=0.9)
    assert output.mask is not None and output.mask.shape == (2, 1, 16, 16)
    assert output.mask[0].max() > 0.5 and output.mask.min() >= 0 and output.mask.max() <= 1
    assert output.mask[1].max() == 0, "no word differs, so nothing may change"
    assert torch.equal(output.inversion.latent[1], inversion.latent[1])
    wider = pipeline.edit(inversion, [TARGET, SOURCE], mask=kind, threshold=0.5)
    assert wider.mask.mean() >= output.mask.mean()


@pytest.mark.parametrize(
    ("target", "removed", "added"), [("ab ef", [3, 4], [3, 4]), ("ab", [3, 4], []), ("ab xyz cd", [], [3, 4, 5])]
)
def test_mask_from_attention_is_where_either_prompts_own_words_are(
    pipeline: TurboEditPipeline, target: str, removed: list[int], added: list[int]
):
    """The tiny tokenizer spells: "ab cd" is <start>, a, b, c, d, <end>, so the positions can be written down."""
    inversion = pipeline.invert(pictures(1), "ab cd", attention=True)
    output = pipeline.edit(inversion, target, mask="attention", threshold=0.9, blur=0.7)
    places = torch.zeros(1, 8, 8)
    for maps, positions in ((inversion.attention, removed), (output.inversion.attention, added)):
        if positions:
            heat = maps[..., positions].sum(-1)
            places = torch.maximum(places, (heat / heat.max() > 0.9).float())
    assert 0 < places.mean() < 1
    torch.testing.assert_close(output.mask, soft_mask(places[None], (16, 16), 0.7))


def test_mask_from_attention_of_several_wishes_is_their_union(pipeline: TurboEditPipeline):
    inversion = pipeline.invert(pictures(1), "ab cd ef")
    # Strength 0 leaves the attention as it was, so the masks differ by their words alone.
    first, second, both = (
        pipeline.edit(inversion, wishes, mask="attention", threshold=0.95, blur=0.0).mask
        for wishes in ({"ab": 0.0}, {"cd ef": 0.0}, {"ab": 0.0, "cd ef": 0.0})
    )
    assert not torch.equal(first, second)
    assert torch.equal(both > 0, torch.maximum(first, second) > 0)


def reference_difference_mask(difference: Tensor, threshold: float) -> Tensor:
    """Where the mean over channels of |difference| [4, 16, 16], smoothed by a latent pixel, exceeds a share."""
    smooth = gaussian_filter(difference.abs().mean(0).double().numpy(), 1.0, mode="nearest", truncate=3.0)
    return torch.from_numpy(smooth > threshold * smooth.max()).float()


@torch.no_grad()
def test_masks_from_differences_are_those_of_the_exact_networks(pipeline: TurboEditPipeline):
    inversion = pipeline.invert(pictures(1), SOURCE)
    exact = Exact(pipeline)
    source, target = (pipeline.backbone.encode_text([text]) for text in (SOURCE, TARGET))
    nothing, x0 = torch.zeros(1, 4, 16, 16, dtype=torch.float64), inversion.latent.double()
    noise = inversion.noises[0].double()
    differences = {
        "prediction": exact.step(nothing, noise, target, 999) - exact.step(nothing, noise, source, 999),
        "noise": exact.noise(x0, nothing, target, 999) - exact.noise(x0, nothing, source, 999),
    }
    for kind, difference in differences.items():
        found = pipeline.edit(inversion, TARGET, mask=kind, threshold=0.7, blur=0.0).mask
        expected = reference_difference_mask(difference[0], 0.7)
        assert 0 < expected.mean() < 1
        assert (found[0, 0] - expected).abs().mean() <= 1 / 256  # a place at the threshold may fall on either side


def test_masks_from_differences_compare_with_what_is_edited(pipeline: TurboEditPipeline, tmp_path: Path):
    """On an edit they are where the new prompt differs from that edit's, also outside of that edit's mask."""
    half = torch.zeros(1, 1, 16, 16)
    half[..., :8] = 1
    first = pipeline.edit(pipeline.invert(pictures(1), SOURCE), TARGET, mask=half, blur=0.0).inversion
    first.save(tmp_path / "first.safetensors")
    for edited in (first, pipeline.load_inversion(tmp_path / "first.safetensors")):
        for kind in ("prediction", "noise"):
            assert pipeline.edit(edited, TARGET, mask=kind).mask.max() == 0
            assert pipeline.edit(edited, TARGET, strength=0.0, mask=kind).mask.max() == 0
            assert pipeline.edit(edited, "a star", mask=kind).mask.max() > 0.5


def test_a_mask_from_noise_needs_the_latent(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    with pytest.raises(ValueError, match="holds no latent of the picture, which mask 'noise' needs; invert"):
        pipeline.edit(replace(inversion, latent=None), TARGET, mask="noise")


def test_a_batch_is_its_images_one_by_one(any_backbone: str):
    # Networks in float64: in float32 the kernels round differently for each batch size, and eight passes amplify it.
    pipeline = tiny_pipeline(any_backbone).to(torch.float64)
    images, sources, targets = pictures(2), [SOURCE, "a star"], [TARGET, "a big star"]
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, :8] = mask[1, :, :, 4:] = 1
    both = pipeline.invert(images, sources)
    edited = pipeline.edit(both, targets, strength=0.7, mask=mask)
    assert len(edited.images) == 2
    for i in range(2):
        single = pipeline.invert(images[i : i + 1], sources[i])
        alone = pipeline.edit(single, targets[i], strength=0.7, mask=mask[i : i + 1])
        for whole, part in zip(both.noises, single.noises, strict=True):
            assert_near(whole[i : i + 1], part)
        assert_near(latent(both)[i : i + 1], latent(single))
        assert_near(latent(edited.inversion)[i : i + 1], latent(alone.inversion))


def test_sampled_noise_comes_from_the_generator(pipeline: TurboEditPipeline):
    image = pictures(1)
    mean = pipeline.invert(image, SOURCE).noises
    first, again, other = (
        pipeline.invert(image, SOURCE, sample=True, generator=torch.Generator().manual_seed(seed)).noises
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    sigma = torch.exp(torch.tensor(-2.0))
    assert (first[0] - mean[0]).std() == pytest.approx(sigma.item(), rel=0.15)


@pytest.mark.parametrize(("num_steps", "timesteps"), [(1, (999,)), (2, (999, 499)), (4, STEPS), (None, STEPS)])
@torch.no_grad()
def test_fewer_steps_are_evenly_spaced(pipeline: TurboEditPipeline, num_steps: int | None, timesteps: tuple[int, ...]):
    """As diffusers' trailing spacing has them; the reconstruction before a step is that of the step taken before it."""
    short = pipeline.invert(pictures(1), SOURCE, num_steps=num_steps)
    assert short.timesteps == timesteps and len(short.noises) == len(timesteps)
    exact, prompt = Exact(pipeline), pipeline.backbone.encode_text([SOURCE])
    x0 = pipeline.backbone.encode_image(pictures(1)).double()
    reconstruction = torch.zeros_like(x0)
    for i, t in enumerate(timesteps):
        noise = exact.noise(x0, reconstruction, prompt, t)
        reconstruction = exact.step(reconstruction, noise, prompt, t)
        assert_near(short.reconstructions[i], reconstruction, 1e-4)
    assert torch.equal(latent(pipeline.edit(short, SOURCE).inversion), latent(short))


@pytest.mark.parametrize(
    ("known", "possible"),
    [((999, 749, 499, 249), {1, 2, 4}), ((999, 499), {1, 2}), ((999, 799, 599, 399, 199), {1, 5}), ((900, 300), {2})],
)
def test_numbers_of_steps_follow_from_the_training(
    pipeline: TurboEditPipeline, known: tuple[int, ...], possible: set[int]
):
    other = TurboEditPipeline(**pipeline.components, timesteps=" ".join(map(str, known)))
    for num_steps in range(7):
        if num_steps in possible:
            assert len(other.timesteps_of(num_steps)) == num_steps and set(other.timesteps_of(num_steps)) <= set(known)
        else:
            with pytest.raises(ValueError, match=f"num_steps is {num_steps}; the encoder was trained on {len(known)}"):
                other.timesteps_of(num_steps)
    assert other.timesteps_of(len(known)) == known


def test_pictures_and_tensors(pipeline: TurboEditPipeline):
    picture = Image.effect_noise((96, 60), 60)
    one, two = pipeline.invert(picture, SOURCE), pipeline.invert([picture, picture.convert("RGB")], SOURCE)
    as_tensor = pipeline.invert(pipeline.preprocess(picture), SOURCE)
    assert torch.equal(latent(one), latent(as_tensor))
    assert_near(latent(two)[1:], latent(one), 1e-4)  # two rows at once round differently from one
    output = pipeline.edit(one, TARGET)
    assert [image.size for image in output.images] == [(80, 48)] and output.mask is None
    assert pipeline.decode(output.inversion.latent)[0].tobytes() == output.images[0].tobytes()


def test_one_step_encoder(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    single = TurboEditPipeline(**pipeline.components, timesteps="999", attention_resolution=8)
    single.set_progress_bar_config(disable=True)
    short = single.invert(pictures(1), SOURCE)
    assert short.timesteps == (999,)
    assert torch.equal(latent(short), inversion.reconstructions[0])


@pytest.mark.parametrize("num_steps", [0, 3, 5])
def test_impossible_numbers_of_steps_are_refused(pipeline: TurboEditPipeline, num_steps: int):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; the encoder was trained on 4 timesteps"):
        pipeline.invert(pictures(1), SOURCE, num_steps=num_steps)


def test_a_wrong_number_of_prompts_is_refused(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    with pytest.raises(ValueError, match="3 prompts for 2 images; give one prompt, or one for each image"):
        pipeline.invert(pictures(2), [SOURCE] * 3)
    with pytest.raises(ValueError, match="2 images for 3 results; give one for all of them, or one for each"):
        pipeline.edit(inversion[[0, 0]], [TARGET] * 3)


@pytest.mark.parametrize("mask", ["automatic", 3])
def test_an_unknown_kind_of_mask_is_refused(pipeline: TurboEditPipeline, inversion: TurboEditInversion, mask: object):
    with pytest.raises(
        ValueError, match=r'mask is .*; expected None, "auto", "prediction", "noise", "attention", a picture'
    ):
        pipeline.edit(inversion, TARGET, mask=mask)


@pytest.mark.parametrize("shape", [(64, 64), (1, 3, 64, 64)])
def test_a_mask_of_another_shape_is_refused(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, shape: tuple[int, ...]
):
    with pytest.raises(ValueError, match=r"mask has shape .*; expected \[1, 1, H, W\]"):
        pipeline.edit(inversion, TARGET, mask=torch.ones(shape))


def test_a_wrong_attention_resolution_is_refused(pipeline: TurboEditPipeline):
    other = TurboEditPipeline(**pipeline.components, attention_resolution=32)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="no cross-attention layer works at 32x32"):
        other.invert(pictures(1), SOURCE, attention=True)


def test_words_beyond_the_text_encoders_reach_are_reported(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, caplog: pytest.LogCaptureFixture
):
    pipeline.edit(inversion, TARGET)
    assert not caplog.records
    pipeline.edit(inversion, "red " * 200)
    assert "the prompt has" in caplog.text and f"first {pipeline.tokenizer.model_max_length}" in caplog.text


def test_an_empty_mapping_of_wishes_is_refused(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    with pytest.raises(ValueError, match="empty mapping"):
        pipeline.edit(inversion, {})


@pytest.mark.parametrize("value", [255.0, -0.1, torch.nan])
def test_a_mask_of_other_values_is_refused(pipeline: TurboEditPipeline, inversion: TurboEditInversion, value: float):
    with pytest.raises(ValueError, match=r"mask is a tensor .* from .*; expected values from 0 to 1"):
        pipeline.edit(inversion, TARGET, mask=torch.full((1, 1, 64, 64), value))
