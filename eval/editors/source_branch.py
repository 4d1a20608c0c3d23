"""Editors that sample the image's own branch, without a prompt and without guidance, beside the target's guided one.

The target's branch takes what it sees of the image from the layers of the other: features, or inputs of attention.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.guided import first_level
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, matching, predict_noise
from models.text import Prompt, concatenate


@dataclass(frozen=True)
class Branches:
    """Rows of an evaluation: B of the source, then B of the target without and B with its prompt."""

    count: int

    @property
    def source(self) -> slice:
        """Rows of the source."""
        return slice(0, self.count)

    @property
    def sources(self) -> list[int]:
        """The source's row for each of `targets`."""
        return [*range(self.count)] * 2

    @property
    def targets(self) -> list[int]:
        """Both rows of each target."""
        return [*range(self.count, 3 * self.count)]


class SourceBranchEditor(ABC):
    """DDIM inversion with the empty prompt at guidance 1; sampling of both branches from its noisiest pivot.

    The methods' own codes take the empty prompt for pictures that are not generated. It makes the source's two passes
    one, so that a step evaluates three rows an image.

    Args:
        backbone: the text-to-image model.
        ddim: the steps.
        guidance: w of the target's branch.
        negative: the prompt that guidance leads away from.
        held: the source's branch is set to the pivots, as in direct inversion (Ju et al. 2024), and not sampled.
    """

    name: str
    strengths: tuple[float, ...]
    default_strength: float
    strength_is_share = True

    def __init__(
        self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, negative: str = "", held: bool = False
    ) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.negative = negative
        self.held = held
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "timesteps": self.ddim.timesteps,
            "guidance": self.guidance,
            "negative": self.negative,
            "held": self.held,
        }

    @abstractmethod
    def control(self, step: int, strength: float, rows: Branches) -> AbstractContextManager[object]:
        """Control by which the target's branch takes from the source's, in force during one evaluation of a step."""

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The pivots [n + 1, B, 4, h, w]."""
        latent = self.backbone.encode_image(images)
        pivots = ddim_pivots(self.backbone, self.ddim, latent, self._empty(latent))
        return InvertedImages(tuple(prompts), {self.ddim.timesteps[0]: pivots[0]}, pivots)

    @torch.no_grad()
    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The target's branch, decoded. Strength is a share of the steps."""
        strength = self.default_strength if request.strength is None else request.strength
        first_level(self.ddim, strength)  # refuses what is no share
        target = self.backbone.encode_text(request.prompt, self.backbone.size_of(inversion.state))
        negative = matching(self.backbone.encode_text([self.negative]), target)
        rows = Branches(len(target))
        prompts = concatenate([self._empty(inversion.state[0]), negative, target])
        source = x = inversion.state[0]
        for step, t in enumerate(self.ddim.timesteps):
            with self.control(step, strength, rows):
                noise = predict_noise(self.backbone, torch.cat([source, x, x]), t, prompts)
            own, unconditional, conditional = noise.chunk(3)
            source = inversion.state[step + 1] if self.held else self.ddim.move(source, own, step, step + 1)
            x = self.ddim.move(x, unconditional + self.guidance * (conditional - unconditional), step, step + 1)
        return decode_latents(self.backbone, x)

    @torch.no_grad()
    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The latent at the end of the source's branch."""
        pivots, null = inversion.state, self._empty(inversion.state[0])
        return (pivots[-1] if self.held else unguided(self.backbone, self.ddim, pivots[0], null),)

    def _empty(self, latent: Tensor) -> Prompt:
        """The empty prompt [B] for latents [B, C, h, w]."""
        return self.backbone.encode_text([""] * len(latent), self.backbone.size_of(latent))


def unguided(backbone: Backbone, ddim: Ddim, start: Tensor, prompt: Prompt) -> Tensor:
    """The latents [B, 4, h, w] at the end of sampling from `start` at guidance 1."""
    return ddim.denoise(start, lambda x, step: predict_noise(backbone, x, ddim.timesteps[step], prompt))[-1]
