"""DDIM inversion in the generator's few steps: deterministic, each way one evaluation a step, no guidance."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, downwards, full, implied_noise, level, networks_of, target_prompt
from models.ddim import predict_noise
from models.generator import FewStepGenerator
from models.schedule import NoiseSchedule
from models.text import Prompt


@dataclass(frozen=True)
class DdimState:
    """The noisiest latent [B, C, h, w] and the source's prompt."""

    latent: Tensor
    prompt: Prompt


def ddim_move(schedule: NoiseSchedule, x: Tensor, noise: Tensor, start: float, end: float) -> Tensor:
    """x_end = a_end x0 + b_end eps with x0 = (x_start - b_start eps) / a_start, of any schedule.

    Song et al. 2021, eq. 12 with sigma 0; the same line in both directions: inversion moves to a noisier `end`.
    """
    (a, b), (a_end, b_end) = level(schedule, start), level(schedule, end)
    return a_end * (x - b * noise) / a + b_end * noise


class DdimInversion:
    """Deterministic DDIM on the few-step generator.

    On the way up the network gets the timestep that it is going to, with the latent that is less noisy: eps(x_s, t, c),
    t > s, as the public inversion codes do. eps is the noise that the generator predicts there, whatever its prediction
    type.
    """

    name = "ddim"
    strengths = (0.7, 1.0, 1.3, 1.7)

    def __init__(self, generator: FewStepGenerator) -> None:
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.generator.timesteps}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """Inversion from the image's latent up to the noisiest timestep."""
        x = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(x))
        schedule = self.generator.schedule
        for end, start in reversed(downwards(self.generator.timesteps)):
            t = full(end, x)
            noise = predict_noise(self.backbone, x, t, prompt)
            x = ddim_move(schedule, x, noise, start, end)
        return InvertedImages(tuple(prompts), {self.generator.timesteps[0]: x}, DdimState(x, prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Down again with the target's prompt; strength interpolates prompt embeddings."""
        prompt = target_prompt(self.backbone, inversion.state.prompt, request.prompt, request.strength)
        return decode_latents(self.backbone, self._denoise(inversion.state.latent, prompt)[-1])

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """Down again with the source's prompt."""
        return self._denoise(inversion.state.latent, inversion.state.prompt)

    def _denoise(self, x: Tensor, prompt: Prompt) -> tuple[Tensor, ...]:
        """Estimate of x0 after each step; the last is the result, as its step ends without noise."""
        estimates, schedule = [], self.generator.schedule
        for start, end in downwards(self.generator.timesteps):
            x0 = self.generator.predict_x0(x, prompt, full(start, x))
            a, b = level(schedule, end)  # not by `ddim_move`, as pure noise says nothing of x0
            x = a * x0 + b * implied_noise(schedule, x, x0, start)
            estimates.append(x0)
        return tuple(estimates)
