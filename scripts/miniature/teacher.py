"""The Stable-Diffusion-like teacher: a UNet and its text encoder trained together, captions dropped for guidance."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from models.options import TURBO_TIMESTEPS
from models.schedule import NoiseSchedule
from models.text import tokenize
from scripts.miniature.parts import teacher_scheduler
from train.rng import StepRandom
from train.task import Batch, StepLoss

DROPPED_CAPTIONS = 0.1


class CaptionedUnet(nn.Module):
    """Token ids in, the UNet's output out; both networks train."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Output [B, 4, h, w] of the UNet at x_t [B, 4, h, w], t [B], for token ids [B, L]."""
        return self.unet(x_t, t, self.text_encoder(ids).last_hidden_state).sample.float()


def draw_timesteps(rng: StepRandom, device: Any) -> Tensor:
    """[b]: half of them one of the few-step timesteps, half uniform over all."""
    turbo = torch.tensor(TURBO_TIMESTEPS)[rng.integers("turbo", len(TURBO_TIMESTEPS))]
    t = torch.where(rng.uniform("which") < 0.5, turbo, rng.integers("any", 1000))
    return t.to(device, non_blocking=True)


class TeacherTask:
    """Diffusion loss on latents: mean squared error of v."""

    fields: tuple[str, ...] = ("latent", "caption")
    groups: tuple[str, ...] = ()

    def __init__(self, model: CaptionedUnet, tokenizer: CLIPTokenizer) -> None:
        self.trainable: nn.Module = model
        self.tokenizer = tokenizer
        self.schedule = NoiseSchedule.from_scheduler(teacher_scheduler())

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """E ||v - v_theta(x_t, t, c)||^2, one caption in ten empty."""
        x0 = batch["latent"]
        dropped = (rng.uniform("drop") < DROPPED_CAPTIONS).tolist()
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        t = draw_timesteps(rng, x0.device)
        noise = rng.normal("noise", x0.shape[1:])
        ids = tokenize(self.tokenizer, captions, x0.device)
        output = model(self.schedule.add_noise(x0, noise, t), t, ids)
        return StepLoss({"mse": F.mse_loss(output, self.schedule.training_target(x0, noise, t))})

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Nothing to see without the VAE."""
        return {}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means
