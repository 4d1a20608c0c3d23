"""Shapes of pictures: buckets against SDXL's own, and what of a photograph is seen."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from models.masks import drawn_mask
from models.pictures import fitted, to_tensor
from models.shapes import Cutout, WantedShape, nearest_shape, same_aspect, shapes
from models.unet_family import UNetBackbone

SDXL_BUCKETS = """
512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344 768x1344
768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024 1024x960 1088x960 1088x896 1152x896 1152x832
1216x832 1280x768 1344x768 1408x704 1472x704 1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512
2048x512
"""
"""Podell et al. 2023, appendix I."""


def photograph(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def test_sdxls_buckets_are_among_the_shapes():
    published = {tuple(map(int, words.split("x"))) for words in SDXL_BUCKETS.split()}
    assert published <= set(shapes(1024, 64))


@pytest.mark.parametrize(("side", "multiple"), [(512, 64), (768, 64), (1024, 64), (64, 16), (64, 8)])
def test_shapes_have_about_the_area_of_the_square(side: int, multiple: int):
    found = shapes(side, multiple)
    assert (side, side) in found and len(found) == len(set(found))
    for height, width in found:
        assert height % multiple == width % multiple == 0
        assert 7 / 8 <= height * width / side**2 <= 9 / 8
        assert max(height, width) <= 4 * min(height, width)
        assert (width, height) in found


@pytest.mark.parametrize(
    ("size", "side", "multiple", "expected"),
    [
        ((512, 512), 512, 64, (512, 512)),
        ((3000, 3000), 1024, 64, (1024, 1024)),  # 960 x 960 is as square
        ((3024, 4032), 512, 64, (448, 576)),
        ((4032, 3024), 512, 64, (576, 448)),
        ((1080, 1920), 512, 64, (384, 704)),
        ((2000, 3000), 1024, 64, (832, 1280)),
        ((500, 5000), 512, 64, (256, 1024)),
        ((480, 800), 64, 16, (48, 80)),
    ],
)
def test_a_picture_takes_the_shape_of_the_nearest_aspect(
    size: tuple[int, int], side: int, multiple: int, expected: tuple[int, int]
):
    assert nearest_shape(size, shapes(side, multiple), side) == expected
    assert WantedShape(side, multiple).of([size]) == expected


def test_wanted_sides_are_kept_and_the_other_one_follows():
    assert WantedShape(512, 64, 768, 1024).of([(10, 10)]) == (768, 1024)
    assert WantedShape(512, 64, height=768).of([(300, 400)]) == (768, 1024)
    assert WantedShape(512, 64, width=768).of([(300, 400)]) == (576, 768)
    assert WantedShape(512, 64, width=768).of([(1, 4000)]) == (64, 768)


@pytest.mark.parametrize("length", [0, -64, 500])
def test_impossible_sides_are_refused(length: int):
    with pytest.raises(ValueError, match=f"height is {length}; expected a multiple of 64, or None"):
        WantedShape(512, 64, height=length)
    with pytest.raises(ValueError, match=f"width is {length}; expected a multiple of 64"):
        WantedShape(512, 64, 512, length)


def test_pictures_of_one_call_have_one_shape():
    shape = WantedShape(512, 64)
    assert shape.of([(300, 400), (3024, 4032)]) == (448, 576)
    with pytest.raises(ValueError, match="the pictures have the shapes 576 x 448 and 448 x 576; give height and width"):
        shape.of([(300, 400), (400, 300), (300, 401)])
    assert WantedShape(512, 64, 512, 512).of([(300, 400), (400, 300)]) == (512, 512)


def test_tensors_are_taken_or_refused_but_never_resized():
    shape = WantedShape(64, 16)
    image = torch.zeros(2, 3, 48, 80)
    found, cutouts = to_tensor(image, shape, torch.device("cpu"))
    assert torch.equal(found, image) and cutouts == (Cutout.whole(48, 80),) * 2
    with pytest.raises(ValueError, match="the image is a tensor of 80 x 40 pixels; expected sides that 16 divides"):
        to_tensor(torch.zeros(1, 3, 40, 80), shape, torch.device("cpu"))
    with pytest.raises(ValueError, match="a tensor of 80 x 48 pixels, and tensors are not resized; leave out height"):
        to_tensor(image, WantedShape(64, 16, height=64), torch.device("cpu"))


@pytest.mark.parametrize("size", [(64, 64), (200, 200), (31, 31)])
def test_squares_are_resized_as_diffusers_does(size: tuple[int, int]):
    picture = photograph(*size)
    expected = VaeImageProcessor().preprocess(picture, height=64, width=64, resize_mode="crop")
    found, cutouts = to_tensor(picture, WantedShape(64, 16), torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert cutouts == (Cutout((size[1], size[0]), (0, 0, *size), (64, 64)),)


@pytest.mark.parametrize(
    ("picture", "size", "crop"),
    [
        ((900, 600), (512, 512), (150, 0, 600, 600)),
        ((600, 900), (512, 512), (0, 150, 600, 600)),
        ((4032, 3024), (576, 448), (72, 0, 3888, 3024)),
        ((1000, 10), (64, 64), (495, 0, 10, 10)),
        ((80, 48), (80, 48), (0, 0, 80, 48)),
    ],
)
def test_the_centre_is_cut_out(picture: tuple[int, int], size: tuple[int, int], crop: tuple[int, int, int, int]):
    whole = photograph(*picture)
    found, place = fitted(whole, size)
    assert found.size == size and place == crop
    left, top, width, height = place
    expected = whole.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.LANCZOS)
    inner = np.s_[20:-20, 20:-20]  # at the border the resampling sees what lies beyond it
    assert np.abs(np.asarray(found)[inner].astype(int) - np.asarray(expected)[inner]).mean() < 1


def test_conditioning_is_that_of_sdxls_training():
    """Resized so that the target fits in, then cropped: diffusers' train_text_to_image_sdxl.py, with a centre crop."""
    for width, height, side in ((900, 600, 512), (600, 1000, 512), (3000, 2000, 1024)):
        picture = photograph(width, height)
        _, crop = fitted(picture, (side, side))
        found = Cutout((height, width), crop, (side, side)).conditioning
        scale = side / min(width, height)
        expected = round((height * scale - side) / 2), round((width * scale - side) / 2)
        assert found.original == (height, width) and found.target == (side, side)
        assert np.abs(np.subtract(found.crop, expected)).max() <= 1
    assert Cutout.whole(48, 80).conditioning.crop == (0, 0)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((512, 512), (64, 64), True),
        ((3024, 4032), (384, 512), True),
        ((1999, 3000), (341, 512), True),
        ((2000, 3000), (43, 64), True),
        ((3024, 4032), (448, 576), False),
        ((512, 512), (512, 520), False),
        ((480, 640), (640, 480), False),
    ],
)
def test_aspects_agree_to_a_pixel(first: tuple[int, int], second: tuple[int, int], same: bool):
    assert same_aspect(first, second) is same_aspect(second, first) is same


def test_a_mask_is_cut_out_like_its_photograph():
    """Drawn at the photograph's size, at a tenth of it, or on the picture that the networks see."""
    picture = Image.new("L", (1200, 600))
    picture.paste(255, (300, 200, 700, 400))
    seen, crop = fitted(picture, (80, 48))
    seen = seen.convert("L")
    cutouts = [Cutout((600, 1200), crop, (48, 80))] * 2
    expected = torch.from_numpy(np.asarray(seen) / 255).float()
    for mask, tolerance in ((picture, 1e-6), (picture.resize((120, 60)), 0.3), (seen, 1e-6)):
        found = drawn_mask([mask], cutouts)
        assert found.shape == (1, 1, 48, 80)
        assert (found[0, 0] - expected).abs().max() <= tolerance
    apart = [cutouts[0], Cutout((600, 1200), (0, 0, 1200, 600), (48, 80))]
    assert drawn_mask([picture], apart).shape == drawn_mask([picture, seen], cutouts).shape == (2, 1, 48, 80)
    tensor = torch.rand(2, 1, 12, 20)
    assert drawn_mask(tensor, cutouts) is tensor


def test_a_mask_of_another_aspect_is_refused():
    cutouts = [Cutout((600, 1200), (100, 0, 1000, 600), (48, 80))]
    words = "mask has 64 x 64 pixels and the picture 1200 x 600, edited at 80 x 48; expected a mask of the same aspect"
    with pytest.raises(ValueError, match=words):
        drawn_mask([Image.new("L", (64, 64))], cutouts)
    with pytest.raises(ValueError, match="mask has 64 x 64 pixels and the picture 80 x 48; expected"):
        drawn_mask(torch.ones(1, 1, 64, 64), cutouts)


@pytest.mark.parametrize(
    ("vae", "unet", "sample_size", "multiple"),
    [
        (4, 3, 64, 64),
        (4, 3, 128, 64),
        (4, 4, 64, 64),
        (3, 3, 16, 16),
        (3, 2, 16, 16),
        (3, 3, 32, 32),
        (3, 3, 64, 64),
        (4, 5, 96, 128),
    ],
)
def test_sides_are_multiples_of_what_the_networks_halve(vae: int, unet: int, sample_size: int, multiple: int):
    def part(levels: int) -> object:
        config = type("Config", (), {"block_out_channels": (8,) * levels, "sample_size": sample_size})
        return type("Part", (), {"config": config})

    backbone = UNetBackbone.__new__(UNetBackbone)
    backbone.vae, backbone.network = part(vae), part(unet)
    assert backbone.multiple == multiple
    assert backbone.pixels((12, 20)) == (12 * 2 ** (vae - 1), 20 * 2 ** (vae - 1))
