"""F: TurboEdit's noise encoder: a latent and the previous reconstruction to a Gaussian over a timestep's noise.

F is a stock UNet2DConditionModel initialised from the generator's: conv_in is widened with zeros for the
reconstruction, conv_out with zeros and a constant bias for the log-variance. So at the start its mean is the
generator's own noise prediction with the clean latent in the place of x_t.
"""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

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
        cls, unet: UNet2DConditionModel, schedule: NoiseSchedule, initial_logvar: float = INITIAL_LOGVAR
    ) -> "NoiseEncoder":
        """A trainable float32 encoder that starts from the generator's weights; `unet` itself is left as it is."""
        channels = unet.config.in_channels
        widened = UNet2DConditionModel.from_config(
            {**unet.config, "in_channels": 2 * channels, "out_channels": 2 * channels}
        )
        weights = {name: weight.detach().float().cpu() for name, weight in unet.state_dict().items()}
        for name in ("conv_in.weight", "conv_out.weight"):
            zeros = torch.zeros_like(weights[name])
            weights[name] = torch.cat([weights[name], zeros], dim=1 if name.startswith("conv_in") else 0)
        bias = weights["conv_out.bias"]
        weights["conv_out.bias"] = torch.cat([bias, torch.full_like(bias, initial_logvar)])
        widened.load_state_dict(weights)
        return cls(widened.to(unet.device), schedule)

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
