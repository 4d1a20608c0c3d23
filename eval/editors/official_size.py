"""Constants of official codes that hold for SDXL-Turbo's latents of 4 x 64 x 64 numbers, and latents of other sizes."""

from torch import Tensor

OFFICIAL_SIZE = 4 * 64 * 64


def size_ratio(latent: Tensor) -> float:
    """Size of each latent of `latent` [B, C, h, w] as a multiple of the official one.

    A norm grows with its root. A gradient step on a mean over all places moves each by the inverse of their number, so
    for the same effect its rate has to grow with it.
    """
    return latent[0].numel() / OFFICIAL_SIZE
