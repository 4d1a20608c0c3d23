"""SDEdit (Meng et al. 2022) in many guided steps, with the empty prompt or with null-text inversion's."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from eval.editors.editor import EditRequest, Inversion
from eval.editors.levels import first_level, noised
from eval.editors.null_text import NullText
from eval.editors.randomness import image_keys, image_noise
from eval.editors.sampling import decode, networks_of
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching
from models.text import Prompt


@dataclass(frozen=True)
class GuidedSdeditState:
    """Latents [B, C, h, w] with the keys of their noise, and the empty prompt [B] of every step."""

    latent: Tensor
    keys: tuple[int, ...]
    nulls: tuple[Prompt, ...]


class GuidedSdedit:
    """The image's latent, noised to a level, sampled by DDIM with the target's prompt.

    Strength is the share of the steps that are sampled.

    Args:
        null_text: makes the empty prompts that the steps use (Mokady et al. 2023, section 4: SDEdit keeps more of the
            image with them).
    """

    strengths = (0.4, 0.5, 0.6, 0.8)

    def __init__(
        self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, null_text: NullText | None = None
    ) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.null_text = null_text
        self.name = "sdedit" if null_text is None else f"{null_text.name}_sdedit"
        self.networks = networks_of(backbone)

    def invert(self, images: Tensor, prompts: Sequence[str]) -> Inversion:
        """The latents, and null-text inversion's prompts where they are wanted."""
        if self.null_text is None:
            prompt = self.backbone.encode_text(prompts)
            nulls = (matching(self.backbone.encode_text([""]), prompt),) * len(self.ddim)
        else:
            nulls = self.null_text.invert(images, prompts).state.nulls
        state = GuidedSdeditState(self.backbone.encode_image(images), image_keys(images), nulls)
        return Inversion(tuple(prompts), {}, state)

    def edit(self, inversion: Inversion, request: EditRequest) -> Tensor:
        """From the level that `strength` says, a half of the steps by default; 0 leaves the image as it is."""
        strength = 0.5 if request.strength is None else request.strength
        first = first_level(self.ddim, strength)
        state: GuidedSdeditState = inversion.state
        target = self.backbone.encode_text(request.prompt)

        def noise(x: Tensor, step: int) -> Tensor:
            t = self.ddim.timesteps[step]
            return guided_noise(self.backbone, x, t, target, state.nulls[step], self.guidance)

        start = noised(self.ddim, state.latent, image_noise(state.keys, "sdedit", request.seed, state.latent), first)
        return decode(self.backbone, self.ddim.denoise(start, noise, first)[-1])
