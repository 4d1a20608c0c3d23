"""Where words are looked at, and how a mask is blurred and resized."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from models.masks import difference_mask, gaussian_blur, soft_mask, word_mask


def test_word_mask_is_where_the_tokens_are_looked_at():
    maps = torch.full((2, 2, 8, 12), 0.01)
    maps[0, 1, 5, 2] = 0.9
    maps[0, 1, 6, 2] = 0.5
    maps[:, 0, 3, 1] = 1.0
    mask = word_mask(maps, [[2], []], threshold=0.6)
    assert mask.shape == (2, 1, 2, 8)
    assert torch.nonzero(mask).tolist() == [[0, 0, 1, 5]]
    mask = word_mask(maps, [[2], []], threshold=0.5)
    assert torch.nonzero(mask).tolist() == [[0, 0, 1, 5], [0, 0, 1, 6]]


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 2.7])
def test_blur_is_scipys(sigma: float):
    image = noise(2, 1, 9, 12)
    expected = np.stack([gaussian_filter(plane, sigma, mode="nearest", truncate=3.0) for plane in image[:, 0].numpy()])
    torch.testing.assert_close(gaussian_blur(image, sigma)[:, 0], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_soft_mask_at_the_latents_size_is_a_blur():
    mask = (noise(1, 1, 16, 16) > 0.6).float()
    expected = gaussian_filter(mask[0, 0].numpy(), 0.5, mode="nearest", truncate=3.0)
    torch.testing.assert_close(soft_mask(mask, (16, 16), 0.5)[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_blur_is_measured_in_latent_pixels():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 1
    expected = gaussian_filter(mask[0, 0].numpy(), 4 * 0.75, mode="nearest", truncate=3.0)
    averaged = soft_mask(mask, (16, 16), 0.75)
    sharp = torch.nn.functional.interpolate(torch.from_numpy(expected)[None, None], (16, 16), mode="area")
    torch.testing.assert_close(averaged, sharp, rtol=0, atol=0.03)


@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_soft_mask_keeps_all_and_nothing_and_its_range(size: int):
    ones = torch.ones(1, 1, size, size)
    assert soft_mask(ones, (16, 16), 0.5).sub(1).abs().max() < 1e-6
    assert soft_mask(0 * ones, (16, 16), 0.5).abs().max() == 0
    mask = soft_mask((noise(1, 1, size, size) > 0.5).float(), (16, 16), 0.5)
    assert mask.shape == (1, 1, 16, 16) and mask.min() >= 0 and mask.max() <= 1


def test_no_blur_leaves_a_mask_of_the_latents_size_alone():
    mask = (noise(1, 1, 16, 16) > 0.5).float()
    assert torch.equal(soft_mask(mask, (16, 16), 0.0), mask)


def test_soft_mask_of_a_boolean_mask():
    assert soft_mask(torch.ones(1, 1, 16, 16, dtype=torch.bool), (16, 16), 0.5).dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "deviation"), [(torch.bfloat16, 0.02), (torch.float16, 0.003), (torch.float32, 1e-4)]
)
def test_differences_of_rounding_are_no_change(dtype: torch.dtype, deviation: float):
    rounding = deviation * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not difference_mask(rounding, 0.4, dtype).any()
    rounding[1, :, 4:8, 4:8] += 1
    assert difference_mask(rounding, 0.4, dtype).flatten(1).any(1).tolist() == [False, True]
