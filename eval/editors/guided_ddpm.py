"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024) in many guided steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.editors.ddpm import ddpm_posterior
from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.guided import first_level, noised
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching
from models.text import Prompt


@dataclass(frozen=True)
class GuidedDdpmState:
    """Latents [n + 1, B, C, h, w] by level, the noise sigma z [n, B, C, h, w] of each step, prompts [B]."""

    latents: Tensor
    noises: Tensor
    prompt: Prompt
    null: Prompt


class GuidedDdpm:
    """Noises of a DDPM sampler (eta 1) that passes through independently noised versions of the image.

    Strength is the share of the steps that are sampled for the target: the official script skips 36 of 100, PIE-Bench's
    runner 12 of 50. The official code sets the last step's noise to zero; here it is kept, and with it the source's
    prompt gives back the latent.

    Args:
        guidance: guidance of the target; source_guidance: guidance of the inversion.
        seed: seed of the independent noises.
        default_strength: strength of a request that has none.
    """

    name = "ddpm"
    strengths = (0.4, 0.64, 0.76, 0.9)
    strength_is_share = True

    def __init__(
        self,
        backbone: Backbone,
        ddim: Ddim,
        guidance: float = 15.0,
        source_guidance: float = 3.5,
        seed: int = 0,
        default_strength: float = 0.64,
    ) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.source_guidance = source_guidance
        self.seed = seed
        self.default_strength = default_strength
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "timesteps": self.ddim.timesteps,
            "guidance": self.guidance,
            "source_guidance": self.source_guidance,
            "seed": self.seed,
            "default_strength": self.default_strength,
        }

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """sigma_t z_t = x_s - mean_t(x_t) for each step t -> s, the last one to the latent itself."""
        x0, keys = self.backbone.encode_image(images), image_keys(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(x0))
        null = matching(self.backbone.encode_text([""]), prompt)
        latents, noises = [self._noised(x0, keys, 0)], []
        for step in range(len(self.ddim)):
            mean = self._mean(latents[-1], step, prompt, null, self.source_guidance)
            noises.append(self._noised(x0, keys, step + 1) - mean)
            latents.append(mean + noises[-1])  # as the edit will compute it, so that rounding errors do not add up
        state = GuidedDdpmState(torch.stack(latents), torch.stack(noises), prompt, null)
        return InvertedImages(tuple(prompts), {self.ddim.timesteps[0]: latents[0]}, state)

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The same noises with the target's prompt for the share of the steps that `strength` says."""
        strength = self.default_strength if request.strength is None else request.strength
        first = first_level(self.ddim, strength)
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(inversion.state.latents))
        return decode_latents(self.backbone, self._denoise(inversion.state, prompt, self.guidance, first))

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The end of all steps with the source's prompt and guidance."""
        return (self._denoise(inversion.state, inversion.state.prompt, self.source_guidance, 0),)

    def _denoise(self, state: GuidedDdpmState, prompt: Prompt, guidance: float, first: int) -> Tensor:
        x = state.latents[first]
        for step in range(first, len(self.ddim)):
            x = self._mean(x, step, prompt, state.null, guidance) + state.noises[step]
        return x

    def _mean(self, x: Tensor, step: int, prompt: Prompt, null: Prompt, guidance: float) -> Tensor:
        """Mean of the step from level `step` to the next."""
        t = self.ddim.timesteps[step]
        after = self.ddim.timesteps[step + 1] if step + 1 < len(self.ddim) else 0
        noise = guided_noise(self.backbone, x, t, prompt, null, guidance)
        a = self.ddim.abar(step)
        x0 = (x - (1 - a) ** 0.5 * noise) / a**0.5
        return ddpm_posterior(self.backbone.schedule, x, x0, t, after)[0]

    def _noised(self, x0: Tensor, keys: Sequence[int], level: int) -> Tensor:
        """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps_t, eps_t independent for each level."""
        return noised(self.ddim, x0, image_noise(keys, f"ddpm {level}", self.seed, x0), level)
