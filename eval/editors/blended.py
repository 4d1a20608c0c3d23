"""Blended Latent Diffusion (Avrahami et al. 2023): sampling inside a mask, the noised image outside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.guided import first_level, noised
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching


@dataclass(frozen=True)
class BlendedState:
    """Latents [B, C, h, w] of the images and the keys of their noise."""

    latent: Tensor
    keys: tuple[int, ...]


class BlendedLatentDiffusion:
    """Algorithm 1 of the paper, without its later fitting of the decoder to the background.

    After every step what is outside the mask becomes the image's latent with fresh noise of the level that the step has
    reached. Strength is the share of the steps that are sampled (the official code's default is three quarters).
    """

    name = "blended"
    strengths = (0.5, 0.75, 0.9, 1.0)
    strength_is_share = True

    def __init__(self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.ddim.timesteps, "guidance": self.guidance}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents alone."""
        return InvertedImages(tuple(prompts), {}, BlendedState(self.backbone.encode_image(images), image_keys(images)))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Raises ValueError if the request has no mask."""
        state: BlendedState = inversion.state
        strength = 0.75 if request.strength is None else request.strength
        first = first_level(self.ddim, strength)
        inside = latent_mask(required_mask(request, self.name).to(state.latent.device), state.latent)
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(state.latent))
        null = matching(self.backbone.encode_text([""]), prompt)

        def source(level: int) -> Tensor:
            noise = image_noise(state.keys, f"blended {level}", request.seed, state.latent)
            return noised(self.ddim, state.latent, noise, level)

        x = source(first)
        for step in range(first, len(self.ddim)):
            noise = guided_noise(self.backbone, x, self.ddim.timesteps[step], prompt, null, self.guidance)
            x = self.ddim.move(x, noise, step, step + 1)
            x = inside * x + (1 - inside) * source(step + 1)
        return decode_latents(self.backbone, x)


def required_mask(request: EditRequest, name: str) -> Tensor:
    """The mask [B, 1, H, W] of a request to the editor `name`, float32, 1 where the picture may change.

    Raises ValueError if the request has none.
    """
    if request.mask is None:
        raise ValueError(f"{name} edits inside a mask only; give EditRequest.mask, [B, 1, H, W] with 1 inside the edit")
    return request.mask.float()


def latent_mask(mask: Tensor, like: Tensor) -> Tensor:
    """`mask` [B, 1, H, W] on latents `like` [B, C, h, w]: 1 where the mask covers at least a half of the place."""
    return (F.interpolate(mask, like.shape[-2:], mode="area") >= 0.5).to(like)
