"""The epsilon student: the miniature's student again, predicting epsilon as SDXL-Turbo does.

At t = 999 an error of epsilon is 14.6 times as large in x0, so what the network gives has to be its own input to a few
thousandths, plus a little. A UNet trained to that for minutes does not get there; this one begins there.
"""

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.options import TURBO_TIMESTEPS
from models.schedule import NoiseSchedule
from train.rng import StepRandom
from train.task import Batch, StepLoss

_SHARE = 0.2
"""Share of the student's v that the output begins with: a(t), by which it belongs there, runs from 0.07 to 0.8."""

_ANCHOR = 8.0
"""Constant that stands beside each latent channel in its norm's group, which then hardly depends on the latent."""


@torch.no_grad()
def build_epsilon_unet(student: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet of the student's weights whose output begins as x_t plus a share of the student's v.

    The last residual block gets conv_in's output beside its input, of which x_t is a linear function. Four groups of
    four channels before the last norm, those with the least part in the output, become (x, -x, K, -K) for each latent
    channel: the norm divides by the constant K, and silu(x) - silu(-x) = x.
    """
    unet = copy.deepcopy(student)
    block, norm, conv = unet.up_blocks[-1].resnets[-1], unet.conv_norm_out, unet.conv_out
    size = norm.num_channels // norm.num_groups
    parts = (conv.weight * norm.weight.view(1, -1, 1, 1)).square().sum((0, 2, 3)).view(norm.num_groups, size).sum(1)
    conv.weight.mul_(_SHARE)
    conv.bias.mul_(_SHARE)

    # x_t = reading @ (conv_in(x_t) - bias): conv_in sees 3 x 3 pixels of 4 channels, and has more outputs than that.
    seen = unet.conv_in.weight.flatten(1)
    centre = torch.zeros(unet.conv_in.in_channels, *unet.conv_in.weight.shape[1:])
    centre[range(4), range(4), 1, 1] = 1.0
    reading = centre.flatten(1) @ torch.linalg.pinv(seen)
    hidden = block.conv_shortcut.in_channels - len(seen)

    for latent, group in enumerate(parts.argsort()[: unet.conv_in.in_channels].tolist()):
        plus, minus, *anchors = range(size * group, size * (group + 1))
        for channel in (plus, minus, *anchors):
            block.conv2.weight[channel], block.conv2.bias[channel] = 0.0, 0.0
            block.conv_shortcut.weight[channel], norm.bias[channel] = 0.0, 0.0
            norm.weight[channel] = _ANCHOR / 2**0.5
            conv.weight[:, channel] = 0.0
        for channel, sign in ((plus, 1.0), (minus, -1.0)):
            block.conv_shortcut.weight[channel, hidden:, 0, 0] = sign * reading[latent]
            block.conv_shortcut.bias[channel] = -sign * reading[latent] @ unet.conv_in.bias
            conv.weight[latent, channel, 1, 1] = sign
        block.conv_shortcut.bias[anchors] = torch.tensor([_ANCHOR, -_ANCHOR])
    return unet.requires_grad_(True).train()


class EpsilonTask:
    """An epsilon network learns the x0 that the student predicts, where inversion and sampling ask for it.

    Args:
        unet: What `build_epsilon_unet` gives.
        student: The student, which predicts v.
        own_share: Share of inputs that are the student's own estimates, noised again, and not pictures of the data.
    """

    fields: tuple[str, ...] = ("latent", "caption")
    groups: tuple[str, ...] = tuple(f"t{t}" for t in TURBO_TIMESTEPS)

    def __init__(self, unet: UNet2DConditionModel, student: Backbone, own_share: float = 0.3) -> None:
        self.trainable: nn.Module = unet
        self.student = FewStepGenerator(student)
        self.schedule = NoiseSchedule(student.schedule.alphas_cumprod, "epsilon")
        self.own_share = own_share

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Mean squared error of x0 at one of the four timesteps a sample."""
        x0: Tensor = batch["latent"]
        prompt = self.student.backbone.encode_text(batch["caption"])
        index = rng.integers("timestep", len(TURBO_TIMESTEPS))
        own = rng.uniform("own") < self.own_share
        start = torch.where((own | (index == 0)).to(x0.device)[:, None, None, None], 0.0, x0)
        for step, timestep in enumerate(TURBO_TIMESTEPS[:-1]):
            rows = torch.nonzero(own & (index > step)).squeeze(1).to(x0.device)
            noise = rng.normal(f"step {step}", x0.shape[1:])[rows]
            if not len(rows):
                continue
            t = torch.full((len(rows),), timestep, device=x0.device)
            with torch.no_grad():
                noisy = self.schedule.add_noise(start[rows], noise, t)
                start[rows] = self.student.predict_x0(noisy, prompt[rows], t)
        t = torch.tensor(TURBO_TIMESTEPS)[index].to(x0.device)
        x_t = self.schedule.add_noise(start, rng.normal("noise", x0.shape[1:]), t)
        with torch.no_grad():
            target = self.student.predict_x0(x_t, prompt, t)
        output = model(x_t, t, **prompt.unet_inputs()).sample.float()
        error = (self.schedule.predict_x0(x_t, output, t) - target).square().flatten(1).mean(1)
        return StepLoss({"mse": error.mean()}, {"x0_error": error.detach()}, index.to(x0.device))

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """One step from the same noise beside the student's."""
        x0: Tensor = batch["latent"]
        backbone = self.student.backbone
        prompt = backbone.encode_text(batch["caption"])
        x_t, t = rng.normal("noise", x0.shape[1:]), torch.full((len(x0),), TURBO_TIMESTEPS[0], device=x0.device)
        output = model(x_t, t, **prompt.unet_inputs()).sample.float()
        columns = {
            "student": self.student.predict_x0(x_t, prompt, t),
            "epsilon": self.schedule.predict_x0(x_t, output, t),
        }
        return {name: backbone.decode(latent) for name, latent in columns.items()}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means
