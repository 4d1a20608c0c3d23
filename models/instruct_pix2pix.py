"""InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800): a diffusion model that sees a picture and follows an order.

The source picture's latent comes in beside x_t, unscaled: as the VAE gives it, without the factor that x_t has.
"""

import torch
from torch import Tensor, nn

from .ddim import Ddim, matching
from .text import Prompt, concatenate

TEXT_GUIDANCE = 7.5
IMAGE_GUIDANCE = 1.5


def predict_output(unet: nn.Module, x_t: Tensor, source: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
    """The raw output [B, 4, h, w] in float32 of a widened UNet at t [B].

    Args:
        unet: a UNet of 8 input channels, wrapped or not.
        x_t, source: noised latent and unscaled latent of the source picture, both [B, 4, h, w].
    """
    inputs = torch.cat([x_t, source], dim=1)
    if not torch.is_autocast_enabled(x_t.device.type):
        dtype = next(unet.parameters()).dtype
        inputs, prompt = inputs.to(dtype), prompt.to(dtype=dtype)
    return unet(inputs, t, **prompt.unet_inputs()).sample.float()


def dual_guidance(
    neither: Tensor,
    image: Tensor,
    both: Tensor,
    text_guidance: float = TEXT_GUIDANCE,
    image_guidance: float = IMAGE_GUIDANCE,
) -> Tensor:
    """Equation 3: e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0)), all [B, 4, h, w].

    The weights sum to one, so of outputs that mean v it is the v of the guided noise.

    Args:
        neither, image, both: e without anything, with the source picture, and with the order too.
        text_guidance: s_T; image_guidance: s_I.
    """
    return neither + image_guidance * (image - neither) + text_guidance * (both - image)


@torch.no_grad()
def edit_by_instruction(
    unet: nn.Module,
    ddim: Ddim,
    source: Tensor,
    prompt: Prompt,
    null: Prompt,
    noise: Tensor,
    text_guidance: float = TEXT_GUIDANCE,
    image_guidance: float = IMAGE_GUIDANCE,
) -> Tensor:
    """The edited pictures' scaled latents [B, 4, h, w], by DDIM with one evaluation of 3B rows a step.

    Args:
        unet: the UNet of `predict_output`.
        source: unscaled latents of the source pictures [B, 4, h, w].
        prompt, null: the orders [B] and the empty one [1].
        noise: where sampling starts, standard normal [B, 4, h, w].
        text_guidance, image_guidance: the two scales of `dual_guidance`.
    """
    nothing = matching(null, prompt)
    sources, prompts = torch.cat([source, source, torch.zeros_like(source)]), concatenate([prompt, nothing, nothing])

    def predict(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), ddim.timesteps[step], device=x.device)
        both, image, neither = predict_output(unet, x.repeat(3, 1, 1, 1), sources, prompts, t.repeat(3)).chunk(3)
        guided = dual_guidance(neither, image, both, text_guidance, image_guidance)
        return ddim.schedule.predict_noise(x, guided, t)

    return ddim.denoise(noise, predict)[-1]
