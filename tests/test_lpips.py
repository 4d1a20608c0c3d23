"""LPIPS against a slow float64 computation from the same saved random weights, and against torchmetrics' own."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.image import lpips as lpip

from eval.metrics.lpips import NET_NAMES, WEIGHT_FILES, Lpips, Net, load_lpips
from eval.metrics.pixels import ns_lpips
from tests.slow_metrics import save_random_classifier, slow_lpips_map

NETS: tuple[Net, ...] = ("alex", "vgg", "squeeze")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[Net, Path]:
    """Files of random weights with torchvision's names."""
    folder = tmp_path_factory.mktemp("classifiers")
    return {net: save_random_classifier(net, folder / WEIGHT_FILES[net]) for net in NETS}


def images(side: int = 64) -> tuple[Tensor, Tensor]:
    """Two smooth pictures in [-1, 1] and others that are near and far from them."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 8, generator=draw) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    scale = torch.tensor([0.05, 0.5]).view(2, 1, 1, 1)
    return smooth, (smooth + scale * torch.randn(smooth.shape, generator=draw)).clamp(-1, 1)


@pytest.mark.parametrize("net", NETS)
def test_it_is_the_paper_s_distance(net: Net, weights: dict[Net, Path]):
    lpips, words = load_lpips(net, weights[net])
    assert lpips is not None and NET_NAMES[net] in words and weights[net].name in words
    a, b = images()
    expected = [slow_lpips_map(net, torch.load(weights[net]), x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    assert lpips(a, b).tolist() == pytest.approx([layers.mean for layers in expected], rel=1e-5)
    maps = lpips.spatial(a, b)
    assert maps.shape == (2, 1, 64, 64)
    for found, layers in zip(maps, expected, strict=True):
        torch.testing.assert_close(found[0].double(), torch.from_numpy(layers.map), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_torchmetrics_has_the_same_on_these_features(
    net: Net, weights: dict[Net, Path], monkeypatch: pytest.MonkeyPatch
):
    """Its layers, heads and constants, with torchvision's part done by our features."""
    found = Lpips(net, torch.load(weights[net]))
    monkeypatch.setattr(lpip, "_get_tv_model_features", lambda name, pretrained: found.features)
    expect_equal(found, lpip._LPIPS(net=net), lpip._LPIPS(net=net, spatial=True))


@pytest.mark.parametrize("net", NETS)
def test_torchmetrics_has_the_same_on_torchvision_s_features(net: Net, monkeypatch: pytest.MonkeyPatch):
    models = pytest.importorskip("torchvision").models
    name = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net]
    theirs = getattr(models, name)(weights=None).eval()
    monkeypatch.setattr(lpip, "_get_tv_model_features", lambda name, pretrained: theirs.features)
    expect_equal(Lpips(net, theirs.state_dict()), lpip._LPIPS(net=net), lpip._LPIPS(net=net, spatial=True))


def expect_equal(found: Lpips, reference: torch.nn.Module, spatial: torch.nn.Module) -> None:
    a, b = images()
    torch.testing.assert_close(found(a, b), reference(a, b).flatten(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.spatial(a, b), spatial(a, b), rtol=1e-4, atol=1e-6)


def test_equal_pictures_have_no_distance_and_clipping_is_the_decoder_s(weights: dict[Net, Path]):
    lpips, _ = load_lpips("squeeze", weights["squeeze"])
    assert lpips is not None
    a, b = images()
    assert lpips(a, a).abs().max() == 0
    assert torch.equal(lpips(3 * a, b), lpips((3 * a).clamp(-1, 1), b))
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_weights_of_something_else_are_refused(weights: dict[Net, Path], tmp_path: Path):
    with pytest.raises(ValueError, match="not torchvision's weights of AlexNet"):
        load_lpips("alex", weights["squeeze"])
    with pytest.raises(ValueError, match="no weights at"):
        load_lpips("alex", tmp_path / "nowhere.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth"):
        load_lpips("alex", tmp_path / "page.pth")


def test_safetensors_are_read(weights: dict[Net, Path], tmp_path: Path):
    save_file(torch.load(weights["squeeze"]), tmp_path / "squeeze.safetensors")
    found, expected = (
        load_lpips("squeeze", path)[0] for path in (tmp_path / "squeeze.safetensors", weights["squeeze"])
    )
    assert found is not None and expected is not None
    assert torch.equal(found(*images()), expected(*images()))


def test_without_a_network_only_torch_hub_s_copy_is_taken(
    weights: dict[Net, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips, words = load_lpips("alex")
    assert lpips is None and "left out" in words and "HF_HUB_OFFLINE" in words and WEIGHT_FILES["alex"] in words
    cached = tmp_path / "hub/checkpoints" / WEIGHT_FILES["alex"]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(weights["alex"].read_bytes())
    lpips, words = load_lpips("alex")
    assert lpips is not None and words.startswith("LPIPS (AlexNet)")


def test_a_failed_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("eval.metrics.lpips._URL", (tmp_path / "nowhere").as_uri() + "/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips, words = load_lpips("vgg")
    assert lpips is None and "could not be downloaded" in words and WEIGHT_FILES["vgg"] in words


def test_ns_lpips_is_lpips_of_dark_pictures_in_the_wrong_range(weights: dict[Net, Path]):
    """Of pictures of 256 pixels, which it does not resize."""
    lpips, _ = load_lpips("alex", weights["alex"])
    assert lpips is not None
    a, b = images(256)
    background = torch.rand(2, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    levels = [((x + 1) / 2 * background).double() for x in (a, b)]
    expected = [
        slow_lpips_map("alex", torch.load(weights["alex"]), x.numpy(), y.numpy()).mean
        for x, y in zip(*levels, strict=True)
    ]
    assert ns_lpips(lpips, a, b, background).tolist() == pytest.approx(expected, rel=1e-5)


def test_every_layer_counts(weights: dict[Net, Path]):
    """The last convolution too: nothing behind it would show it missing."""
    a, b = images()
    for net in NETS:
        state = torch.load(weights[net])
        name = [name for name in state if name.endswith("weight") and not name.startswith("classifier")][-1]
        changed = Lpips(net, state | {name: state[name].flip(0)})
        assert not torch.allclose(changed(a, b), Lpips(net, state)(a, b), rtol=1e-4)
