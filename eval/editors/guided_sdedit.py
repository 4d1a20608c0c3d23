"""SDEdit (Meng et al. 2022) in many guided steps, alone or with what another inversion has found for every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings, settings_of
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.guided import GuidedEditor, first_level, noised
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.ddim import Ddim, matching
from models.prompt_to_prompt import Trajectory, reconstruct


@dataclass(frozen=True)
class GuidedSdeditState:
    """Latents [B, C, h, w], the keys of their noise, and the trajectory whose empty prompts and values steps use."""

    latent: Tensor
    keys: tuple[int, ...]
    trajectory: Trajectory


class GuidedSdedit:
    """The image's latent, noised to a level, sampled by DDIM with the target's prompt.

    Strength is the share of the steps that are sampled.

    Args:
        inversion: an editor whose empty prompts (null-text inversion) or mapped values (StyleDiffusion) the steps use,
            which keeps more of the image (Mokady et al. 2023, section 4; Li et al. 2023, section 4). Mapped values go
            to the first tau_v of the sampled steps, as to the target of Prompt-to-Prompt; where SDEdit begins late, a
            share of all steps would leave none.
    """

    strengths = (0.4, 0.5, 0.6, 0.8)
    strength_is_share = True

    def __init__(
        self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, inversion: GuidedEditor | None = None
    ) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.inversion = inversion
        self.name = "sdedit" if inversion is None else f"{inversion.name}_sdedit"
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "timesteps": self.ddim.timesteps,
            "guidance": self.guidance,
            "inversion": None if self.inversion is None else settings_of(self.inversion),
            **({} if self.inversion is None else {"values": self.inversion.sharing.values}),
        }

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents, and the other inversion's trajectory where one is wanted."""
        if self.inversion is not None:
            return self.invert_on(images, prompts, self.inversion.invert(images, prompts))
        latent = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        null = matching(self.backbone.encode_text([""]), prompt)
        trajectory = Trajectory(latent, prompt, (null,) * len(self.ddim))
        return InvertedImages(tuple(prompts), {}, GuidedSdeditState(latent, image_keys(images), trajectory))

    def invert_on(self, images: Tensor, prompts: Sequence[str], base: InvertedImages) -> InvertedImages:
        """The latents, and the trajectory of the other inversion, `base`."""
        latent = self.backbone.encode_image(images)
        return InvertedImages(tuple(prompts), {}, GuidedSdeditState(latent, image_keys(images), base.state))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sample from the level that `strength` says, a half of the steps by default; 0 leaves the image as it is."""
        strength = 0.5 if request.strength is None else request.strength
        first = first_level(self.ddim, strength)
        state: GuidedSdeditState = inversion.state
        start = noised(self.ddim, state.latent, image_noise(state.keys, "sdedit", request.seed, state.latent), first)
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(start))
        values = self._values(state.trajectory, first)
        trajectory = replace(state.trajectory, start=start, prompt=prompt, pivots=None, values=values)
        return decode_latents(
            self.backbone, reconstruct(self.backbone, self.ddim, trajectory, self.guidance, first)[-1]
        )

    def _values(self, trajectory: Trajectory, first: int) -> tuple[Callable[[Tensor], Tensor], ...] | None:
        """Mapped values of the trajectory for tau_v of the steps from `first` on, the prompt's own for the rest."""
        if trajectory.values is None or self.inversion is None:
            return None
        until = first + ceil(self.inversion.sharing.values * (len(self.ddim) - first) - 1e-6)
        return tuple(mapped if step < until else _own_values for step, mapped in enumerate(trajectory.values))


def _own_values(embeds: Tensor) -> Tensor:
    """The prompt's own embeddings [B, L, D]."""
    return embeds
