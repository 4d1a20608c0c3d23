"""Perceptual distances of a reconstruction: in features of the generator's own encoder, or LPIPS of decoded crops."""

import torch
from torch import Tensor

from eval.metrics.lpips import Lpips
from models.backbone import Backbone
from models.precision import without_autocast
from models.text import Prompt
from train.methods.turboedit.features import encoder_features
from train.rng import StepRandom

CROP_SIDE = 16
"""Side of a crop in latents: 128 pixels of SDXL's."""

_EPS = 1e-8  # as in LPIPS


def feature_distance(
    backbone: Backbone, x0_hat: Tensor, x0: Tensor, prompt: Prompt, t: Tensor, noise: Tensor
) -> Tensor:
    """Distance [B] of latents [B, C, h, w] in features of the backbone's down and middle blocks.

    The frozen network is the perceptual one (Lin and Yang, 2401.00110: the self-perceptual objective, there a
    squared error of the middle block's features): both latents are noised to t by the same noise and compared as
    LPIPS does without learned weights, features scaled to length 1 at each position, squared differences summed over
    channels and layers and averaged over positions.

    Args:
        backbone: Backbone with its UNet; frozen.
        x0_hat: Reconstructions, to which gradients flow.
        x0: Latents of the pictures.
        prompt: Prompts.
        t: Timesteps [B], clean ones that the network knows.
        noise: Noise of both [B, C, h, w].
    """

    def features(latent: Tensor) -> list[Tensor]:
        noised = backbone.schedule.add_noise(latent, noise, t)
        return [_of_length_1(x) for x in encoder_features(backbone, noised, prompt, t, middle=True)]

    with torch.no_grad():
        wanted = features(x0)
    distances = [(mine - other).square().sum(1) for mine, other in zip(features(x0_hat), wanted, strict=True)]
    return torch.stack([distance.flatten(1).mean(1) for distance in distances]).sum(0)


def _of_length_1(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + _EPS).sqrt()


def crop_distance(backbone: Backbone, lpips: Lpips, x0_hat: Tensor, x0: Tensor, rng: StepRandom) -> Tensor:
    """LPIPS [B] of decoded crops of latents [B, C, h, w]: 16 x 16 of each, at a random place, or all of smaller ones.

    A crop costs the decoder 1/16 of a latent of 64 x 64.
    """
    height, width = (min(CROP_SIDE, side) for side in x0.shape[-2:])
    tops = rng.integers("crop_top", x0.shape[-2] - height + 1).tolist()
    lefts = rng.integers("crop_left", x0.shape[-1] - width + 1).tolist()

    def picture(latents: Tensor) -> Tensor:
        places = zip(latents, tops, lefts, strict=True)
        return backbone.decode(torch.stack([x[:, top : top + height, left : left + width] for x, top, left in places]))

    with torch.no_grad():
        wanted = picture(x0)
    made = picture(x0_hat)
    with without_autocast(x0.device):
        return lpips(made, wanted)
