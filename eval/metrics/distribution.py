"""FID (Heusel et al. 2017) and KID (Bińkowski et al. 2018): how far pictures are from real ones, taken together.

The features are those of Inception v3, prepared as clean-fid does, or embeddings of a CLIP, which give other figures.
Both distances are torchmetrics', in float64.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from eval.metrics.clip import ClipSimilarity, resize_floats
from eval.metrics.networks import load_clip
from models.fingerprints import weights_digest

USUAL_NUMBER = 10_000
"""Number of pictures in published figures (TurboEdit's Table 2); FID falls as the number grows."""

_SIDE = 299
_SUBSETS, _SUBSET = 100, 1000


class PictureFeatures(Protocol):
    """Features of pictures."""

    num_features: int

    def __call__(self, pictures: Tensor) -> Tensor:
        """Features [B, num_features] of pictures uint8 [B, 3, H, W]."""


class InceptionFeatures:
    """The 2048 features of the Inception v3 that FID is defined by.

    Args:
        path: TorchScript file of it, NVIDIA's inception-2015-12-05.pt, which clean-fid takes too. It is called with
            levels of 0 to 255 and `return_features`.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        if not path.is_file():
            raise ValueError(f"there is no file {path}; expected Inception v3 as TorchScript (inception-2015-12-05.pt)")
        try:
            self.model = torch.jit.load(path, map_location=device).eval()
            black = torch.zeros(1, 3, _SIDE, _SIDE, device=device)
            self.num_features = self._features(black).shape[1]
        except RuntimeError as error:
            raise ValueError(f"{path} is not Inception v3 as TorchScript: {str(error).strip()}") from error
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features [B, 2048] of pictures uint8 [B, 3, H, W], resized by Pillow's bicubic without rounding."""
        return self._features(resize_floats(pictures.to(self.device), (_SIDE, _SIDE)).float().to(self.device))

    def _features(self, levels: Tensor) -> Tensor:
        return self.model(levels, return_features=True).flatten(1)


class ClipFeatures:
    """Embeddings of a CLIP's pictures."""

    def __init__(self, clip: ClipSimilarity) -> None:
        self.clip = clip
        self.num_features = clip.model.config.projection_dim

    def __call__(self, pictures: Tensor) -> Tensor:
        """Embeddings [B, P] of pictures uint8 [B, 3, H, W]."""
        return self.clip.embed_pictures(pictures.to(self.clip.model.device))


def load_features(path: str, device: torch.device | str = "cpu") -> tuple[PictureFeatures | None, str]:
    """Features and what their FID and KID are in words; or None and why there are none.

    Args:
        path: a TorchScript file of Inception v3, or folder or hub id of a CLIPModel.

    Raises:
        ValueError: a file that holds something else.
    """
    if path.endswith((".pt", ".pth")) or Path(path).is_file():
        features = InceptionFeatures(Path(path), device)
        return features, f"FID and KID (Inception v3, {path}, {weights_digest(features.model)}; clean-fid's resize)"
    clip, words = load_clip(path, device)
    if clip is None:
        return None, words.replace("CLIP similarity is", "FID and KID are", 1)
    identity = f"{path}, {weights_digest(clip.model)}"
    return ClipFeatures(clip), f"FID and KID of CLIP embeddings ({identity}; not comparable with Inception's)"


@dataclass(frozen=True)
class DistributionFigures:
    """Distances of pictures from real ones.

    Args:
        fid: Fréchet distance; kid: squared maximum mean discrepancy, over subsets of at most 1000. Nan for fewer than
            two pictures.
        num_real, num: numbers of pictures.
        remark: reasons why the figures do not compare with others; empty if they do.
    """

    fid: float
    kid: float
    num_real: int
    num: int
    remark: str


class Distances:
    """FID and KID of pictures against real ones, gathered batch by batch.

    Args:
        features: features of pictures. Where several sets have the same real pictures, their features can be made once
            and given to each with `add`.
    """

    def __init__(self, features: PictureFeatures) -> None:
        self.features = features
        self._found: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, pictures: Tensor, real: bool) -> None:
        """Takes pictures uint8 [B, 3, H, W] in."""
        self.add(self.features(pictures), real)

    def add(self, features: Tensor, real: bool) -> None:
        """Takes features [B, D] of pictures in."""
        self._found[real].append(features.cpu().double())

    def compute(self, seed: int = 0) -> DistributionFigures:
        """The figures of all pictures so far; `seed` is that of KID's subsets."""
        width = self.features.num_features
        real, made = (torch.cat([*self._found[side], torch.empty(0, width).double()]) for side in (True, False))
        fewest = min(len(real), len(made))
        if fewest < 2:
            remark = f"{len(real)} real and {len(made)} other pictures: at least 2 of both are needed"
            return DistributionFigures(math.nan, math.nan, len(real), len(made), remark)
        distances = FrechetInceptionDistance(_Given(width)), _kernel_distance(_Given(width), len(real), len(made))
        for distance in distances:
            distance.update(real, real=True)
            distance.update(made, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fid, (kid, _) = (distance.compute() for distance in distances)
        return DistributionFigures(fid.item(), kid.item(), len(real), len(made), _remark(fewest, width))


class _Given(nn.Module):
    """The features themselves, which torchmetrics would have a network make."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _kernel_distance(features: nn.Module, num_real: int, num: int) -> KernelInceptionDistance:
    """KID over the usual subsets; once over all pictures where these are no more than a subset's on both sides."""
    size = min(_SUBSET, num_real, num)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that features are kept in memory
        return KernelInceptionDistance(features, subsets=1 if size == num_real == num else _SUBSETS, subset_size=size)


def _remark(fewest: int, width: int) -> str:
    if fewest <= width:
        return f"FID of {fewest} pictures in {width} dimensions is far too high: their covariance is singular"
    if fewest < USUAL_NUMBER:
        return f"FID of {fewest} pictures is too high beside published ones of {USUAL_NUMBER}"
    return ""
