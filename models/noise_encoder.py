"""F: TurboEdit's noise encoder: a latent and the previous reconstruction to a Gaussian over a timestep's noise.

F is a stock UNet2DConditionModel initialised from the generator's: conv_in is widened with zeros for the
reconstruction, conv_out with zeros and a constant bias for the log-variance. So at the start its mean is the
generator's own noise prediction with the clean latent in the place of x_t.
"""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .options import INITIAL_LOGVAR
from .schedule import NoiseSchedule
from .text import Prompt
from .widening import convolution, widened

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class NoisePosterior:
    """Gaussian over a timestep's noise, independent in each element: `mean` and `logvar` [B, C, h, w]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Sample mean + sigma * noise for standard normal `noise` [B, C, h, w] (reparameterisation)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL(N(mean, var) || N(0, 1)) [B] in nats, summed over C, h, w."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)


class NoiseEncoder(nn.Module):
    """(x0, x0_prev, prompt, t) -> (mean, logvar) of the noise.

    Args:
        unet: 2C channels in and 2C channels out, C those of a latent.
        schedule: noise schedule of the generator; the mean converts from the UNet's prediction type as the generator's
            output does.
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
        encoder = widened(unet, shared)
        weight, bias = unet.conv_out.weight.detach(), unet.conv_out.bias.detach()
        bias = torch.cat([bias, torch.full_like(bias, initial_logvar)])
        encoder.conv_out = convolution(torch.cat([weight, torch.zeros_like(weight)]), bias)
        encoder.register_to_config(out_channels=2 * unet.config.out_channels)
        return cls(encoder, schedule)

    def forward(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the noise at t [B], float32; x0, x0_prev and both are [B, C, h, w]."""
        inputs = torch.cat([x0, x0_prev], dim=1)
        kind = x0.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        # Autocast joins no float16 of the text encoders with bfloat16; and to find a dtype diffusers walks through all
        # modules.
        dtype = torch.float32 if cast else self.unet.conv_norm_out.weight.dtype
        inputs, prompt = inputs.to(dtype), prompt.to(dtype=dtype)
        output, logvar = self.unet(inputs, t, **prompt.unet_inputs()).sample.float().chunk(2, dim=1)
        return self.schedule.predict_noise(x0, output, t), logvar.clamp(*LOGVAR_RANGE)

    def posterior(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor) -> NoisePosterior:
        """Give what `forward` gives as a NoisePosterior."""
        return NoisePosterior(*self(x0, x0_prev, prompt, t))
