"""F: TurboEdit's noise encoder: a latent and the previous reconstruction to a Gaussian over a timestep's noise.

F is a stock network of the generator's class, initialised from the generator's: its first projection is widened with
zeros for the reconstruction, its last one with zeros and a constant bias for the log-variance. So at the start its mean
is the generator's own noise prediction with the clean latent in the place of x_t.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .families import families, family_of
from .options import INITIAL_LOGVAR
from .schedule import NoiseSchedule
from .text import Prompt
from .widening import shortened

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

    Where the schedule ends in pure noise, x_t says all of the noise there and a network's output nothing: of v and
    velocity the mean would be x0 itself, whatever is learned. So F then gives a third latent, zeros at first, which is
    added to the mean.

    Args:
        unet: network of 2C channels in and 2C (3C) channels out, C those of a latent: mean, log-variance (addition).
            Checkpoints hold it by this name, whatever its class.
        schedule: noise schedule of the generator; the mean converts from the network's prediction type as the
            generator's output does.
    """

    def __init__(self, unet: Any, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = schedule
        self.family = family_of(unet)

    @classmethod
    def from_generator(
        cls,
        network: Any,
        schedule: NoiseSchedule,
        initial_logvar: float = INITIAL_LOGVAR,
        shared: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> "NoiseEncoder":
        """An encoder that starts from the generator's weights; `network` itself is left as it is.

        All weights are float32 and trainable. Where they are `shared` that holds for the first and the last projection
        alone; the others are the generator's own tensors, not copies, frozen as they are there, for adapters to be laid
        over.

        Args:
            network: the generator's network.
            schedule: noise schedule of the generator.
            initial_logvar: log-variance at first.
            shared: whether F shares the generator's weights.
            blocks: how many of the network's blocks F keeps, the first ones of each list of the family's BLOCKS; all
                by default. With fewer F does not start as the generator.

        Raises:
            ValueError: blocks that the network does not have, or it has no such lists.
        """
        family = family_of(network)
        if blocks is not None:
            if not family.BLOCKS:
                have = ", ".join(one.NETWORK.__name__ for one in families() if one.BLOCKS)
                raise ValueError(
                    f"encoder.blocks is {list(blocks)}, and the first blocks of a {family.NETWORK.__name__} are no "
                    f"network of its class, as those of {have} are; leave it out"
                )
            network = shortened(network, family.BLOCKS, blocks)
        wide = family.widened(network, shared)
        family.append_outputs(wide, (initial_logvar, 0.0) if schedule.reaches_pure_noise else (initial_logvar,))
        return cls(wide, schedule)

    def forward(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the noise at t [B], float32; x0, x0_prev and both are [B, C, h, w]."""
        inputs = torch.cat([x0, x0_prev], dim=1)
        kind = x0.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        # Autocast joins no float16 of the text encoders with bfloat16.
        dtype = torch.float32 if cast else self.family.compute_dtype(self.unet)
        inputs, prompt = inputs.to(dtype), prompt.to(dtype=dtype)
        given = self.family.evaluate(self.unet, inputs, prompt, t).float()
        output, logvar, *addition = given.split(x0.shape[1], dim=1)
        mean = self.schedule.predict_noise(x0, output, t)
        return mean + addition[0] if addition else mean, logvar.clamp(*LOGVAR_RANGE)

    def posterior(self, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor) -> NoisePosterior:
        """Give what `forward` gives as a NoisePosterior."""
        return NoisePosterior(*self(x0, x0_prev, prompt, t))
