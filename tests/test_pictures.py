"""Between 8-bit levels and values in [-1, 1]: every level comes back, and each place has the numbers it always had."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.pairs.choice import to_picture
from eval.editors.randomness import image_keys
from eval.scene_edits.result import pixels
from models.pictures import from_picture, from_pictures, from_uint8, to_uint8
from train.run.preview import preview_grid

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_level_comes_back():
    values = from_uint8(LEVELS)
    assert values.dtype == torch.float32 and values.aminmax() == (-1, 1)
    assert torch.equal(to_uint8(values), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_rounded_in_float32(dtype: torch.dtype):
    values = torch.linspace(-1.2, 1.2, 999).to(dtype)
    assert torch.equal(to_uint8(values), to_uint8(values.float()))


def test_values_outside_are_clipped_and_halves_go_to_the_even_level():
    values = torch.tensor([-7.0, -1.01, 0.0, 2 / 255, 1.01, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 128, 255, 255]  # 0 is level 127.5, 2 / 255 is 128.5


def drawn(count: int = 3) -> torch.Tensor:
    """Images [count, 3, 9, 7], some values outside of [-1, 1] and some just between two levels."""
    draw = np.random.default_rng(0)
    values = draw.uniform(-1.1, 1.1, (count, 3, 9, 7))
    values[:, :, :2] = (draw.integers(0, 255, (count, 3, 2, 7)) + 0.5) / 127.5 - 1
    return torch.from_numpy(values).float()


def test_clipping_first_and_clipping_last_are_the_same():
    images = drawn(50)
    clipped_first = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)  # the previews had it so
    assert torch.equal(to_uint8(images), clipped_first)


def test_pictures_become_images_in_float32_as_numpy_has_them():
    pictures = np.random.default_rng(1).integers(0, 256, (4, 16, 24, 3), np.uint8)
    expected = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    for given in (list(pictures), [Image.fromarray(picture) for picture in pictures]):
        found = from_pictures(given)
        assert torch.equal(found, torch.from_numpy(expected))
        assert found.is_contiguous(memory_format=torch.channels_last), "a network may add up in another order"
    assert torch.equal(from_picture(pictures[2]), torch.from_numpy(expected[2]))


def test_all_places_round_alike():
    images = drawn()
    levels = to_uint8(images)
    shown = [picture.permute(1, 2, 0).numpy() for picture in levels]
    for picture, image, expected in zip(pixels(images), images, shown, strict=True):
        np.testing.assert_array_equal(picture, expected)
        np.testing.assert_array_equal(np.asarray(to_picture(image)), expected)
    assert image_keys(images) == tuple(zlib.crc32(picture.contiguous().numpy().tobytes()) for picture in levels)


def test_a_preview_shows_the_levels_of_its_images():
    images = from_pictures(np.random.default_rng(2).integers(0, 256, (2, 128, 128, 3), np.uint8))
    stream = io.BytesIO()
    preview_grid({"image": images}).save(stream, "PNG")
    sheet = np.asarray(Image.open(stream))
    np.testing.assert_array_equal(sheet[22:150, 2:130], to_uint8(images)[0].permute(1, 2, 0).numpy())
