"""The other TurboEdit (Deutch et al. 2024): edit-friendly DDPM noise with shifted timesteps, and pseudo-guidance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.editors.ddpm import ddpm_posterior
from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import CLEAN, decode_latents, downwards, full, networks_of, size_ratio
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.text import Prompt, concatenate


@dataclass(frozen=True)
class ShiftedSteps:
    """Timesteps of the generator, and the cleaner ones to which the image is noised for them; 0 is the image itself.

    Raises ValueError if there are not equally many.
    """

    timesteps: tuple[int, ...]
    noised: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.noised):
            raise ValueError(f"{len(self.timesteps)} timesteps but {len(self.noised)} noised ones; give one for each")


FOUR_STEPS = ShiftedSteps((799, 599, 399, 199), (599, 399, 199, 0))
"""The official code's setting: the trailing five timesteps without the first."""


@dataclass(frozen=True)
class ShiftedState:
    """Latents [B, C, h, w] by step, the last two being the image's own, and the source's prompt."""

    latents: tuple[Tensor, ...]
    prompt: Prompt


class ShiftedDdpm:
    """Noised images x_t of the source, whose statistics at the generator are those of a later timestep.

    Every step asks the generator for the source's prompt at x_t, and for both prompts at the edit's x'_t:

        x'_s = g x_s + (mean(x'_t, source) - g mean(x_t, source)) + w (mean(x'_t, target) - mean(x'_t, source))

    The noise x_s - mean(x_t, source) of the last step is clipped to a norm, by the factor g; elsewhere g is 1.
    Inversion and editing are fused as in the official code: nothing is computed before the target is known. Strength
    is w.

    Args:
        steps: the timesteps; the official code has another setting of three, (799, 499, 199) noised to (599, 299, 0).
        max_norm: norm of the last step's noise in latents of SDXL-Turbo's size; others scale it by the root of theirs.
        seed: seed of the noises.

    Raises:
        ValueError: the generator's timesteps are no indices.
    """

    name = "turboedit_deutch"
    strengths = (0.5, 1.0, 1.5, 2.0)

    def __init__(
        self, backbone: Backbone, steps: ShiftedSteps = FOUR_STEPS, max_norm: float = 15.5, seed: int = 0
    ) -> None:
        if backbone.schedule.kind != "variance_preserving":
            raise ValueError(
                f"TurboEdit (Deutch et al.) shifts indices of SDXL-Turbo's schedule; this generator's is "
                f"{backbone.schedule.kind.replace('_', ' ')}"
            )
        self.backbone = backbone
        self.generator = FewStepGenerator(backbone, steps.timesteps)
        self.networks = networks_of(backbone)
        self.steps = steps
        self.num_steps = len(steps.timesteps)
        self.max_norm = max_norm
        self.seed = seed

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"steps": asdict(self.steps), "max_norm": self.max_norm, "seed": self.seed}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The image noised for each step; no evaluation."""
        x0, keys = self.backbone.encode_image(images), image_keys(images)
        latents = [
            self.generator.schedule.add_noise(x0, image_noise(keys, f"shifted {t}", self.seed, x0), full(t, x0))
            if t > 0
            else x0
            for t in self.steps.noised
        ]
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(x0))
        return InvertedImages(tuple(prompts), {}, ShiftedState((*latents, x0), prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sample all steps, three evaluations each; a strength of 0 gives the source back, up to the clipped noise."""
        state: ShiftedState = inversion.state
        weight = 1.5 if request.strength is None else request.strength
        x = state.latents[0]
        wanted = self.backbone.encode_text(request.prompt, self.backbone.size_of(x))
        prompts = concatenate([state.prompt, state.prompt, wanted])
        for i, (t, s) in enumerate(downwards(self.steps.timesteps)):
            means = self._mean(torch.cat([state.latents[i], x, x]), prompts, t, s)
            source, edited, target = means.chunk(3)
            noise = self._clipped(state.latents[i + 1] - source, s)
            x = edited + noise + weight * (target - edited)
        return decode_latents(self.backbone, x)

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The end of all steps with the source's prompt: all but the last are exact."""
        state: ShiftedState = inversion.state
        mean = self._mean(state.latents[-2], state.prompt, self.steps.timesteps[-1], CLEAN)
        return (mean + self._clipped(state.latents[-1] - mean, CLEAN),)

    def _mean(self, x: Tensor, prompt: Prompt, t: float, s: float) -> Tensor:
        """Mean of the DDPM step from t to s."""
        x0 = self.generator.predict_x0(x, prompt, full(t, x))
        return ddpm_posterior(self.generator.schedule, x, x0, t, s)[0]

    def _clipped(self, noise: Tensor, s: float) -> Tensor:
        """The noise [B, C, h, w] of a step to s, times g."""
        if s != CLEAN:
            return noise
        limit = self.max_norm * size_ratio(noise) ** 0.5
        norm = noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return noise * (limit / norm.clamp_min(1e-12)).clamp_max(1)
