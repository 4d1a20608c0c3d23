"""A LoRA over the teacher, as LCM-LoRA, Lightning and Hyper-SD are over theirs: with it four steps without guidance do.

It begins as what the student's weights differ by, and learns the student's x0, where inversion and sampling ask for it.
"""

from pathlib import Path

import peft
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from data.jobs.files import open_as_usual
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.options import TURBO_TIMESTEPS
from models.text import Prompt
from train.rng import StepRandom
from train.task import Batch, StepLoss

RANK = 16
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv", "conv_in", "conv_out"),
)
"""Attention, feed-forward layers and convolutions."""


def add_student_lora(unet: UNet2DConditionModel, student: UNet2DConditionModel, rank: int = RANK) -> None:
    """Lay adapters over the teacher's frozen UNet, in place, which begin as the student's changes, cut to their rank.

    The student was made of the teacher. What it has beside the teacher's weights, a second text encoder's keys and
    values and a pooled embedding, stays out.
    """
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    for name, layer in unet.named_modules():
        if isinstance(layer, BaseTunerLayer):
            weight = student.get_submodule(name).weight.detach()
            own = layer.get_base_layer().weight
            change = (weight[:, : own.shape[1]] - own).flatten(1)
            left, sizes, right = (part.float() for part in torch.linalg.svd(change, full_matrices=False))
            kept = min(rank, len(sizes))
            down, up = (part[layer.active_adapters[0]].weight for part in (layer.lora_A, layer.lora_B))
            root = sizes[:kept].sqrt()
            down.data[:kept] = (root[:, None] * right[:kept]).view(kept, *down.shape[1:])
            up.data[:, :kept] = (left[:, :kept] * root).view(len(left), kept, *up.shape[2:])


def save_student_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the adapters in float16 as `pytorch_lora_weights.safetensors`, as diffusers' own loader reads them."""
    layers = {name: weight.half() for name, weight in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    open_as_usual(folder)


class LoraTask:
    """Adapters over the teacher learn the x0 that the student predicts.

    Each caption goes through the student's four steps, and what the student is given there the teacher is given too: at
    first noise, then a noised latent, which is the student's own of the step before or, for the other captions, that of
    a picture of the data.

    Args:
        teacher: The teacher with adapters, without guidance.
        student: The student.
        own_share: Share of captions whose latents are the student's own.
    """

    fields: tuple[str, ...] = ("latent", "caption")
    groups: tuple[str, ...] = ()

    def __init__(self, teacher: Backbone, student: Backbone, own_share: float = 0.6) -> None:
        self.trainable: nn.Module = teacher.network
        self.teacher = teacher
        self.student = FewStepGenerator(student)
        self.own_share = own_share

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Mean squared error of x0 at the four timesteps."""
        x0: Tensor = batch["latent"]
        prompt = self.teacher.encode_text(batch["caption"])
        own = (rng.uniform("own") < self.own_share).to(x0.device)[:, None, None, None]
        inputs, targets = self._chain(x0, batch["caption"], own, rng)
        t = torch.tensor(TURBO_TIMESTEPS, device=x0.device).repeat_interleave(len(x0))
        found = self._predict(model, torch.cat(inputs), prompt[torch.arange(len(t), device=x0.device) % len(x0)], t)
        errors = (found - torch.cat(targets)).square().flatten(1).mean(1).view(len(inputs), len(x0))
        figures = {f"x0_error_t{step}": error for step, error in zip(TURBO_TIMESTEPS, errors.detach(), strict=True)}
        return StepLoss({"mse": errors.mean()}, figures)

    @torch.no_grad()
    def _chain(
        self, x0: Tensor, captions: list[str], own: Tensor, rng: StepRandom
    ) -> tuple[list[Tensor], list[Tensor]]:
        """x_t and the student's estimate of x0 there, [B, 4, h, w] of each of its steps."""
        prompt = self.student.backbone.encode_text(captions)
        estimate, inputs, targets = torch.zeros_like(x0), [], []
        for number, timestep in enumerate(TURBO_TIMESTEPS):
            t = torch.full((len(x0),), timestep, device=x0.device)
            start = torch.where(own, estimate, x0) if number else estimate
            x_t = self.student.schedule.add_noise(start, rng.normal(f"step {number}", x0.shape[1:]), t)
            estimate = self.student.predict_x0(x_t, prompt, t)
            inputs.append(x_t)
            targets.append(estimate)
        return inputs, targets

    def _predict(self, model: nn.Module, x_t: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The teacher's x0 with the adapters."""
        return self.teacher.schedule.predict_x0(x_t, model(x_t, t, **prompt.unet_inputs()).sample.float(), t)

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """The first step from the same noise beside the student's."""
        x0: Tensor = batch["latent"]
        inputs, targets = self._chain(x0, batch["caption"], torch.ones_like(x0[:, :1, :1, :1], dtype=torch.bool), rng)
        t = torch.full((len(x0),), TURBO_TIMESTEPS[0], device=x0.device)
        found = self._predict(model, inputs[0], self.teacher.encode_text(batch["caption"]), t)
        return {name: self.teacher.decode(latent) for name, latent in {"student": targets[0], "LoRA": found}.items()}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means
