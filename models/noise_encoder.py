"""F: TurboEdit's noise encoder: a latent and the previous reconstruction to a Gaussian over a timestep's noise.

F is a stock UNet2DConditionModel initialised from the generator's: conv_in is widened with zeros for the
reconstruction, conv_out with zeros and a constant bias for the log-variance. So at the start its mean is the
generator's own noise prediction with the clean latent in the place of x_t.
"""

import copy
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .backbone import recast
from .schedule import NoiseSchedule
from .text import Prompt

INITIAL_LOGVAR = -4.0
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class NoisePosterior:
    """Gaussian over a timestep's noise, independent in each element: `mean` and `logvar` [B, C, h, w]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + sigma * noise for standard normal `noise` [B, C, h, w] (reparameterisation)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL(N(mean, var) || N(0, 1)) [B] in nats, summed over C, h, w."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)


class NoiseEncoder(nn.Module):
    """(x0, x0_prev, prompt, t) -> (mean, logvar) of the noise.

    Args:
        unet: 2C channels in and 2C channels out, C those of a latent.
        schedule: of the generator; the mean converts from the UNet's prediction type as the generator's output does.
    """

    def __init__(self, unet: UNet2DConditionModel, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = schedule

    @classmethod
    def from_generator(
        cls,
        unet: UNet2DConditionModel,
        schedule: NoiseSchedule,
        initial_logvar: float = INITIAL_LOGVAR,
        shared: bool = False,
    ) -> "NoiseEncoder":
        """An encoder that starts from the generator's weights; `unet` itself is left as it is.

        All weights are float32 and trainable. Where they are `shared` that holds for conv_in and conv_out alone; the
        others are the generator's own tensors, not copies, frozen as they are there, for adapters to be laid over.
        """
        tensors = (*unet.parameters(), *unet.buffers())
        widened = copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors} if shared else None)
        widened.disable_gradient_checkpointing()  # a flag of the copied blocks; the generator keeps its own
        if not shared:
            recast(widened, torch.float32)
            widened.requires_grad_(True)
        weight = unet.conv_in.weight.detach()
        widened.conv_in = _conv(torch.cat([weight, torch.zeros_like(weight)], dim=1), unet.conv_in.bias)
        weight, bias = unet.conv_out.weight.detach(), unet.conv_out.bias.detach()
        bias = torch.cat([bias, torch.full_like(bias, initial_logvar)])
        widened.conv_out = _conv(torch.cat([weight, torch.zeros_like(weight)]), bias)
        widened.register_to_config(in_channels=2 * unet.config.in_channels, out_channels=2 * unet.config.out_channels)
        return cls(widened, schedule)

    def forward(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the noise at t [B], float32; x0, x0_prev and both are [B, C, h, w]."""
        inputs = torch.cat([x0, x0_prev], dim=1)
        if not torch.is_autocast_enabled(x0.device.type):
            inputs, prompt = inputs.to(self.unet.dtype), prompt.to(dtype=self.unet.dtype)
        output, logvar = self.unet(inputs, t, **prompt.unet_inputs()).sample.float().chunk(2, dim=1)
        return self.schedule.predict_noise(x0, output, t), logvar.clamp(*LOGVAR_RANGE)

    def posterior(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor) -> NoisePosterior:
        """`forward` as a NoisePosterior."""
        return NoisePosterior(*self(x0, x0_prev, prompt, t))


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A trainable float32 convolution that keeps the size, with `weight` [out, in, k, k] and `bias` [out]."""
    num_out, num_in, side, _ = weight.shape
    conv = nn.Conv2d(num_in, num_out, side, padding=side // 2, device=weight.device)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv
