"""FID and KID against formulas in float64, with features of pictures from saved random networks."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor, nn

from eval.metrics.distribution import ClipFeatures, Distances, InceptionFeatures, load_features
from tests.slow_metrics import Floats, save_random_networks


class TinyInception(nn.Module):
    """The calling convention of NVIDIA's Inception file: levels of 0 to 255, features or class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 9, stride=8)
        self.scores = nn.Linear(6, 2)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        features = torch.relu(self.convolution((images - 128) / 128)).mean((2, 3))
        return features if return_features else self.scores(features)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.jit.script(TinyInception()).save(path)
    return path


def pictures(count: int, seed: int, contrast: float) -> Tensor:
    """Uint8 [count, 3, 40, 40], smooth."""
    draw = torch.Generator().manual_seed(seed)
    coarse = 0.5 + contrast * torch.randn(count, 3, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (40, 40), mode="bilinear")
    return (255 * smooth).round().clamp(0, 255).to(torch.uint8)


REAL, MADE = pictures(60, 0, 0.2), pictures(50, 1, 0.3)


def slow_fid(real: Floats, made: Floats) -> float:
    """|mu - mu'|^2 + tr(C + C' - 2 (C C')^1/2)."""
    covariances = [np.cov(features, rowvar=False) for features in (real, made)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = real.mean(0) - made.mean(0)
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root))


def slow_kid(real: Floats, made: Floats) -> float:
    """The unbiased squared discrepancy with the kernel (x y / D + 1)^3."""

    def mean(a: Floats, b: Floats, same: bool) -> float:
        values = [(x @ y / a.shape[1] + 1) ** 3 for i, x in enumerate(a) for j, y in enumerate(b) if not same or i != j]
        return math.fsum(values) / len(values)

    return mean(real, real, True) + mean(made, made, True) - 2 * mean(real, made, False)


def slow_inception(path: Path, images: Tensor) -> Floats:
    """Picture by picture, resized as clean-fid does: channels as Pillow's floats."""
    model, found = torch.jit.load(path), []
    for picture in images:
        channels = [Image.fromarray(channel.numpy().astype(np.float32), mode="F") for channel in picture]
        resized = [
            np.asarray(channel.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for channel in channels
        ]
        with torch.no_grad():
            found.append(model(torch.from_numpy(np.stack(resized))[None], return_features=True)[0].double().numpy())
    return np.stack(found)


def test_fid_and_kid_of_inception_s_features(inception: Path):
    features, words = load_features(str(inception))
    assert features is not None and features.num_features == 6 and "Inception" in words
    distances = Distances(features)
    for part in MADE.split(16):
        distances.update(part, real=False)
    for part in REAL[:50].split(7):
        distances.update(part, real=True)
    found = distances.compute()
    real, made = (slow_inception(inception, images) for images in (REAL[:50], MADE))
    assert found.fid == pytest.approx(slow_fid(real, made), rel=1e-4)
    assert found.kid == pytest.approx(slow_kid(real, made), rel=1e-4)
    assert (found.num_real, found.num) == (50, 50)
    assert found.fid > 1e-3 and found.kid > 1e-4
    assert "too high" in found.remark


def test_features_can_be_shared():
    draw = torch.Generator().manual_seed(0)
    real, made = torch.randn(40, 8, generator=draw), 0.5 + 1.5 * torch.randn(40, 8, generator=draw)
    distances = Distances(Given(8))
    distances.add(real, real=True)
    distances.add(made, real=False)
    found = distances.compute()
    assert found.fid == pytest.approx(slow_fid(real.double().numpy(), made.double().numpy()), rel=1e-8)
    assert found.kid == pytest.approx(slow_kid(real.double().numpy(), made.double().numpy()), rel=1e-8)


class Given:
    """Features that were made elsewhere."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures


def test_subsets_of_many_pictures_are_drawn_alike_twice_and_estimate_the_whole():
    draw = torch.Generator().manual_seed(0)
    real, made = torch.randn(1500, 4, generator=draw), 0.3 + torch.randn(1100, 4, generator=draw)
    state = torch.random.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        distances = Distances(Given(4))
        distances.add(real, real=True)
        distances.add(made, real=False)
        found.append(distances.compute(seed))
    assert found[0] == found[1] and found[0].kid != found[2].kid
    assert torch.equal(state, torch.random.get_rng_state())
    products = {}
    for name, a, b in (("real", real, real), ("made", made, made), ("both", real, made)):
        kernel = (a.double() @ b.double().T / 4 + 1) ** 3
        off = kernel.numel() - len(a) if a is b else kernel.numel()
        products[name] = (kernel.sum() - (kernel.trace() if a is b else 0)).item() / off
    assert found[0].kid == pytest.approx(products["real"] + products["made"] - 2 * products["both"], rel=0.1)
    assert "published" in found[0].remark


def test_equal_pictures_have_no_distance_and_too_few_have_none(inception: Path):
    features = InceptionFeatures(inception)
    distances = Distances(features)
    distances.update(REAL, real=True)
    distances.update(REAL, real=False)
    assert distances.compute().fid == pytest.approx(0, abs=1e-6)
    distances = Distances(features)
    distances.update(REAL, real=True)
    distances.update(REAL[:1], real=False)
    found = distances.compute()
    assert math.isnan(found.fid) and math.isnan(found.kid) and "60 real and 1 other" in found.remark
    few = Distances(features)
    few.update(REAL[:6], real=True)
    few.update(MADE[:6], real=False)
    assert "singular" in few.compute().remark


def test_clip_s_embeddings_are_named_as_such(tmp_path: Path):
    folder = save_random_networks(tmp_path).clip
    features, words = load_features(str(folder))
    assert isinstance(features, ClipFeatures) and "CLIP" in words and "not comparable" in words
    distances = Distances(features)
    distances.update(REAL, real=True)
    distances.update(MADE, real=False)
    real, made = (features.clip.embed_pictures(images).double().numpy() for images in (REAL, MADE))
    assert real.shape == (60, features.num_features) == (60, 12)
    assert distances.compute().fid == pytest.approx(slow_fid(real, made), rel=1e-4)


def test_what_cannot_be_loaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"no file .*inception\.pt"):
        load_features(str(tmp_path / "inception.pt"))
    (tmp_path / "page.pt").write_text("<html>")
    with pytest.raises(ValueError, match="not Inception v3 as TorchScript"):
        load_features(str(tmp_path / "page.pt"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    features, words = load_features(str(tmp_path / "clip"))
    assert features is None and words.startswith("FID and KID are left out")
