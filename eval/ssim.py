"""Structural similarity (Wang et al. 2004) in float64, by matrices.

The window is a Gaussian of 11 pixels (sigma 1.5). Only windows that lie within the picture count, as in that paper, in
scikit-image, and in torchmetrics until 2024. torchmetrics convolves with the window as a square, which takes ten times
as long for a picture of 512 pixels in float64, and more for a batch.
"""

import torch
from torch import Tensor

EDGE = 5
"""Pixels from the border to the centre of the first window."""

_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Similarity of the windows of pictures [B, C, H, W] in [0, 1], by their centres: float64 [B, C, H - 10, W - 10].

    Raises ValueError for pictures smaller than a window.
    """
    height, width = a.shape[-2:]
    if min(height, width) <= 2 * EDGE:
        raise ValueError(f"pictures of {width} x {height} pixels are smaller than SSIM's window of {2 * EDGE + 1}")
    a, b = a.double(), b.double()
    rows, columns = _window(height, a.device), _window(width, a.device)

    def mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance * (2 * covariance + _C2) / (variances + _C2)


def _window(size: int, device: torch.device) -> Tensor:
    """The Gaussian around each position of a line, [size - 10, size]."""
    centres = torch.arange(EDGE, size - EDGE, dtype=torch.float64, device=device)
    offsets = torch.arange(size, dtype=torch.float64, device=device) - centres[:, None]
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2)) * (offsets.abs() <= EDGE)
    return weights / weights.sum(1, keepdim=True)
