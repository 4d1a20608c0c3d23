"""ChordEdit (Lu et al. 2026): training-free edits in one long step, along a field smoothed between two times."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, full, networks_of
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.text import Prompt, concatenate


@dataclass(frozen=True)
class ChordState:
    """Latents [B, C, h, w] of the images, the keys of their noise and their prompts."""

    latent: Tensor
    keys: tuple[int, ...]
    prompt: Prompt


class ChordEdit:
    """One step along the chord between what the generator sees of both prompts at t and at the cleaner t - d.

    With one noise for all and R(t) the target's estimate of x0 less the source's, both from the noised image at t (the
    paper's observed field; the official code writes it so):

        x = x0 + lambda (t R(t - d) + d R(t)) / (t + d)

    and then, as the paper's proximal refinement, the estimate of x0 with the target's prompt from x noised to t_c.
    Times are shares of the schedule, rounded to its timesteps. The paper counts one evaluation for the step and one for
    the refinement; each prompt at each time is a sample of the network, so here they are four and one.

    Strength is lambda, 1 in the paper. Nothing is inverted.

    Args:
        refine: whether the proximal refinement follows (22.20 dB in the paper, without it 23.89 dB).
        t, d, t_c: the constants of the official code's runner of PIE-Bench.

    Raises:
        ValueError: the backbone's times are no indices: what the two times are on a flow is not said.
    """

    strengths = (0.5, 0.75, 1.0, 1.5)
    num_steps = 1

    def __init__(
        self, backbone: Backbone, refine: bool = True, t: float = 0.90, d: float = 0.15, t_c: float = 0.30
    ) -> None:
        self.backbone = backbone
        self.networks = networks_of(backbone)
        self.refine = refine
        self.name = "chordedit" if refine else "chordedit_transport"
        self.t, self.d, self.t_c = t, d, t_c
        last = len(backbone.schedule.alphas_cumprod) - 1
        self.noisy, self.clean, self.refined = (round(last * share) for share in (t, t - d, t_c))
        self.generator = FewStepGenerator(backbone, (self.noisy, self.clean))

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"t": self.t, "d": self.d, "t_c": self.t_c if self.refine else None}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents alone."""
        latent = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        return InvertedImages(tuple(prompts), {}, ChordState(latent, image_keys(images), prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Step along the chord, with four evaluations in one pass, and refine with another."""
        state: ChordState = inversion.state
        scale = 1.0 if request.strength is None else request.strength
        target = self.backbone.encode_text(request.prompt, self.backbone.size_of(state.latent))
        noise = image_noise(state.keys, "chordedit", request.seed, state.latent)
        noisy, clean = self._fields(state, target, noise)
        x = state.latent + scale * (self.t * clean + self.d * noisy) / (self.t + self.d)
        if self.refine:
            times = full(self.refined, x)
            x = self.generator.predict_x0(self.generator.schedule.add_noise(x, noise, times), target, times)
        return decode_latents(self.backbone, x)

    def _fields(self, state: ChordState, target: Prompt, noise: Tensor) -> tuple[Tensor, Tensor]:
        """R(t) and R(t - d) [B, C, h, w]: the target's estimate of x0 less the source's."""
        times = torch.cat([full(t, noise) for t in (self.noisy, self.noisy, self.clean, self.clean)])
        x_t = self.generator.schedule.add_noise(state.latent.repeat(4, 1, 1, 1), noise.repeat(4, 1, 1, 1), times)
        prompts = concatenate([state.prompt, target] * 2)
        seen, wanted, seen_clean, wanted_clean = self.generator.predict_x0(x_t, prompts, times).chunk(4)
        return wanted - seen, wanted_clean - seen_clean
