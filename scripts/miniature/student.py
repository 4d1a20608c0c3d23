"""The SDXL-Turbo-like student: it learns to predict what the guided teacher predicts, then to do so in a few steps.

The second part is distribution matching: the student's picture is re-noised, and moved from where a model of the
student's own pictures would denoise it towards where the guided teacher would. Four steps are trained as they are used:
on the student's own estimates, re-noised with fresh noise.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.backbone import Backbone
from models.options import TURBO_TIMESTEPS
from models.schedule import NoiseSchedule
from models.shapes import SizeConditioning
from models.text import DualClipText, Prompt
from scripts.miniature.parts import SIDE
from scripts.miniature.teacher import draw_timesteps
from train.rng import StepRandom
from train.task import Batch, StepLoss


@dataclass(frozen=True)
class GuidedTeacher:
    """The frozen teacher with classifier-free guidance."""

    backbone: Backbone
    guidance: float

    @torch.no_grad()
    def predict_x0(self, x_t: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """Guided estimate of x0 [B, 4, h, w]."""
        empty = self.backbone.encode_text([""]).embeds.expand_as(prompt.embeds)
        both = Prompt(torch.cat([prompt.embeds, empty]))
        output, plain = self.backbone.predict(torch.cat([x_t, x_t]), both, torch.cat([t, t])).chunk(2)
        return self.backbone.schedule.predict_x0(x_t, plain + self.guidance * (output - plain), t)


class _StudentTask:
    """The part that both tasks share: prompts and the student's estimate of x0."""

    fields: tuple[str, ...] = ("latent", "caption")
    groups: tuple[str, ...] = ()

    def __init__(self, teacher: GuidedTeacher, text: DualClipText) -> None:
        self.teacher = teacher
        self.text = text
        self.schedule: NoiseSchedule = teacher.backbone.schedule

    @torch.no_grad()
    def prompts(self, captions: list[str]) -> tuple[Prompt, Prompt]:
        """(the student's, the teacher's) prompt."""
        return self.text(captions, SizeConditioning.uncropped(SIDE, SIDE)), self.teacher.backbone.encode_text(captions)

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Four steps from noise beside one, and the VAE's round trip."""
        x0 = batch["latent"]
        prompt, _ = self.prompts(batch["caption"])
        backbone = self.teacher.backbone
        estimates = self.rollout(_student_of(model), prompt, rng, len(TURBO_TIMESTEPS), x0.shape[1:])
        columns = {"VAE round trip": x0, "1 step": estimates[0], "4 steps": estimates[-1]}
        return {name: backbone.decode(latent) for name, latent in columns.items()}

    @torch.no_grad()
    def rollout(
        self, student: nn.Module, prompt: Prompt, rng: StepRandom, num_steps: int, shape: torch.Size
    ) -> list[Tensor]:
        """The student's estimates of x0 after each of the first `num_steps` timesteps, from pure noise."""
        x0 = torch.zeros(len(prompt), *shape, device=prompt.embeds.device)
        estimates = []
        for number, step in enumerate(TURBO_TIMESTEPS[:num_steps]):
            t = torch.full((len(x0),), step, device=x0.device)
            x0 = self.estimate(student, self.schedule.add_noise(x0, rng.normal(f"step {number}", shape), t), prompt, t)
            estimates.append(x0)
        return estimates

    def estimate(self, student: nn.Module, x_t: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The student's x0."""
        return self.schedule.predict_x0(x_t, student(x_t, t, **prompt.unet_inputs()).sample.float(), t)

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means


def _student_of(model: nn.Module) -> nn.Module:
    return model.networks["student"] if isinstance(model, StudentAndFake) else model


class AlignTask(_StudentTask):
    """The student's v becomes the guided teacher's v, at noised pictures of the data."""

    def __init__(self, student: UNet2DConditionModel, teacher: GuidedTeacher, text: DualClipText) -> None:
        super().__init__(teacher, text)
        self.trainable: nn.Module = student

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Mean squared error of v."""
        x0 = batch["latent"]
        prompt, teachers = self.prompts(batch["caption"])
        t = draw_timesteps(rng, x0.device)
        noise = rng.normal("noise", x0.shape[1:])
        x_t = self.schedule.add_noise(x0, noise, t)
        guided = self.teacher.predict_x0(x_t, teachers, t)
        a, b = self.schedule.coefficients(t, x0)
        target = (a * x_t - guided) / b  # the v whose x0 is the guided one
        return StepLoss({"mse": F.mse_loss(model(x_t, t, **prompt.unet_inputs()).sample.float(), target)})


class StudentAndFake(nn.Module):
    """The student and a diffusion model of the student's pictures, so that one optimizer and one wrapper serve both."""

    def __init__(self, student: UNet2DConditionModel, fake: UNet2DConditionModel) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"student": student, "fake": fake})

    def forward(self, which: str, x_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Output [B, 4, h, w] of the network `which` at x_t [B, 4, h, w], t [B]."""
        return self.networks[which](x_t, t, **prompt.unet_inputs()).sample.float()


class DistilTask(_StudentTask):
    """Distribution matching in four steps.

    Args:
        data_share: Share of student inputs that are noised pictures of the data and not its own estimates.
        data_weight: Weight of the plain x0 error on those, at the two cleaner timesteps.
    """

    def __init__(
        self,
        model: StudentAndFake,
        teacher: GuidedTeacher,
        text: DualClipText,
        data_share: float = 0.5,
        data_weight: float = 1.0,
    ) -> None:
        super().__init__(teacher, text)
        self.trainable: nn.Module = model
        self.pair = model
        self.data_share = data_share
        self.data_weight = data_weight

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """The student's distribution matching, the fake's diffusion loss, and the plain error on noised pictures."""
        x0 = batch["latent"]
        prompt, teachers = self.prompts(batch["caption"])
        index = rng.integers("timestep", len(TURBO_TIMESTEPS))
        from_data = rng.uniform("from data") < self.data_share
        start = self._start(x0, prompt, index, from_data, rng)
        t = torch.tensor(TURBO_TIMESTEPS)[index].to(x0.device)
        x_t = self.schedule.add_noise(start, rng.normal("renoise", x0.shape[1:]), t)
        generated = self.schedule.predict_x0(x_t, model("student", x_t, t, prompt), t)

        direction = self._direction(generated.detach(), teachers, rng)
        matching = 0.5 * F.mse_loss(generated, (generated - direction).detach())

        t_fake = rng.integers("fake timestep", 1000).to(x0.device)
        noise = rng.normal("fake noise", x0.shape[1:])
        sample = generated.detach()
        output = model("fake", self.schedule.add_noise(sample, noise, t_fake), t_fake, teachers)
        fake = F.mse_loss(output, self.schedule.training_target(sample, noise, t_fake))

        clean = (from_data & (index >= 2)).float().to(x0.device)
        error = (generated - x0).square().flatten(1).mean(1)
        plain = self.data_weight * (clean * error).mean()
        return StepLoss({"matching": matching, "fake": fake, "plain": plain})

    @torch.no_grad()
    def _start(self, x0: Tensor, prompt: Prompt, index: Tensor, from_data: Tensor, rng: StepRandom) -> Tensor:
        """The clean latent that is noised to the sample's timestep: zeros, the student's estimate, or the data's."""
        student = self.pair.networks["student"]
        start = torch.zeros_like(x0)
        estimates = self.rollout(student, prompt, rng, len(TURBO_TIMESTEPS) - 1, x0.shape[1:])
        for number, estimate in enumerate(estimates, start=1):
            start = torch.where((index == number).to(x0.device)[:, None, None, None], estimate, start)
        data = (from_data & (index > 0)).to(x0.device)[:, None, None, None]
        return torch.where(data, x0, start)

    @torch.no_grad()
    def _direction(self, generated: Tensor, teachers: Prompt, rng: StepRandom) -> Tensor:
        """The fake's denoising of the student's picture minus the guided teacher's, over its distance."""
        t = (20 + rng.integers("matching timestep", 960)).to(generated.device)
        x_t = self.schedule.add_noise(generated, rng.normal("matching noise", generated.shape[1:]), t)
        real = self.teacher.predict_x0(x_t, teachers, t)
        fake_output = self.pair("fake", x_t, t, teachers)
        fake = self.schedule.predict_x0(x_t, fake_output, t)
        scale = (generated - real).abs().flatten(1).mean(1).clamp_min(1e-3)[:, None, None, None]
        return (fake - real) / scale
