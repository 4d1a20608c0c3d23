"""Pictures and images: 8-bit levels and values in [-1, 1], and the ends of an exported pipeline.

A picture has levels of 0 to 255 as a file has them, an image values in [-1, 1] as the networks take and give them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from .backbone import Backbone

Images = Image.Image | Sequence[Image.Image] | Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Round `images` in [-1, 1] to the levels of 0 to 255, uint8 in the same shape; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(levels: Tensor) -> Tensor:
    """Turn `levels` of 0 to 255 into float32 in [-1, 1], in the same shape."""
    return levels.float() / 127.5 - 1


def from_picture(picture: Image.Image | np.ndarray) -> Tensor:
    """Turn an 8-bit RGB picture into an image [3, H, W] in [-1, 1]."""
    return from_pictures([picture])[0]


def from_pictures(pictures: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """Turn 8-bit RGB pictures of one size, arrays [H, W, 3] among them, into images [B, 3, H, W] in [-1, 1]."""
    levels = np.stack([np.asarray(picture) for picture in pictures])
    return from_uint8(torch.from_numpy(levels).permute(0, 3, 1, 2))


def to_tensor(image: Images, backbone: "Backbone") -> Tensor:
    """Turn `image` into [B, 3, S, S] in [-1, 1] where the VAE is, S the backbone's side in pixels.

    Pictures are resized and cropped at the centre; a tensor is taken as it is.
    """
    from diffusers.image_processor import VaeImageProcessor  # takes seconds, which readers of pictures can spare

    if isinstance(image, Tensor):
        return image.to(backbone.vae.device)
    size = backbone.image_size
    pictures = [image] if isinstance(image, Image.Image) else list(image)
    processor = VaeImageProcessor(do_convert_rgb=True)
    return processor.preprocess(pictures, height=size, width=size, resize_mode="crop").to(backbone.vae.device)


@torch.no_grad()
def to_pictures(latent: Tensor, backbone: "Backbone") -> list[Image.Image]:
    """Pictures of scaled latents [B, 4, h, w]."""
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor().postprocess(backbone.decode(latent), output_type="pil")


def one_for_each(prompt: str | Sequence[str], count: int) -> list[str]:
    """Give `count` prompts from one for all or one for each. Raises ValueError for another number."""
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise ValueError(f"{len(prompts)} prompts for {count} images; give one prompt, or one for each image")
    return prompts
