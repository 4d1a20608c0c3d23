"""Inpainting by diffusers' own pipeline around the backbone's parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from torch import Tensor

from eval.editors.blended import required_mask
from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.randomness import image_keys, image_seed
from models.backbone import Backbone
from models.ddim import matching
from models.schedule import NoiseSchedule
from models.text import ClipText


@dataclass(frozen=True)
class InpaintState:
    """The images [B, 3, H, W] and the keys of their noise."""

    images: Tensor
    keys: tuple[int, ...]


class Inpaint:
    """StableDiffusionInpaintPipeline with DDIM (leading timesteps, steps_offset 1).

    With a UNet of 4 channels, as a text-to-image model has, the pipeline puts the noised image back outside the mask
    after every step. Strength is the pipeline's: the share of the steps that are sampled; at 1 it starts at pure noise.

    Raises:
        ValueError: the backbone is an SDXL, whose pipeline is another, or its parts have two dtypes.
    """

    name = "inpaint"
    strengths = (0.5, 0.75, 0.9, 1.0)

    def __init__(self, backbone: Backbone, num_steps: int, guidance: float = 7.5) -> None:
        if not isinstance(backbone.text, ClipText):
            raise ValueError("inpainting knows Stable Diffusion with one text encoder; this backbone has two (SDXL)")
        if backbone.unet.dtype != backbone.vae.dtype:
            dtypes = f"{backbone.unet.dtype} and {backbone.vae.dtype}"
            raise ValueError(f"diffusers' pipeline needs UNet and VAE in one dtype, here are {dtypes}; use float32")
        self.backbone = backbone
        self.num_steps = num_steps
        self.guidance = guidance
        self.networks = networks_of(backbone)
        self.pipeline = StableDiffusionInpaintPipeline(
            vae=backbone.vae,
            text_encoder=backbone.text.encoders[0],
            tokenizer=backbone.text.tokenizers[0],
            unet=backbone.unet,
            scheduler=stock_ddim(backbone.schedule),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"num_steps": self.num_steps, "guidance": self.guidance}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The images alone: the pipeline encodes them."""
        return InvertedImages(tuple(prompts), {}, InpaintState(images, image_keys(images)))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Raises ValueError if the request has no mask."""
        images, keys = inversion.state.images, inversion.state.keys
        mask = required_mask(request, self.name)
        prompt = self.backbone.encode_text(request.prompt)
        latents = self.pipeline(
            prompt_embeds=prompt.embeds,
            negative_prompt_embeds=matching(self.backbone.encode_text([""]), prompt).embeds,
            image=(images + 1) / 2,
            mask_image=mask,
            height=images.shape[-2],
            width=images.shape[-1],
            strength=1.0 if request.strength is None else request.strength,
            num_inference_steps=self.num_steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(image_seed(key, self.name, request.seed)) for key in keys],
            output_type="latent",
        ).images
        return decode_latents(self.backbone, latents)


def stock_ddim(schedule: NoiseSchedule) -> DDIMScheduler:
    """Diffusers' DDIM on a schedule, with Stable Diffusion's conventions."""
    abar = schedule.alphas_cumprod
    betas = 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
    return DDIMScheduler(
        num_train_timesteps=len(abar),
        trained_betas=betas.tolist(),
        prediction_type=schedule.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
