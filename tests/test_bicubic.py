"""Resizing and CLIP's preparation of pictures against Pillow and transformers' image processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from eval.metrics.clip import picture_pixels, resize_floats, resize_levels
from models.clip import ClipPixels

SIZES = ((64, 64), (100, 57), (20, 33), (224, 224), (9, 5))


def pictures(height: int, width: int) -> Tensor:
    """Uint8 [3, 3, H, W]: noise; smooth; black and white, whose resized values overshoot."""
    draw = torch.Generator().manual_seed(0)
    noise, hard = torch.randint(0, 256, (2, 3, height, width), generator=draw)
    coarse = torch.rand(1, 3, 9, 9, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * 255
    return torch.stack([noise, smooth.round().long(), 255 * (hard > 200)]).to(torch.uint8)


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("new", SIZES)
def test_levels_are_pillow_s_bit_for_bit(old: tuple[int, int], new: tuple[int, int]):
    given = pictures(*old)
    for picture, found in zip(given, resize_levels(given, new), strict=True):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        for size in (
            (new[1], old[0]),
            (new[1], new[0]),
        ):  # Pillow from 13 on begins with the rows of some tall pictures
            image = image.resize(size, Image.Resampling.BICUBIC)
        expected = np.asarray(image)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_floats_are_clean_fid_s():
    """Channel by channel in Pillow's mode F, clipped: https://arxiv.org/abs/2104.11222."""
    given = pictures(100, 57)
    for picture, found in zip(given, resize_floats(given, (299, 299)), strict=True):
        for channel, values in zip(picture, found, strict=True):
            image = Image.fromarray(channel.numpy().astype(np.float32), mode="F")
            expected = np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
            assert np.abs(values.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 32), (100, 57), (45, 46), (20, 300)])
def test_clip_gets_what_its_image_processor_makes(height: int, width: int):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    given = pictures(height, width)
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in given]
    expected = torch.as_tensor(np.array(processor(images=images)["pixel_values"]))
    pixels = ClipPixels(32, tuple(processor.image_mean), tuple(processor.image_std))
    torch.testing.assert_close(picture_pixels(given, pixels), expected.float(), rtol=0, atol=1e-6)
    one_by_one = picture_pixels([given[0, :, :30, :31], given[1]], pixels)
    torch.testing.assert_close(one_by_one[1], expected[1].float(), rtol=0, atol=1e-6)
