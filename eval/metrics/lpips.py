"""LPIPS (Zhang et al. 2018): distance of two pictures in the features of a classifier.

Each layer's features are scaled to length 1 at every position; the squared differences are weighted by channel (the
learned heads, which torchmetrics packs), summed over channels and layers and averaged over the picture. torchmetrics
builds the classifiers with torchvision, which has no build beside torch's CPU one; here they are written out with
torchvision's names, so that its published weights fit.
"""

import pickle
import urllib.error
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from data.jobs.files import file_digest
from models.backbone import freeze
from models.fingerprints import weights_digest

Net = Literal["alex", "vgg", "squeeze"]

NET_NAMES: Mapping[Net, str] = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet 1.1"}

WEIGHT_FILES: Mapping[Net, str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's, trained on ImageNet; the digits are the start of their SHA-256."""

_URL = "https://download.pytorch.org/models/"

_LAYERS: Mapping[Net, tuple[int, ...]] = {
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}
"""Modules behind which the features are taken; all are ReLUs or end in some."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, for images in [-1, 1]."""

_HEADS = "lpips_models"
"""The folder in which torchmetrics packs the learned heads."""

_EPS = 1e-8


class Lpips(nn.Module):
    """LPIPS of images [B, 3, H, W] in [-1, 1]; what decoders put beyond is clipped. Differentiable in the images.

    Args:
        net: the classifier.
        weights: torchvision's state dict of it, with or without its last layers; its values are copied.

    Raises:
        ValueError: the weights are those of something else.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self.features = classifier_features(net)
        convolutions = {name: values for name, values in weights.items() if not name.startswith("classifier.")}
        try:
            self.load_state_dict(convolutions)
        except RuntimeError as error:
            raise ValueError(f"these are not torchvision's weights of {NET_NAMES[net]}: {error}") from error
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        for number, head in enumerate(_heads(net)):
            self.register_buffer(f"head{number}", head, persistent=False)
        freeze(self)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances [B]."""
        parts = [weighted.mean((1, 2, 3)) for weighted in self._layers(a, b)]
        return torch.stack(parts).sum(0)

    def spatial(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances by position [B, 1, H, W]: each layer's, interpolated to the picture's size."""
        size = a.shape[-2:]
        parts = [functional.interpolate(weighted, size, mode="bilinear") for weighted in self._layers(a, b)]
        return torch.stack(parts).sum(0)

    def _layers(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """Weighted squared differences [B, 1, h, w] of each layer."""
        pairs = zip(self._units(a), self._units(b), strict=True)
        return [
            functional.conv2d((mine - other) ** 2, self.get_buffer(f"head{number}"))
            for number, (mine, other) in enumerate(pairs)
        ]

    def _units(self, images: Tensor) -> list[Tensor]:
        """Features [B, C, h, w] of each layer, of length 1 at each position."""
        values = (images.to(self.shift).clamp(-1, 1) - self.shift) / self.scale
        found = []
        for number, module in enumerate(self.features):
            values = module(values)
            if number in _LAYERS[self.net]:
                found.append(values / (values.square().sum(1, keepdim=True) + _EPS).sqrt())
        return found


def load_lpips(net: Net, weights: Path | None = None, device: torch.device | str = "cpu") -> tuple[Lpips | None, str]:
    """LPIPS and what it is in words; or None and why there is none.

    Args:
        weights: torchvision's state dict of the classifier (.pth or .safetensors). None: torch hub's copy, downloaded
            unless HF_HUB_OFFLINE is set.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    name = f"LPIPS ({NET_NAMES[net]})"
    if weights is not None:
        found, origin = _read(weights), weights.name
    else:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHT_FILES[net]
        if is_offline_mode() and not cached.is_file():
            return None, f"{name} is left out: HF_HUB_OFFLINE is set and {cached} is not there"
        try:
            found = torch.hub.load_state_dict_from_url(
                _URL + WEIGHT_FILES[net], map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:  # no network, no such file; a broken download
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            return None, f"{name} is left out: {_URL + WEIGHT_FILES[net]} could not be downloaded ({reason})"
        origin = WEIGHT_FILES[net]
    lpips = Lpips(net, found).to(device)
    return lpips, f"{name}, {origin}, {weights_digest(lpips)}"


def unlike_published(net: Net, weights: Path | None) -> str | None:
    """How the classifier that `load_lpips` loads differs from torchvision's, in words; None if it is that one.

    A file of other bytes may hold the same weights; that shows where torch hub's copy lies beside it.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHT_FILES[net]
    if _is_published(net, weights or cached):
        return None
    known = cached.is_file() and _is_published(net, cached)
    if (
        weights is not None
        and known
        and weights_digest(Lpips(net, _read(weights))) == weights_digest(Lpips(net, _read(cached)))
    ):
        return None
    return f"LPIPS ({NET_NAMES[net]}) with other weights than torchvision's: {(weights or cached).name}"


def _is_published(net: Net, file: Path) -> bool:
    """Whether a file is torchvision's, whose name ends in the start of its SHA-256."""
    return file_digest(file).startswith(Path(WEIGHT_FILES[net]).stem.rpartition("-")[2])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}; expected torchvision's state dict (.pth or .safetensors)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} holds no weights, or a damaged file ({str(error).splitlines()[0]})") from error


def classifier_features(net: Net) -> nn.Sequential:
    """The convolutional part of a classifier with new weights, under torchvision's names."""
    return {"alex": _alexnet, "vgg": _vgg16, "squeeze": _squeezenet}[net]()


def _heads(net: Net) -> list[Tensor]:
    """Weights [1, C, 1, 1] of each layer's channels, of LPIPS' version 0.1.

    They are looked for among torchmetrics' files, wherever in the package they lie: their folder has moved before.
    """
    wanted = (_HEADS, f"{net}.pth")
    packed = [file for file in metadata.files("torchmetrics") or () if file.parts[-2:] == wanted]
    if not packed:
        version = metadata.version("torchmetrics")
        raise ValueError(f"torchmetrics {version} has no {'/'.join(wanted)}; install the version of constraints.txt")
    found = torch.load(Path(packed[0].locate()), map_location="cpu", weights_only=True)
    return [found[f"lin{number}.model.1.weight"] for number in range(len(found))]


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> Sequence[nn.Module]:
    return nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *_convolution(3, 64, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_convolution(64, 192, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *_convolution(192, 384, 3, padding=1),
        *_convolution(384, 256, 3, padding=1),
        *_convolution(256, 256, 3, padding=1),
    )


def _vgg16() -> nn.Sequential:
    modules: list[nn.Module] = []
    channels = 3
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        if modules:
            modules.append(nn.MaxPool2d(2, 2))
        for _ in range(count):
            modules += _convolution(channels, width, 3, padding=1)
            channels = width
    return nn.Sequential(*modules)


def _squeezenet() -> nn.Sequential:
    return nn.Sequential(
        *_convolution(3, 64, 3, stride=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *(_Fire(64, 16, 64), _Fire(128, 16, 64)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *(_Fire(128, 32, 128), _Fire(256, 32, 128)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *(_Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)),
    )


class _Fire(nn.Module):
    """SqueezeNet's block: few channels, from which 1x1 and 3x3 convolutions make `width` each, side by side."""

    def __init__(self, channels: int, few: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, few, 1)
        self.expand1x1 = nn.Conv2d(few, width, 1)
        self.expand3x3 = nn.Conv2d(few, width, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        few = functional.relu(self.squeeze(values))
        return functional.relu(torch.cat([self.expand1x1(few), self.expand3x3(few)], dim=1))
