"""Picture metrics against references and closed forms, estimates, noise health, CLIP similarity."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import CLIPTokenizer

from eval.metrics.clip import ClipSimilarity, clipscore
from eval.metrics.noise import MOMENTS, noise_moments, noise_summary
from eval.metrics.pixels import EDGE, MAX_PSNR, Estimate, masked_psnr, psnr, ssim, ssim_map
from eval.reconstructions.noise import noise_figures, noise_health
from tests.tiny_editing import save_tiny_judges


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Three smooth pictures and noisy versions of them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    scale = torch.tensor([0.05, 0.1, 0.3]).view(3, 1, 1, 1)
    return smooth, (smooth + scale * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


def test_psnr_equals_scikit_image(pictures):
    a, b = pictures
    expected = [peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_equals_scikit_image(pictures):
    """In [0, 1]: unlike PSNR it depends on where zero is."""
    a, b = pictures
    expected = [
        structural_similarity(
            (x.double().numpy() + 1) / 2,
            (y.double().numpy() + 1) / 2,
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])


def test_ssim_map_equals_torchmetrics_inside_the_frame(pictures):
    a, b = ((x[..., :40].double() + 1) / 2 for x in pictures)
    _, expected = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", return_full_image=True)
    torch.testing.assert_close(ssim_map(a, b), expected[..., EDGE:-EDGE, EDGE:-EDGE], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="smaller than SSIM's window"):
        ssim_map(a[..., :10], b[..., :10])


def test_psnr_of_equal_pictures_is_the_maximum(pictures):
    assert psnr(pictures[0], pictures[0]).tolist() == [MAX_PSNR] * 3
    assert psnr(pictures[0], pictures[0] + 1e-6).min() > MAX_PSNR


def test_masked_psnr_counts_only_the_mask():
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[:, :, :2] = 0.2
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, :, :2] = True
    inside, outside = masked_psnr(a, b, mask), masked_psnr(a, b, ~mask)
    assert inside[0].item() == pytest.approx(20.0, abs=1e-3)  # 10 log10(4 / 0.04)
    assert math.isnan(inside[1])
    assert outside[0].item() == MAX_PSNR
    assert outside[1].item() == pytest.approx(psnr(a, b)[1].item(), abs=1e-4)


def test_estimate_is_mean_and_standard_error_without_nan():
    values = [1.0, 2.0, math.nan, 4.0]
    estimate = Estimate.of(values)
    kept = np.array([1.0, 2.0, 4.0])
    assert estimate.n == 3
    assert estimate.mean == pytest.approx(kept.mean())
    assert estimate.se == pytest.approx(kept.std(ddof=1) / np.sqrt(3))


def test_estimate_of_too_few_values_is_null_in_json():
    assert Estimate.of([math.nan]).to_dict() == {"mean": None, "se": None, "n": 0}
    assert Estimate.of([2.0]).to_dict() == {"mean": 2.0, "se": None, "n": 1}


def test_white_noise_is_healthy():
    health = noise_health(torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert health["mean"].mean == pytest.approx(0, abs=0.02)
    assert health["std"].mean == pytest.approx(1, abs=0.02)
    assert health["kurtosis"].mean == pytest.approx(3, abs=0.1)
    assert health["lag1"].mean == pytest.approx(0, abs=0.02)
    assert health["over10"].mean == 0


def test_noise_summary_is_that_of_all_samples_together():
    noise = 1.5 * torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.3
    noise[0, 0, 0, 0] = 12.0
    moments = noise_moments(noise)
    assert set(moments) == set(MOMENTS)
    assert all(values.shape == (8,) for values in moments.values())
    summary = noise_summary({name: values.mean().item() for name, values in moments.items()})
    flat = noise.double().flatten()
    centred = flat - flat.mean()
    assert summary["mean"] == pytest.approx(flat.mean().item(), abs=1e-5)
    assert summary["std"] == pytest.approx(centred.square().mean().sqrt().item(), rel=1e-5)
    assert summary["kurtosis"] == pytest.approx(
        (centred**4).mean().item() / centred.square().mean().item() ** 2, rel=1e-4
    )
    assert summary["over10"] == pytest.approx(1 / flat.numel())
    assert {name: estimate.mean for name, estimate in noise_health(noise).items()} == pytest.approx(summary, rel=1e-5)
    assert noise_figures({"turboedit": {999: [noise[:3], noise[3:]]}})["turboedit"]["999"]["max"] == 12.0


def test_standard_error_of_a_noise_is_that_between_images():
    """Against the formula for a mean, and against the spread over many sets of images for the other figures."""
    draw = torch.Generator().manual_seed(0)
    # Each image has a level and a scale of its own: far more spread between images than 256 free values would have.
    level, scale = torch.randn(400, 30, 1, 1, 1, generator=draw), torch.rand(400, 30, 1, 1, 1, generator=draw) + 0.5
    sets = level + scale * torch.randn(400, 30, 1, 16, 16, generator=draw)
    found = [noise_health(images) for images in sets]
    means = sets[0].double().flatten(1).mean(1)
    assert found[0]["mean"].se == pytest.approx((means.std() / 30**0.5).item(), rel=1e-4)
    for name in ("std", "kurtosis", "lag1"):
        spread = torch.tensor([health[name].mean for health in found]).std().item()
        told = torch.tensor([health[name].se for health in found]).square().mean().sqrt().item()
        assert told == pytest.approx(spread, rel=0.15)
    alone = noise_health(sets[0, :1])["std"]
    assert math.isnan(alone.se) and alone.n == 1


def test_smooth_noise_shows_its_correlation():
    rows = torch.randn(32, 4, 16, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 16)
    assert noise_health(rows)["lag1"].mean == pytest.approx(0.5, abs=0.03)  # 1 along a row, 0 down a column


def test_clip_similarity_is_a_cosine(tiny_backbone, tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(tiny_backbone, subfolder="tokenizer")
    _, folder = save_tiny_judges(tmp_path, tokenizer)
    clip = ClipSimilarity(str(folder))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    texts = ["a", "a red star", "a blue circle on grass"]
    together = clip(images, texts)
    assert together.shape == (3,)
    assert (together.abs() <= 100).all()
    alone = torch.cat([clip(images[i : i + 1], texts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    (folder / "preprocessor_config.json").unlink()  # then pictures go in as they are, which is what this one says too
    torch.testing.assert_close(ClipSimilarity(str(folder))(images, texts), together)


def test_clipscore_is_hessel_s():
    assert clipscore(torch.tensor([31.0, -4.0])).tolist() == pytest.approx([77.5, 0])
