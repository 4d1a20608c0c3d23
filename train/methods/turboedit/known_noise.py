"""Pictures whose noise is known, because G has just made them of it: F is asked for that noise.

FlashIn and SwiftEdit (2412.04301, stage 1) do it for the noise of a single step, z = G(b eps, c, T), and ask for it:
||mean - eps||^2. No paper spells several steps out. Regressing all noises of a generated chain from its last picture
is ill posed, as later noises have overwritten the earlier ones; here the picture is the output of that very step,
z = G(a x_{0,t+1} + b eps, c, t), and F(z, x_{0,t+1}, c, t) is asked for eps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.generator import FewStepGenerator
from models.noise_encoder import NoisePosterior
from models.text import Prompt
from train.rng import StepRandom


@dataclass(frozen=True)
class KnownNoise:
    """The pictures of K rows of a micro batch.

    Args:
        rows: Numbers of the rows [K] in the micro batch.
        prompt: Prompts of these rows.
        picture: What G made, [K, C, h, w].
        noise: What G made it of, [K, C, h, w].
        share: Share of all rows that K is on average.
    """

    rows: Tensor
    prompt: Prompt
    picture: Tensor
    noise: Tensor
    share: float

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """Lay values [K] out over a number of rows, [B]: their mean over a global batch is then that of the K."""
        return values.new_zeros(rows).index_copy(0, self.rows, values / self.share)


@torch.no_grad()
def draw_known_noise(
    generator: FewStepGenerator, x0_prev: Tensor, prompt: Prompt, t: Tensor, share: float, rng: StepRandom
) -> KnownNoise:
    """Pictures of known noise for a share of the rows of `x0_prev` [B, C, h, w], at their timesteps t [B]."""
    chosen = torch.nonzero(rng.chosen("known_rows", share)).squeeze(1)
    rows, taken = chosen.to(x0_prev.device, non_blocking=True), prompt[chosen]
    noise = rng.normal("known_noise", x0_prev.shape[1:])[rows]
    picture = noise
    if len(rows):
        x_t = generator.schedule.add_noise(x0_prev[rows], noise, t[rows])
        picture = generator.predict_x0(x_t, taken, t[rows])
    return KnownNoise(rows, taken, picture, noise, share)


def known_noise_error(posterior: NoisePosterior, noise: Tensor, kind: Literal["mse", "nll"]) -> Tensor:
    """Error [K] of a posterior for the true noise [K, C, h, w], a mean over its elements.

    Args:
        kind: mse, (mean - eps)^2; or nll, 0.5 ((eps - mean)^2 / var + logvar), the Gaussian's negative log-likelihood
            without its constant. The latter fits the variance to the error that is left, without any lambda.
    """
    error = (posterior.mean - noise).square()
    if kind == "nll":
        error = 0.5 * (error * torch.exp(-posterior.logvar) + posterior.logvar)
    return error.flatten(1).mean(1)
