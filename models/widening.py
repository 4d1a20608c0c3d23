"""A UNet that takes a second latent beside its own, as TurboEdit's encoder and InstructPix2Pix do."""

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .backbone import recast


def widened(unet: UNet2DConditionModel, shared: bool = False) -> UNet2DConditionModel:
    """A UNet of 2C channels in whose weights for the last C are zeros: it starts as `unet`, whatever comes in there.

    All weights are float32 and trainable. Where they are `shared` that holds for conv_in alone; the others are the
    tensors of `unet`, not copies, frozen as they are there, for adapters to be laid over. `unet` is left as it is.
    """
    tensors = (*unet.parameters(), *unet.buffers())
    wide = copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors} if shared else None)
    wide.disable_gradient_checkpointing()  # a flag of the copied blocks; `unet` keeps its own
    if not shared:
        recast(wide, torch.float32)
        wide.requires_grad_(True)
    weight = unet.conv_in.weight.detach()
    wide.conv_in = convolution(torch.cat([weight, torch.zeros_like(weight)], dim=1), unet.conv_in.bias)
    wide.register_to_config(in_channels=2 * unet.config.in_channels)
    return wide


def convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A trainable float32 convolution that keeps the size, with `weight` [out, in, k, k] and `bias` [out]."""
    num_out, num_in, side, _ = weight.shape
    conv = nn.Conv2d(num_in, num_out, side, padding=side // 2, device=weight.device)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv
