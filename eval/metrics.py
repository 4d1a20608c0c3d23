"""How close two pictures are, image by image, and what many images say together (mean and standard error)."""

import importlib.util
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

DATA_RANGE = 2.0
"""Images lie in [-1, 1]."""

_SSIM_WINDOW = 11

MAX_PSNR = 100.0
"""Equal pictures have no error and an infinite PSNR; figures stop here so that means exist."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values with its standard error; nan where there are too few values (1 and 2)."""

    mean: float
    se: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """Of the values that are not nan."""
        kept = [float(value) for value in values if not math.isnan(value)]
        if not kept:
            return cls(math.nan, math.nan, 0)
        mean = math.fsum(kept) / len(kept)
        if len(kept) == 1:
            return cls(mean, math.nan, 1)
        variance = math.fsum((value - mean) ** 2 for value in kept) / (len(kept) - 1)
        return cls(mean, math.sqrt(variance / len(kept)), len(kept))

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON, which has no nan: null instead."""
        mean, se = (None if math.isnan(value) else value for value in (self.mean, self.se))
        return {"mean": mean, "se": se, "n": self.n}


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference [B] of two tensors [B, ...]."""
    return (a.float() - b.float()).square().flatten(1).mean(1)


def _decibels(error: Tensor) -> Tensor:
    """Error [B] in squared units of [-1, 1] as PSNR, at most MAX_PSNR; nan stays nan."""
    return (10 * torch.log10(DATA_RANGE**2 / error)).clamp(max=MAX_PSNR)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB of images [B, 3, H, W] in [-1, 1]."""
    return _decibels(mse(a, b))


def masked_psnr(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """PSNR [B] of the pixels where `mask` [B, 1, H, W] (bool) is true; nan for an image without any."""
    inside = mask.expand_as(a).flatten(1)
    error = ((a.float() - b.float()).square().flatten(1) * inside).sum(1) / inside.sum(1)
    return _decibels(error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [B] of images [B, 3, H, W] in [-1, 1] (Wang et al. 2004: Gaussian window of 11, sigma 1.5).

    As in that paper and in scikit-image, only windows that lie within the picture count.
    """
    _, local = structural_similarity_index_measure(
        a.float(), b.float(), data_range=DATA_RANGE, reduction="none", return_full_image=True
    )
    edge = _SSIM_WINDOW // 2
    return local[..., edge:-edge, edge:-edge].flatten(1).mean(1)


Metric = Callable[[Tensor, Tensor], Tensor]


def load_lpips(device: torch.device | str = "cpu") -> tuple[Metric | None, str]:
    """LPIPS (AlexNet) as a function of images [B, 3, H, W] in [-1, 1] to [B], or None, with the reason in words.

    torchmetrics builds it on torchvision, which this project does not install and which downloads AlexNet's weights.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None, "LPIPS is left out: it needs torchvision (install the build that belongs to your torch)"
    from torchmetrics.functional.image.lpips import _LPIPS  # heavy, and only where torchvision is installed

    try:
        network = _LPIPS(pretrained=True, net="alex").to(device).eval()
    except OSError as error:
        return None, f"LPIPS is left out: AlexNet's weights could not be loaded ({error})"

    @torch.no_grad()
    def lpips(a: Tensor, b: Tensor) -> Tensor:
        return network(a.float().clamp(-1, 1), b.float().clamp(-1, 1)).reshape(len(a))

    return lpips, "LPIPS with AlexNet (torchmetrics)"
