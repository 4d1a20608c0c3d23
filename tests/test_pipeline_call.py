"""What people do with a pipeline: pictures of any kind, one call, many results, forms of output, inversions on disk."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from eval.photo_edits.photographs import open_photograph
from models.turboedit_inversion import TurboEditInversion
from models.turboedit_pipeline import TurboEditPipeline
from models.words import changed_tokens
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET, OTHER = "a red star", "a blue star", "a red cat"


@pytest.fixture(scope="module")
def pipeline(tiny_sd_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_sd_backbone)


@pytest.fixture(scope="module")
def inversion(pipeline: TurboEditPipeline) -> TurboEditInversion:
    return pipeline.invert(images(2), [SOURCE, "a star"])


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    return Image.fromarray(levels).resize((120, 80))


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for what the size of a batch rounds differently."""
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def test_one_call_is_inversion_and_edit(pipeline: TurboEditPipeline):
    options: dict[str, Any] = {"strength": 0.7, "mask": "auto", "threshold": 0.9, "blur": 0.2}
    found = pipeline(images(1), SOURCE, TARGET, num_steps=2, output_type="pt", **options)
    inversion = pipeline.invert(images(1), SOURCE, num_steps=2)
    expected = pipeline.edit(inversion, TARGET, output_type="pt", **options)
    assert torch.equal(found.images, expected.images) and torch.equal(found.mask, expected.mask)
    assert found.inversion.timesteps == (999, 499)


def test_a_mistake_is_told_before_the_inversion(pipeline: TurboEditPipeline):
    calls: list[int] = []
    hook = pipeline.encoder.register_forward_hook(lambda *_: calls.append(1))
    for words in ({"target": {}}, {"target": 3}, {"target": TARGET, "output_type": "jpg"}):
        with pytest.raises(ValueError):
            pipeline(images(1), SOURCE, **words)
    hook.remove()
    assert not calls


def test_lists_give_many_edits_of_one_inversion_in_their_order(pipeline: TurboEditPipeline):
    alone = pipeline.invert(images(1), SOURCE)
    targets, strengths = [TARGET, OTHER, TARGET], [1.0, 0.4, -0.5]
    masks = torch.zeros(3, 1, 64, 64)
    for row in range(3):
        masks[row, :, : 20 * row + 20] = 1
    found = pipeline.edit(alone, targets, strengths, mask=masks, frozen_steps=1)
    assert len(found.images) == 3 and len(found.inversion) == 3
    for row in range(3):
        single = pipeline.edit(alone, targets[row], strengths[row], mask=masks[row : row + 1], frozen_steps=1)
        assert close(found.inversion.reconstructions[-1][row], single.inversion.reconstructions[-1][0]), row
    swept = pipeline.edit(alone, TARGET, [0.0, 1.0], output_type="latent").images
    assert close(swept[:1], alone.latent)
    assert close(swept[1:], pipeline.edit(alone, TARGET, output_type="latent").images)


def test_each_picture_has_its_own_strength(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    both = pipeline.edit(inversion, [TARGET, OTHER], [0.3, 1.2], output_type="latent").images
    for row, (target, strength) in enumerate([(TARGET, 0.3), (OTHER, 1.2)]):
        alone = pipeline.edit(inversion[[row]], target, strength, output_type="latent").images
        assert close(both[row], alone[0])


def test_strengths_of_a_mapping_may_differ_by_result(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    both = pipeline.edit(inversion, {TARGET: [0.3, 0.0], OTHER: 0.5}, output_type="latent").images
    alone = pipeline.edit(inversion[[1]], {TARGET: 0.0, OTHER: 0.5}, output_type="latent").images
    assert close(both[1], alone[0])


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([TARGET] * 3, {}, "2 images for 3 results; give one for all of them, or one for each"),
        (TARGET, {"strength": [1.0] * 3}, "2 images for 3 results"),
        ([TARGET] * 2, {"strength": [1.0, 0.5, 0.1]}, "2 images for 3 results"),
        (TARGET, {"mask": torch.ones(4, 1, 8, 8)}, "2 images for 4 results"),
        (TARGET, {"strength": "much"}, "strength is 'much'; expected a number, or a list"),
        (TARGET, {"strength": []}, r"strength is \[\]; expected a number"),
        ({TARGET: 0.5}, {"strength": 0.5}, "strength is 0.5 beside a mapping, which has its own"),
        (None, {}, "prompt is None; expected a text or a list of texts"),
        ([], {}, r"prompt is \[\]; expected a text"),
        ([TARGET, 3], {}, "prompt is .* expected a text or a list of texts"),
        (TARGET, {"output_type": "jpg"}, "output_type is 'jpg'; expected one of pil, np, pt, latent"),
        (TARGET, {"mask": "nowhere.png"}, 'mask is a str, \'nowhere.png\'; expected None, "auto", "prediction", '),
    ],
)
def test_what_does_not_go_together_is_refused(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, prompt: Any, options: dict[str, Any], words: str
):
    with pytest.raises(ValueError, match=words):
        pipeline.edit(inversion, prompt, **options)


def test_output_types_are_those_of_diffusers(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    found = {kind: pipeline.edit(inversion, TARGET, output_type=kind).images for kind in ("pil", "np", "pt", "latent")}
    assert found["latent"].shape == (2, 4, 16, 16) and found["pt"].shape == (2, 3, 64, 64)
    assert found["np"].shape == (2, 64, 64, 3) and found["np"].min() >= 0 and found["np"].max() <= 1
    np.testing.assert_array_equal(found["pt"].permute(0, 2, 3, 1).numpy(), found["np"])
    for picture, values in zip(found["pil"], found["np"], strict=True):
        np.testing.assert_array_equal(np.asarray(picture), (values * 255).round())
    assert torch.equal(pipeline.decode(found["latent"], "pt"), found["pt"])


def test_the_callback_sees_each_step_and_may_change_it(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    seen: list[tuple[int, int]] = []

    def watch(itself: Any, step: int, timestep: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        assert itself is pipeline
        seen.append((step, timestep))
        return {"latents": values["latents"] * (0.5 if step == 3 else 1)}

    plain = pipeline.edit(inversion, TARGET, output_type="latent").images
    halved = pipeline.edit(inversion, TARGET, output_type="latent", callback_on_step_end=watch).images
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert torch.equal(halved, plain * 0.5)


def test_each_image_may_have_a_generator(pipeline: TurboEditPipeline):
    def seeds(*values: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(value) for value in values]

    both = pipeline.invert(images(2), SOURCE, sample=True, generator=seeds(1, 2)).noises[0]
    alone = pipeline.invert(images(2)[1:], SOURCE, sample=True, generator=seeds(2)[0]).noises[0]
    assert close(both[1:], alone)
    with pytest.raises(ValueError, match="3 generators for 2 images; give one, or one for each image"):
        pipeline.invert(images(2), SOURCE, sample=True, generator=seeds(1, 2, 3))


def test_pictures_of_every_kind_are_the_same_picture(pipeline: TurboEditPipeline, photo: Image.Image, tmp_path: Path):
    photo.save(tmp_path / "photo.png")
    levels = np.asarray(photo)
    expected = pipeline.preprocess(photo)
    kinds = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        levels,
        levels / 255,
        levels[None],
        [photo],
        (levels,),
    ]
    for kind in kinds:
        assert torch.equal(pipeline.preprocess(kind), expected), type(kind)
    mixed = pipeline.preprocess([photo, str(tmp_path / "photo.png"), levels])
    assert torch.equal(mixed, expected.repeat(3, 1, 1, 1))
    assert torch.equal(pipeline.preprocess(expected), expected)
    assert torch.equal(pipeline.preprocess([expected[0], expected]), expected.repeat(2, 1, 1, 1))


def test_pictures_are_turned_and_laid_on_white(pipeline: TurboEditPipeline, tmp_path: Path):
    photo, turned = Image.new("RGBA", (80, 40), (255, 0, 0, 255)), Image.Exif()
    photo.paste((0, 0, 0, 0), (0, 0, 40, 40))  # the left half can be seen through
    turned[ExifTags.Base.Orientation] = 6  # the camera's right side was down: the left half becomes the upper one
    photo.save(tmp_path / "photo.png", exif=turned)
    upright = Image.new("RGB", (40, 80), "white")
    upright.paste((255, 0, 0), (0, 40, 40, 80))
    expected = pipeline.preprocess(upright)
    for given in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png")):
        assert torch.equal(pipeline.preprocess(given), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "the image is a NoneType, None; expected a PIL picture, the path of one"),
        ([], "the image is a list of 0; expected a PIL picture"),
        (7, "the image is a int, 7; expected a PIL picture"),
        (torch.zeros(3, 4, 64, 64), r"the image is a tensor \[3, 4, 64, 64\] of float32 from 0 to 0; expected"),
        ([torch.zeros(3, 64, 64), torch.zeros(3, 32, 32)], "the image is a list of 2, a tensor .* first; expected"),
        (np.zeros((8, 8, 4), np.uint8), r"the image is an array \[8, 8, 4\] of uint8 from 0 to 0; expected"),
        (np.full((8, 8, 3), 200.0), r"the image is an array \[8, 8, 3\] of float64 from 200 to 200; expected"),
        (np.full((8, 8, 3), np.nan), r"the image is an array \[8, 8, 3\] of float64 from nan to nan; expected"),
        (np.zeros((8, 8, 3), np.int64), r"the image is an array \[8, 8, 3\] of int64 from 0 to 0; expected"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"the image is an array \[0, 8, 8, 3\] of uint8; expected"),
        (Image.new("RGB", (0, 8)), "the image has no pixels: it is 0x8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "the image is a tensor .* of uint8 from 0 to 0; expected"),
        (torch.full((1, 3, 64, 64), 200.0), "the image is a tensor .* of float32 from 200 to 200; expected"),
        (torch.full((1, 3, 64, 64), torch.nan), "the image is a tensor .* of float32 from nan to nan; expected"),
        (torch.zeros(0, 3, 64, 64), "the image is a tensor .* of float32; expected"),
        (Image.new("F", (8, 8)), r"the image has pixels that are no 8-bit or 16-bit levels \(mode F\)"),
        ("nowhere.jpg", "there is no picture at nowhere.jpg"),
        (__file__, "test_pipeline_call.py is not a picture that can be read"),
    ],
)
def test_what_is_no_picture_is_refused(pipeline: TurboEditPipeline, image: Any, words: str):
    with pytest.raises(ValueError, match=words):
        pipeline.invert(image, SOURCE)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "JPEG2000"])
def test_a_picture_of_a_format_that_is_not_taken_hears_which_are(
    pipeline: TurboEditPipeline, tmp_path: Path, kind: str
):
    path = tmp_path / "photo"
    Image.new("RGB", (64, 64)).save(path, kind)
    said = r"photo is not a picture that can be read \((not an image: )?it begins with b[^<]*, expected one of BMP, GIF"
    for read in (lambda: pipeline.invert(path, SOURCE), lambda: open_photograph(path)):
        with pytest.raises(ValueError, match=said):
            read()


def test_masks_may_be_files_and_lists(pipeline: TurboEditPipeline, inversion: TurboEditInversion, tmp_path: Path):
    drawn = Image.new("L", (64, 64))
    drawn.paste(255, (0, 0, 30, 64))
    drawn.save(tmp_path / "mask.png")
    expected = pipeline.edit(inversion, TARGET, mask=drawn).mask
    levels = np.asarray(drawn.convert("L"))
    arrays = (levels, levels > 127, levels / 255)
    for mask in (tmp_path / "mask.png", str(tmp_path / "mask.png"), [drawn, drawn], *arrays):
        assert close(pipeline.edit(inversion, TARGET, mask=mask).mask, expected)


def test_an_inversion_is_the_same_after_a_file(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, tmp_path: Path
):
    path = tmp_path / "photo.safetensors"
    inversion.save(path)
    again = pipeline.load_inversion(path)
    assert again.texts == inversion.texts and again.timesteps == inversion.timesteps
    first, second = (
        pipeline.edit(x, TARGET, mask="attention", output_type="latent").images for x in (inversion, again)
    )
    assert close(first, second)  # where a tensor lies in memory may change the order of a sum
    assert all(torch.equal(a, b) for a, b in zip(again.sigmas, inversion.sigmas, strict=True))
    inversion.save(path)
    assert torch.equal(TurboEditInversion.load(path).attention, inversion.attention), "gathered maps are kept"
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it as any file"


def test_maps_of_files_from_when_all_were_squares_are_read(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, tmp_path: Path
):
    gathered = pipeline.invert(images(1), SOURCE, attention=True)
    replace(gathered, attention=gathered.attention.flatten(1, 2)).save(tmp_path / "before.safetensors")
    again = pipeline.load_inversion(tmp_path / "before.safetensors")
    assert again.attention.shape == (1, 8, 8, 77) and torch.equal(again.attention, gathered.attention)


def test_an_inversion_of_another_generator_is_refused(pipeline: TurboEditPipeline):
    found = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
    other = replace(found.prompt, embeds=found.prompt.embeds[..., :-1])
    with pytest.raises(ValueError, match="the inversion was made with another generator: its prompts are "):
        pipeline.edit(replace(found, prompt=other), "a blue star")


def test_what_is_no_inversion_is_refused(tmp_path: Path, tiny_sd_backbone: str):
    with pytest.raises(ValueError, match=r"there is no inversion at .*nowhere"):
        TurboEditInversion.load(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is no inversion: it cannot be read as safetensors"):
        TurboEditInversion.load(tmp_path / "text")
    with pytest.raises(ValueError, match="is no inversion: its format is 'pt'"):
        TurboEditInversion.load(Path(tiny_sd_backbone) / "unet" / "diffusion_pytorch_model.safetensors")


def test_an_inversion_moves_with_all_its_tensors(pipeline: TurboEditPipeline):
    inversion = pipeline.invert(images(1), SOURCE, attention=True)
    moved = inversion.to("meta")
    tensors = [*moved.noises, *moved.reconstructions, *moved.sigmas, moved.prompt.embeds, moved.attention]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert inversion.to(torch.float16).noises[0].dtype == torch.float16 and inversion.noises[0].dtype == torch.float32


def test_rows_of_an_inversion(inversion: TurboEditInversion):
    assert inversion[[1, 1, 0]].texts == (("a star",), ("a star",), (SOURCE,))
    assert torch.equal(inversion[1:].noises[2], inversion.noises[2][1:])


def test_all_texts_of_several_attributes_are_kept(pipeline: TurboEditPipeline):
    """A word that one of them brought is no new one: here nothing is, so a mask from attention is empty."""
    first, second = "a red star at night", "a red star on grass"
    inversion = pipeline.edit(pipeline.invert(images(1), SOURCE), {first: 0.5, second: 0.5}).inversion
    assert inversion.texts == ((first, second),)
    both = "a red star at night on grass"
    mask = pipeline.edit(inversion, both, mask="attention", threshold=0.9).mask
    assert mask.max() == 0
    more = pipeline.edit(inversion, both + " smiling", mask="attention", threshold=0.9, blur=0.0)
    (tokens,) = changed_tokens(pipeline.tokenizer, [both + " smiling"], [both])
    heat = more.inversion.attention[..., tokens].sum(-1)
    assert torch.equal(more.mask.amax() > 0, torch.tensor(True))
    assert (more.mask > 0.99).sum() <= 4 * (heat / heat.max() > 0.9).sum(), "only the new word's places may change"
    with pytest.raises(ValueError, match="cannot be frozen on top of several attributes"):
        pipeline.edit(inversion, both, frozen_steps=1)


def test_gathered_maps_are_those_of_the_inversion(pipeline: TurboEditPipeline):
    gathered, later = pipeline.invert(images(1), SOURCE, attention=True), pipeline.invert(images(1), SOURCE)
    assert later.attention is None
    pipeline.edit(later, TARGET, mask="attention")
    assert torch.equal(later.attention, gathered.attention)


def test_the_backbone_is_built_once_for_the_same_parts(tiny_sd_backbone: str):
    pipeline = tiny_pipeline(tiny_sd_backbone)
    first = pipeline.backbone
    pipeline(images(1), SOURCE, TARGET, mask="attention")
    assert pipeline.backbone is first
    unet = tiny_pipeline(tiny_sd_backbone).unet.requires_grad_(True).train()
    pipeline.unet = unet
    assert pipeline.backbone.unet is unet and not unet.training and not unet.conv_in.weight.requires_grad


def test_two_threads_share_a_pipeline(pipeline: TurboEditPipeline):
    """Rules on the shared UNet's layers are of one call: each gets what it would get alone, and none stays behind."""
    before = dict(pipeline.unet.attn_processors)
    options: list[dict[str, Any]] = [{}, {"mask": "auto"}, {"frozen_steps": 2}, {"mask": "auto", "frozen_steps": 1}]
    expected = [pipeline(images(1), SOURCE, TARGET, output_type="latent", **words).images for words in options]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        words = options[number % len(options)]
        found[number] = pipeline(images(1), SOURCE, TARGET, output_type="latent", **words).images

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12, "a call failed"
    assert all(torch.equal(result, expected[number % len(options)]) for number, result in found.items())
    assert pipeline.unet.attn_processors == before
