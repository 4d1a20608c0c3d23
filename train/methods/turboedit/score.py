"""SwiftEdit's score regulariser (2412.04301, stage 2): the noise has to look like noise to a many-step teacher."""

import torch
from torch import Tensor

from models.backbone import Backbone
from models.text import Prompt

TIMESTEPS = (20, 980)
"""First and last timestep of the teacher, as in DreamFusion."""


def score_error(teacher: Backbone, x0: Tensor, noise: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
    """Error [B] of `noise` [B, C, h, w] in the eyes of a teacher, a mean over its elements.

    0.5 w(t) (eps - eps_phi(z_t, t, c))^2 with z_t = a x0 + b eps and w(t) = b^2 = 1 - abar_t, as in DreamFusion. The
    teacher's estimate has no gradient, z_t neither, so that the gradient is w(t) (eps - eps_phi) d eps / d theta.

    Args:
        teacher: Frozen many-step model of the same latents.
        x0: Latents of the pictures [B, C, h, w].
        noise: F's noise for them, to which gradients flow.
        prompt: The teacher's prompts.
        t: Timesteps of the teacher [B].
    """
    with torch.no_grad():
        z = teacher.schedule.add_noise(x0, noise, t)
        estimate = teacher.schedule.predict_noise(teacher.seen(z), teacher.predict(z, prompt, t), t)
    _, b = teacher.schedule.coefficients(t, x0)
    return (0.5 * b.square() * (noise - estimate).square()).flatten(1).mean(1)
