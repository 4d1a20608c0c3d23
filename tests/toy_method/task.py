"""The noise in a latent, predicted by a Stable Diffusion whose last convolution alone is trained."""

import torch
from torch import Tensor, nn

from data.shards.dataset import ShardDataset
from data.shards.origins import check_latents
from models.backbone import Backbone
from tests.toy_method.config import ToyConfig
from train.rng import StepRandom
from train.task import Batch, StepLoss, Task


class ToyTask:
    """Noise prediction at one random timestep a sample."""

    fields: tuple[str, ...] = ("latent", "caption")
    groups: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        backbone.unet.conv_out.requires_grad_(True)
        self.trainable: nn.Module = backbone.unet

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Mean squared error of the noise."""
        x0: Tensor = batch["latent"]
        t = rng.integers("timestep", len(self.backbone.schedule.alphas_cumprod)).to(x0.device)
        noise = rng.normal("noise", x0.shape[1:])
        prompt = self.backbone.encode_text(batch["caption"])
        output = model(self.backbone.schedule.add_noise(x0, noise, t), t, **prompt.unet_inputs()).sample
        return StepLoss({"mse": (output - noise).square().mean()})

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """No pictures."""
        return {}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """The means."""
        return means


def load(config: ToyConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    """The task on `device` and its data."""
    task = ToyTask(Backbone.load(config.denoiser.path, device=device))
    dataset = ShardDataset(config.data.shards, task.fields)
    check_latents(dataset, task.backbone)
    return task, dataset
