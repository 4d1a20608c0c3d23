"""Pictures that are no squares and of other sizes: the algorithms, masks, frozen steps, sizes that SDXL is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from data.shards.encodings import latents_with_pivots
from eval.editors.catalogue import Command, available
from eval.editors.editor import EditRequest, ReconstructingEditor
from eval.editors.models import FewStepModel, ManyStepModel
from eval.editors.options import ImagicConfig, NullTextSchedule
from models.attention import attention_layers, controlled
from models.attention_maps import AttentionMaps, Capture
from models.backbone import Backbone
from models.clip import token_shape
from models.ddim import Ddim
from models.shapes import Cutout, SizeConditioning
from models.stylediffusion_pipeline import StyleDiffusionPipeline
from models.text import micro_conditioning
from models.turboedit_inversion import TurboEditInversion
from models.turboedit_pipeline import TurboEditPipeline
from models.value_mapper import AmortisedMapper
from tests.test_turboedit_pipeline import Exact, assert_near, latent
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET, OTHER = "a red circle on grass", "a blue circle on grass", "a red circle on sand"
FURTHER = [pytest.param(size, marks=pytest.mark.long) for size in [(96, 96), (128, 128), (64, 96)]]
SIZES = [(48, 80), (96, 64), (32, 128), *FURTHER]
"""Heights and widths in pixels, four times the latents'; the backbones were made for 64 x 64."""


@pytest.fixture(scope="module")
def pipeline(either_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(either_backbone)


@pytest.fixture(scope="module")
def sdxl(tiny_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_backbone)


def images(size: tuple[int, int], count: int = 1) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def photograph(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_both_algorithms_work_in_every_shape(pipeline: TurboEditPipeline, size: tuple[int, int]):
    height, width = size[0] // 4, size[1] // 4
    mask = (torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    inversion = pipeline.invert(images(size), SOURCE)
    assert inversion.size == (height, width)
    output = pipeline.edit(inversion, TARGET, mask=mask, blur=0.0)
    exact = Exact(pipeline)
    own = SizeConditioning.uncropped(*size)
    source, target = (pipeline.backbone.encode_text([text], own) for text in (SOURCE, TARGET))
    x0 = pipeline.backbone.encode_image(images(size)).double()
    reconstruction, edited = torch.zeros_like(x0), torch.zeros_like(x0)
    for i, t in enumerate(inversion.timesteps):
        noise = exact.noise(x0, reconstruction, source, t)
        reconstruction = exact.step(reconstruction, noise, source, t)
        assert_near(inversion.noises[i], noise, 1e-4)
        assert_near(inversion.reconstructions[i], reconstruction, 1e-4)
        edited = exact.step(edited, noise, target, t)
        edited = mask * edited + (1 - mask) * reconstruction
        assert_near(output.inversion.reconstructions[i], edited, 2e-4)
    # In the end the picture itself stands outside of the mask, and within as far as nothing changed.
    share = torch.exp(-(edited - reconstruction).square().mean(1, keepdim=True) / 0.25)
    within = edited + share * (x0 - reconstruction)
    assert_near(output.inversion.latent, mask * within + (1 - mask) * x0, 2e-3)
    assert output.images[0].size == (size[1], size[0])


@pytest.mark.parametrize("size", SIZES)
def test_an_automatic_mask_and_frozen_steps_work_in_every_shape(pipeline: TurboEditPipeline, size: tuple[int, int]):
    height, width = size[0] // 4, size[1] // 4
    inversion = pipeline.invert(images(size), SOURCE, attention=True)
    assert inversion.attention.shape == (1, height // 2, width // 2, 77)
    for kind in ("prediction", "noise", "attention"):
        output = pipeline.edit(inversion, TARGET, mask=kind, threshold=0.9, frozen_steps=2)
        assert output.mask.shape == (1, 1, height, width) and output.mask.mean() > 0
    several = pipeline.edit(inversion, {TARGET: 0.5, OTHER: 0.7}, mask="auto", threshold=0.9)
    assert several.mask.shape == (1, 1, height, width)
    outside = (several.mask == 0).expand_as(latent(several.inversion))
    assert torch.equal(latent(several.inversion)[outside], latent(inversion)[outside])
    assert torch.equal(several.inversion.latent[outside], inversion.latent[outside])
    again = pipeline.edit(inversion, SOURCE, frozen_steps=4).inversion
    assert_near(latent(again), latent(inversion), 1e-3)


def grids(unet: torch.nn.Module) -> tuple[dict[int, tuple[int, int]], list]:
    """Height and width of the picture in the transformers of `unet`, by the number of places; and the hooks."""
    found: dict[int, tuple[int, int]] = {}

    def note(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        found[height * width] = (height, width)

    kinds = [module for module in unet.modules() if type(module).__name__ == "Transformer2DModel"]
    return found, [module.register_forward_pre_hook(note) for module in kinds]


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (24, 16), (9, 13), (15, 8)])
@torch.no_grad()
def test_maps_have_the_size_of_the_picture_in_their_layers(either_backbone: str, size: tuple[int, int]):
    """Also where an odd side is halved: a UNet rounds up."""
    backbone = Backbone.load(either_backbone)
    found, hooks = grids(backbone.unet)
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    maps = AttentionMaps(backbone.map_size(8, x))
    with controlled(backbone.unet, [Capture(maps)]):
        backbone.predict(x, backbone.encode_text([SOURCE]), torch.tensor([499]))
    for hook in hooks:
        hook.remove()
    assert list(found.values()) == [backbone.map_size(8, x)]
    assert maps.mean().shape == (1, *backbone.map_size(8, x), 77)


def test_a_photograph_keeps_its_aspect(pipeline: TurboEditPipeline):
    assert pipeline.preprocess(photograph(160, 96)).shape == (1, 3, 48, 80)
    assert pipeline.preprocess(photograph(100, 100)).shape == (1, 3, 64, 64)
    assert pipeline.preprocess(photograph(160, 96), 64, 64).shape == (1, 3, 64, 64)
    assert pipeline.preprocess(photograph(160, 96), width=160).shape == (1, 3, 96, 160)
    output = pipeline(photograph(160, 96), SOURCE, TARGET, mask=photograph(80, 48), num_steps=1)
    assert output.images[0].size == (80, 48)
    assert output.inversion.cutouts == (Cutout((96, 160), (0, 0, 160, 96), (48, 80)),)
    wide = pipeline(photograph(160, 96), SOURCE, TARGET, num_steps=1, height=64, width=128)
    assert wide.images[0].size == (128, 64)
    with pytest.raises(ValueError, match="the pictures have the shapes 80 x 48 and 48 x 80"):
        pipeline.invert([photograph(160, 96), photograph(96, 160)], SOURCE)
    with pytest.raises(ValueError, match="height is 50; expected a multiple of 16"):
        pipeline.invert(photograph(160, 96), SOURCE, height=50)
    with pytest.raises(ValueError, match="mask has 64 x 64 pixels and the picture 160 x 96, edited at 80 x 48"):
        pipeline.edit(output.inversion, TARGET, mask=photograph(64, 64))


def test_each_photograph_has_its_own_mask(pipeline: TurboEditPipeline):
    pictures = [photograph(160, 96), photograph(150, 100)]
    both = pipeline.invert(pictures, SOURCE, num_steps=1, height=48, width=80)
    masks = [Image.new("L", picture.size) for picture in pictures]
    for mask in masks:
        mask.paste(255, (0, 0, 70, mask.height))
    found = pipeline.edit(both, TARGET, mask=masks, output_type="latent").mask
    for row in range(2):
        alone = pipeline.edit(both[[row]], TARGET, mask=masks[row], output_type="latent").mask
        torch.testing.assert_close(found[row : row + 1], alone)
    assert not torch.equal(found[0], found[1])


def test_an_inversion_of_any_shape_is_the_same_after_a_file(pipeline: TurboEditPipeline, tmp_path: Path):
    inversion = pipeline.invert(photograph(150, 100), SOURCE, num_steps=1, attention=True, height=48, width=80)
    inversion.save(tmp_path / "file.safetensors")
    again = TurboEditInversion.load(tmp_path / "file.safetensors")
    assert again.cutouts == inversion.cutouts and torch.equal(again.attention, inversion.attention)
    again.cutouts = None  # as in files from when that was not kept
    again.save(tmp_path / "file.safetensors")
    before = TurboEditInversion.load(tmp_path / "file.safetensors")
    assert before.cutouts is None and before[[0, 0]].cutouts is None
    assert pipeline.edit(before, TARGET, mask=photograph(80, 48)).mask.shape == (1, 1, 12, 20)
    with pytest.raises(ValueError, match="mask has 150 x 100 pixels and the picture 80 x 48; expected"):
        pipeline.edit(before, TARGET, mask=photograph(150, 100))


# What SDXL is told of sizes


def test_sizes_are_one_for_all_or_one_for_each():
    pooled = torch.zeros(2, 5)
    first, second = SizeConditioning((600, 900), (0, 128), (512, 512)), SizeConditioning.uncropped(48, 80)
    assert micro_conditioning(pooled, first).tolist() == [[600, 900, 0, 128, 512, 512]] * 2
    each = micro_conditioning(pooled, [first, second]).tolist()
    assert each == [[600, 900, 0, 128, 512, 512], [48, 80, 0, 0, 48, 80]]
    assert micro_conditioning(pooled.bfloat16(), [first, second]).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="1 sizes of pictures for 2 texts; give one, or one for each text"):
        micro_conditioning(pooled, [first])


def test_the_photographs_size_is_told_where_the_encoder_knows_it(sdxl: TurboEditPipeline):
    original = TurboEditPipeline(**sdxl.components, attention_resolution=8, size_conditioning="original")
    original.set_progress_bar_config(disable=True)
    pictures = [photograph(160, 96), photograph(150, 100)]
    options = {"num_steps": 1, "height": 48, "width": 80}
    told = original.invert(pictures, SOURCE, **options)
    # Of 150 x 100 the middle 90 rows are seen; enlarged by 80 / 150 there are five rows above of them 2.67.
    assert told.prompt.time_ids.tolist() == [[96, 160, 0, 0, 48, 80], [100, 150, 3, 0, 48, 80]]
    plain = sdxl.invert(pictures, SOURCE, **options)
    assert plain.prompt.time_ids.tolist() == [[48, 80, 0, 0, 48, 80]] * 2
    assert not torch.allclose(told.noises[0], plain.noises[0])
    with pytest.raises(ValueError, match="size_conditioning is 'cropped'; expected original or uncropped"):
        TurboEditPipeline(**sdxl.components, size_conditioning="cropped")


@pytest.mark.parametrize("target", [TARGET, {TARGET: 0.5}, {TARGET: 0.5, OTHER: 0.5}])
def test_an_edit_has_the_sizes_of_its_inversion(sdxl: TurboEditPipeline, target: object):
    original = TurboEditPipeline(**sdxl.components, attention_resolution=8, size_conditioning="original")
    original.set_progress_bar_config(disable=True)
    inversion = original.invert(photograph(150, 100), SOURCE, num_steps=1)
    for edited in (original.edit(inversion, target), sdxl.edit(inversion, target)):
        assert torch.equal(edited.inversion.prompt.time_ids, inversion.prompt.time_ids)
    again = original.edit(inversion, SOURCE).inversion
    assert_near(latent(again), latent(inversion))


def test_square_pictures_are_told_as_ever(sdxl: TurboEditPipeline):
    assert sdxl.invert(photograph(100, 100), SOURCE, num_steps=1).prompt.time_ids.tolist() == [[64, 64, 0, 0, 64, 64]]
    assert sdxl.backbone.encode_text([SOURCE]).time_ids.tolist() == [[64, 64, 0, 0, 64, 64]]


# StyleDiffusion


@pytest.fixture(scope="module")
def style(tiny_sd_backbone: str) -> StyleDiffusionPipeline:
    stock = DiffusionPipeline.from_pretrained(tiny_sd_backbone)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mapper = AmortisedMapper(token_shape(vision), (77, 16), width=8, depth=1, heads=2)
        encoder = CLIPVisionModel(vision).eval()
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    pipeline = StyleDiffusionPipeline(
        **{name: stock.components[name] for name in names},
        image_encoder=encoder,
        mapper=mapper.eval(),
        num_steps=3,
        guidance=3.0,
        attention_side=8,
    )
    for name, layer in attention_layers(pipeline.unet).items():  # so that attention is somewhere and not everywhere
        if "attn2" in name:
            layer.to_q.weight.data *= 1000
    return pipeline


@pytest.mark.parametrize("size", [(48, 80), (96, 64), (96, 96)])
def test_stylediffusion_edits_every_shape(style: StyleDiffusionPipeline, size: tuple[int, int]):
    inversion = style.invert(images(size), SOURCE, refine=1)
    blended = style.edit(inversion, TARGET, blend=["red", "blue"], output_type="latent")
    assert blended.shape == (1, 4, size[0] // 4, size[1] // 4)
    assert style.reconstruct(inversion)[0].size == (size[1], size[0])
    turned = style.transfer_style(inversion, images((64, 64)), OTHER)[0]
    assert turned.size == (64, 64)


def test_stylediffusion_keeps_a_photographs_aspect(style: StyleDiffusionPipeline):
    assert style(photograph(160, 96), SOURCE, TARGET)[0].size == (80, 48)
    assert style(photograph(160, 96), SOURCE, TARGET, height=64, width=64)[0].size == (64, 64)


def told_sizes(unet: torch.nn.Module) -> tuple[set[tuple[float, ...]], Any]:
    """The sizes that a UNet of SDXL is told from now on, and the hook."""
    found: set[tuple[float, ...]] = set()

    def note(_: torch.nn.Module, __: tuple[Any, ...], options: dict[str, Any]) -> None:
        found.update(map(tuple, options["added_cond_kwargs"]["time_ids"].tolist()))

    return found, unet.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ("few", (48, 80)),
        ("few", (64, 64)),
        *(pytest.param("many", size, marks=pytest.mark.long) for size in ((48, 80), (64, 64))),
    ],
)
def test_every_editor_tells_the_size_of_the_picture(sdxl: TurboEditPipeline, size: tuple[int, int], steps: str):
    many = ManyStepModel(
        sdxl.backbone,
        Ddim(sdxl.backbone.schedule, 2),
        null_text=NullTextSchedule(1),
        imagic=ImagicConfig(1, 1, draws=1),
    )
    command, model = (Command.PIE, FewStepModel(sdxl)) if steps == "few" else (Command.PIE | Command.MANY_STEP, many)
    editors = [editor for _, editor in available(command | Command.SCENES, model).editors]
    picture, mask, silent = images(size), torch.ones(1, 1, *size), []
    for editor in editors:
        found, hook = told_sizes(sdxl.unet)
        inversion = editor.invert(picture, [SOURCE])
        editor.edit(inversion, EditRequest([TARGET], truth=picture, mask=mask))
        if isinstance(editor, ReconstructingEditor):
            editor.reconstruct(inversion)
        hook.remove()
        assert found <= {(*size, 0, 0, *size)}, editor.name
        silent += [] if found else [editor.name]
    assert set(silent) <= {"identity", "truth"} and len(editors) > 10


@torch.no_grad()
def test_pivots_are_told_the_size_of_the_picture(sdxl: TurboEditPipeline):
    backbone, picture = sdxl.backbone, images((48, 80))
    found, hook = told_sizes(sdxl.unet)
    latents_with_pivots(backbone, "whole", Ddim(backbone.schedule, 2)).encode(picture, [SOURCE])
    hook.remove()
    assert found == {(48, 80, 0, 0, 48, 80)}
