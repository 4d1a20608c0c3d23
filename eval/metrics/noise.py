"""Is an inverted noise still noise? Its moments, per sample, and what they say of many, in training and in evaluation.

Everything that is averaged is a raw moment, so averages over micro batches, ranks and log intervals are exact and the
figures (standard deviation, kurtosis, correlation) are computed once, from the averages.
"""

import math
from collections.abc import Mapping

from torch import Tensor

OUTLIER = 10.0
"""|noise| beyond this is a failure that TurboEdit's paper names: the encoder hides the picture in a few huge values."""

MOMENTS = ("m1", "m2", "m3", "m4", "neighbour", "over10")
"""Names of what `noise_moments` gives."""


def noise_moments(noise: Tensor) -> dict[str, Tensor]:
    """Raw moments of each sample of `noise` [b, C, h, w]: each value of the dict is float32 [b], without gradient.

    m1..m4: mean of the noise to the power 1..4; neighbour: mean product of horizontally and vertically adjacent values;
    over10: share of values beyond +-10.
    """
    noise = noise.detach().float()
    flat = noise.flatten(1)
    across = (noise[..., :, 1:] * noise[..., :, :-1]).flatten(1).mean(1)
    down = (noise[..., 1:, :] * noise[..., :-1, :]).flatten(1).mean(1)
    moments = {f"m{power}": flat.pow(power).mean(1) for power in (1, 2, 3, 4)}
    return moments | {"neighbour": (across + down) / 2, "over10": (flat.abs() > OUTLIER).float().mean(1)}


def noise_summary(means: Mapping[str, float]) -> dict[str, float]:
    """The figures of a noise from the averages of its moments (keys as in MOMENTS).

    mean, std, kurtosis (3 for a Gaussian), over10 and lag1, the correlation of adjacent values (0 for white noise).
    Kurtosis and lag1 are nan for a noise without variance.
    """
    m1, m2, m3, m4 = (float(means[f"m{power}"]) for power in (1, 2, 3, 4))
    variance = max(m2 - m1**2, 0.0)
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    flat = variance <= 1e-12
    return {
        "mean": m1,
        "std": math.sqrt(variance),
        "kurtosis": math.nan if flat else fourth / variance**2,
        "over10": float(means["over10"]),
        "lag1": math.nan if flat else (float(means["neighbour"]) - m1**2) / variance,
    }
