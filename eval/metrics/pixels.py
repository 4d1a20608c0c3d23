"""Closeness of two pictures, image by image, and what many images say together (mean and standard error)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.precision import exact

DATA_RANGE = 2.0
"""Images lie in [-1, 1]."""

MAX_PSNR = 100.0
"""Equal pictures have no error and an infinite PSNR, for which means take this. Finite values above it stay."""

EQUAL_PSNR = 60.0
"""dB from which two pictures of real numbers are equal at 8 bits."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values with its standard error; nan where there are too few values (1 and 2).

    Of PSNRs also how many are `exact`, whose place in the mean is a convention, and the estimate over the others.
    """

    mean: float
    se: float
    n: int
    exact: int | None = None
    others: "Estimate | None" = None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """Estimate the mean over the values that are not nan."""
        kept = [float(value) for value in values if not math.isnan(value)]
        if not kept:
            return cls(math.nan, math.nan, 0)
        mean = math.fsum(kept) / len(kept)
        if len(kept) == 1:
            return cls(mean, math.nan, 1)
        variance = math.fsum((value - mean) ** 2 for value in kept) / (len(kept) - 1)
        return cls(mean, math.sqrt(variance / len(kept)), len(kept))

    @classmethod
    def of_measure(cls, name: str, values: Iterable[float], equal: float = EQUAL_PSNR) -> "Estimate":
        """Estimate a measure by its name: of a PSNR (psnr, psnr_outside ...) with its exact values apart.

        Args:
            name: Name of the measure.
            values: Figures of single pictures.
            equal: PSNR in dB from which pictures count as equal; beside it MAX_PSNR, which stands for no error.
        """
        if not name.startswith("psnr"):
            return cls.of(values)
        kept = [float(value) for value in values if not math.isnan(value)]
        others = [value for value in kept if value < equal and value != MAX_PSNR]
        whole = cls.of(kept)
        return cls(whole.mean, whole.se, whole.n, len(kept) - len(others), cls.of(others))

    def to_dict(self) -> dict[str, Any]:
        """JSON, which has no nan: null instead. `exact` and `others` are there for a PSNR alone."""
        mean, se = (None if math.isnan(value) else value for value in (self.mean, self.se))
        apart = {} if self.others is None else {"exact": self.exact, "others": self.others.to_dict()}
        return {"mean": mean, "se": se, "n": self.n, **apart}


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference [B] of two tensors [B, ...]."""
    return (a.float() - b.float()).square().flatten(1).mean(1)


def _decibels(error: Tensor) -> Tensor:
    """Error [B] in squared units of [-1, 1] as PSNR, MAX_PSNR where there is none; nan stays nan."""
    return (10 * torch.log10(DATA_RANGE**2 / error)).masked_fill(error == 0, MAX_PSNR)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB of images [B, 3, H, W] in [-1, 1]."""
    return _decibels(mse(a, b))


def masked_psnr(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """PSNR [B] of the pixels where `mask` [B, 1, H, W] (bool) is true; nan for an image without any."""
    inside = mask.expand_as(a).flatten(1)
    error = ((a.float() - b.float()).square().flatten(1) * inside).sum(1) / inside.sum(1)
    return _decibels(error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [B] of images [B, 3, H, W] in [-1, 1], compared in [0, 1] (`ssim_map`)."""
    return ssim_map((a + 1) / 2, (b + 1) / 2).mean((1, 2, 3))


Metric = Callable[[Tensor, Tensor], Tensor]


def ns_lpips(distance: Metric, source: Tensor, edit: Tensor, background: Tensor) -> Tensor:
    """NS-LPIPS [B] of StyleDiffusion's Table 2, as its official code has it, of images [B, 3, H, W] in [-1, 1].

    Args:
        distance: LPIPS with AlexNet.
        background: [B, 1, H, W] in [0, 1]: 1 minus the source word's cross-attention map, scaled to a maximum of 1. The
            paper thresholds it, the code does not.

    At 256 pixels, where the edit may change black, and in [0, 1], while LPIPS expects [-1, 1].
    """
    shown = (
        functional.interpolate(values.float(), (_NS_SIDE, _NS_SIDE), mode="bilinear", antialias=True)
        for values in ((source + 1) / 2, (edit + 1) / 2, background)
    )
    before, after, kept = shown
    return distance(before * kept, after * kept)


_NS_SIDE = 256


EDGE = 5
"""Pixels from the border to the centre of the first window."""


_SIGMA = 1.5


_C1, _C2 = 0.01**2, 0.03**2


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Similarity of the windows of pictures [B, C, H, W] in [0, 1], by their centres: float64 [B, C, H - 10, W - 10].

    It lies on the pictures' device, or on the CPU where that has no float64.


    Raises ValueError for pictures smaller than a window.
    """
    height, width = a.shape[-2:]
    if min(height, width) <= 2 * EDGE:
        raise ValueError(f"pictures of {width} x {height} pixels are smaller than SSIM's window of {2 * EDGE + 1}")
    a, b = exact(a), exact(b)
    rows, columns = _window(height, a.device), _window(width, a.device)

    def mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance * (2 * covariance + _C2) / (variances + _C2)


def reflected(pictures: Tensor) -> Tensor:
    """Pictures [B, C, H, W] with EDGE pixels more on each side, reflected: SSIM then has a window at every pixel.

    So torchmetrics has it today, where it left out the windows that reach over the frame until 2024.
    """
    return functional.pad(pictures, (EDGE,) * 4, mode="reflect")


def _window(size: int, device: torch.device) -> Tensor:
    """The Gaussian around each position of a line, [size - 10, size]."""
    centres = torch.arange(EDGE, size - EDGE, dtype=torch.float64, device=device)
    offsets = torch.arange(size, dtype=torch.float64, device=device) - centres[:, None]
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2)) * (offsets.abs() <= EDGE)
    return weights / weights.sum(1, keepdim=True)
