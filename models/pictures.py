"""The ends of an exported pipeline: pictures and prompts as people give them, pictures as they get them."""

from collections.abc import Sequence

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from .backbone import Backbone

Images = Image.Image | Sequence[Image.Image] | Tensor


def to_tensor(image: Images, backbone: Backbone) -> Tensor:
    """`image` as [B, 3, S, S] in [-1, 1] where the VAE is, S the backbone's side in pixels.

    Pictures are resized and cropped at the centre; a tensor is taken as it is.
    """
    if isinstance(image, Tensor):
        return image.to(backbone.vae.device)
    size = backbone.image_size
    pictures = [image] if isinstance(image, Image.Image) else list(image)
    processor = VaeImageProcessor(do_convert_rgb=True)
    return processor.preprocess(pictures, height=size, width=size, resize_mode="crop").to(backbone.vae.device)


@torch.no_grad()
def to_pictures(latent: Tensor, backbone: Backbone) -> list[Image.Image]:
    """Pictures of scaled latents [B, 4, h, w]."""
    return VaeImageProcessor().postprocess(backbone.decode(latent), output_type="pil")


def one_for_each(prompt: str | Sequence[str], count: int) -> list[str]:
    """`count` prompts from one for all or one for each. Raises ValueError for another number."""
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise ValueError(f"{len(prompts)} prompts for {count} images; give one prompt, or one for each image")
    return prompts
