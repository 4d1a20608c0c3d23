"""Levels of noise between the steps of a many-step sampler: 0 is the noisiest, `len(ddim)` the image itself."""

from torch import Tensor

from models.ddim import Ddim


def first_level(ddim: Ddim, strength: float) -> int:
    """Where sampling begins if `strength` is the share of the steps that are sampled.

    Raises ValueError if it is no share.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; expected a share of the {len(ddim)} steps from 0 to 1")
    return len(ddim) - round(strength * len(ddim))


def noised(ddim: Ddim, latent: Tensor, noise: Tensor, level: int) -> Tensor:
    """A latent [B, C, h, w] with `noise` at a level: sqrt(abar) latent + sqrt(1 - abar) noise; itself at the last."""
    if level == len(ddim):
        return latent
    a = ddim.abar(level)
    return a**0.5 * latent + (1 - a) ** 0.5 * noise
