"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024) in the generator's few steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, downwards, full, implied_noise, level, networks_of, target_prompt
from eval.editors.randomness import image_keys, image_noise
from models.generator import FewStepGenerator
from models.schedule import NoiseSchedule
from models.text import Prompt


@dataclass(frozen=True)
class DdpmState:
    """The noisiest latent, the noise of each step but the last, what the last misses (or None), the source's prompt."""

    latent: Tensor
    noises: tuple[Tensor, ...]
    residual: Tensor | None
    prompt: Prompt


def ddpm_posterior(schedule: NoiseSchedule, x_t: Tensor, x0: Tensor, t: float, s: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the step from t to the cleaner s (Song et al. 2021, eq. 12 and 16 with eta 1).

    sigma^2 = (b_s / b_t)^2 (b_t^2 - (a_t / a_s)^2 b_s^2), which is (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s)
    mean = a_s x0 + sqrt(b_s^2 - sigma^2) eps
    """
    (a_t, b_t), (a_s, b_s) = level(schedule, t), level(schedule, s)
    variance = (b_s / b_t) ** 2 * (b_t**2 - (a_t / a_s) ** 2 * b_s**2)
    noise = implied_noise(schedule, x_t, x0, t)
    return a_s * x0 + max(b_s**2 - variance, 0.0) ** 0.5 * noise, variance**0.5


class Ddpm:
    """Noises of a DDPM sampler that passes through independently noised versions of the image.

    The last step's noise is zero, as in the official code, so its prediction is not the image. With `residual` the
    difference is kept and added back, which makes the reconstruction exact.

    Args:
        residual: keep what the last step misses (one more evaluation to invert).
        seed: seed of the independent noises.
    """

    strengths = (0.7, 1.0, 1.3, 1.7)

    def __init__(self, generator: FewStepGenerator, residual: bool = False, seed: int = 0) -> None:
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)
        self.residual = residual
        self.seed = seed
        self.name = "ddpm_residual" if residual else "ddpm"

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.generator.timesteps, "residual": self.residual, "seed": self.seed}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """z_t = (x_s - mean_t(x_t)) / sigma_t for each step t -> s but the last."""
        x0 = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(x0))
        first, last = self.generator.timesteps[0], self.generator.timesteps[-1]
        keys = image_keys(images)
        latent = x_t = self._noised(x0, keys, first)
        noises = []
        for t, s in downwards(self.generator.timesteps)[:-1]:
            mean, sigma = self._posterior(x_t, prompt, t, s)
            z = (self._noised(x0, keys, s) - mean) / sigma
            x_t = mean + sigma * z  # as the edit will compute it, so that rounding errors do not add up
            noises.append(z)
        residual = x0 - self.generator.predict_x0(x_t, prompt, full(last, x_t)) if self.residual else None
        named = dict(zip(self.generator.timesteps, noises, strict=False))
        return InvertedImages(tuple(prompts), named, DdpmState(latent, tuple(noises), residual, prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The same noises with the target's prompt; strength interpolates prompt embeddings."""
        prompt = target_prompt(self.backbone, inversion.state.prompt, request.prompt, request.strength)
        return decode_latents(self.backbone, self._denoise(inversion.state, prompt)[-1])

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The same noises with the source's prompt; the residual counts at the last step only."""
        return self._denoise(inversion.state, inversion.state.prompt)

    def _noised(self, x0: Tensor, keys: Sequence[int], t: float) -> Tensor:
        """x_t = a x0 + b eps_t, eps_t independent for each t."""
        return self.generator.schedule.add_noise(x0, image_noise(keys, f"ddpm {t}", self.seed, x0), full(t, x0))

    def _posterior(self, x_t: Tensor, prompt: Prompt, t: float, s: float) -> tuple[Tensor, float]:
        x0 = self.generator.predict_x0(x_t, prompt, full(t, x_t))
        return ddpm_posterior(self.generator.schedule, x_t, x0, t, s)

    def _denoise(self, state: DdpmState, prompt: Prompt) -> tuple[Tensor, ...]:
        """Estimate of x0 after each step."""
        x_t, estimates = state.latent, []
        for (t, s), z in zip(downwards(self.generator.timesteps)[:-1], state.noises, strict=True):
            x0 = self.generator.predict_x0(x_t, prompt, full(t, x_t))
            mean, sigma = ddpm_posterior(self.generator.schedule, x_t, x0, t, s)
            x_t = mean + sigma * z
            estimates.append(x0)
        x0 = self.generator.predict_x0(x_t, prompt, full(self.generator.timesteps[-1], x_t))
        estimates.append(x0 if state.residual is None else x0 + state.residual)
        return tuple(estimates)
