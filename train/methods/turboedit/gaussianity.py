"""Whether each picture's mean noise is Gaussian noise: its moments and its power spectrum (Hwang et al., 2509.07027).

The KL of equation 7 acts on each element's own Gaussian and lets the means of a whole picture shrink and keep the
picture's structure; these two look at all means of a picture together.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_SIDE = 4
"""Side of a group of neighbouring frequencies: 16 in all, as in the paper."""

WHITE_AMPLITUDE = math.sqrt(math.pi) / 2
"""Mean amplitude of white noise's orthonormal transform: that of a complex Gaussian of variance 1, a Rayleigh variable.
The paper prints 0.875."""


def moments(noise: Tensor) -> Tensor:
    """Distance [B] of the first two moments of each sample of `noise` [B, C, h, w] from those of N(0, 1).

    L_n = abs(abs(mean(x^n))^(1/n) - mu_n^(1/n)), summed over n = 1, 2, where mu_1 = 0 and mu_2 = 1 (2509.07027).
    """
    flat = noise.flatten(1)
    deviation = flat.square().mean(1).clamp_min(torch.finfo(flat.dtype).tiny).sqrt()  # a root has no slope at 0
    return flat.mean(1).abs() + (deviation - 1).abs()


def spectrum(noise: Tensor) -> Tensor:
    """Distance [B] of the two-dimensional power spectrum of `noise` [B, C, h, w] from a white one.

    L = mean over groups of abs(mean(abs(X)) - sqrt(pi) / 2), X the orthonormal transform of a channel, a group 4 x 4
    neighbouring frequencies (2509.07027, there of the one-dimensional transform). The paper permutes the elements at
    random before, under which a smooth picture is as white as noise; here neighbours stay neighbours, since what leaks
    into an encoder's noise is the picture's own structure.

    Noise itself has about 0.09, as a group's mean varies.
    """
    amplitudes = torch.fft.fft2(noise, norm="ortho").abs()
    groups = F.avg_pool2d(amplitudes, GROUP_SIDE, ceil_mode=True)
    return (groups - WHITE_AMPLITUDE).abs().flatten(1).mean(1)
