"""Pictures and images: 8-bit levels and values in [-1, 1], and the ends of an exported pipeline.

A picture has levels of 0 to 255 as a file has them, an image values in [-1, 1] as the networks take and give them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .shapes import Cutout, WantedShape
from .upright import UnsupportedPixels, fitted, open_picture, upright_rgb

Picture = Image.Image | np.ndarray | str | Path
"""A picture of any kind that a pipeline takes: Pillow's, an array, or the path of a file."""

Images = Picture | Tensor | Sequence[Picture] | Sequence[Tensor]
"""One or several pictures, or images [B, 3, H, W] in [-1, 1]."""

ACCEPTED = (
    "a PIL picture, the path of one, an array [H, W, 3] or [B, H, W, 3] (uint8, or floats in [0, 1]), "
    "a tensor [B, 3, H, W] in [-1, 1], or a list of those"
)


_FARTHEST = 2.0
"""Largest value of an image that is taken: what a VAE has decoded lies a little outside of [-1, 1]."""


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


def as_pictures(image: Any) -> list[Image.Image]:
    """Upright RGB pictures on white, of one picture or several of any kind in ACCEPTED but tensors.

    Raises:
        ValueError: it is none of them, or a file that gives no picture.
    """
    if isinstance(image, Image.Image):
        return [_upright(image, "the image")]
    if isinstance(image, str | Path):
        return [_opened(image)]
    if isinstance(image, np.ndarray):
        levels = _levels(image)
        return [Image.fromarray(picture) for picture in (levels if levels.ndim == 4 else levels[None])]
    if isinstance(image, Sequence) and image:
        return [picture for one in image for picture in as_pictures(one)]
    raise ValueError(f"the image is {described(image)}; expected {ACCEPTED}")


def to_tensor(image: Images, shape: WantedShape, device: torch.device) -> tuple[Tensor, tuple[Cutout, ...]]:
    """Turn `image` into [B, 3, H, W] in [-1, 1] on `device`, and say what of the B photographs it shows.

    Pictures are made upright RGB on white, cropped at the centre and resized as `fitted` does it for training too;
    tensors are taken as they are.

    Raises:
        ValueError: it is none of ACCEPTED, a file that gives no picture, pictures of several shapes, or a tensor of a
            size that the backbone does not take.
    """
    tensors = [image] if isinstance(image, Tensor) else image
    if isinstance(tensors, list | tuple) and tensors and all(isinstance(one, Tensor) for one in tensors):
        whole = _whole(tensors, image)
        height, width = whole.shape[-2:]
        shape.admit((height, width))
        return whole.to(device), (Cutout.whole(height, width),) * len(whole)
    pictures = as_pictures(image)
    height, width = size = shape.of([(picture.height, picture.width) for picture in pictures])
    seen, crops = zip(*(fitted(picture, (width, height)) for picture in pictures), strict=True)
    cutouts = tuple(
        Cutout((picture.height, picture.width), crop, size) for picture, crop in zip(pictures, crops, strict=True)
    )
    return from_pictures(seen).to(device), cutouts


def _whole(tensors: Sequence[Tensor], image: Images) -> Tensor:
    """The images [B, 3, H, W] of tensors as someone gave them. Raises ValueError for what are no images."""
    whole = [one[None] if one.ndim == 3 else one for one in tensors]
    if any(one.ndim != 4 or one.shape[1:] != (3, *whole[0].shape[2:]) or not one.numel() for one in whole):
        raise ValueError(f"the image is {described(image)}; expected {ACCEPTED}")
    for one in whole:
        if not one.is_floating_point() or not (one.is_meta or one.abs().max() <= _FARTHEST):
            raise ValueError(f"the image is {described(one)}; expected {ACCEPTED}")
    return torch.cat(whole)


def to_output(images: Tensor, output_type: str) -> Any:
    """Images [B, 3, H, W] in about [-1, 1] as diffusers gives them.

    Args:
        output_type: "pil" gives a list of pictures, "np" an array [B, H, W, 3] and "pt" a tensor [B, 3, H, W], both in
            [0, 1].
    """
    from diffusers.image_processor import VaeImageProcessor  # takes seconds, which readers of pictures can spare

    return VaeImageProcessor().postprocess(images, output_type=output_type)


def _opened(path: str | Path) -> Image.Image:
    if not Path(path).is_file():
        raise ValueError(f"there is no picture at {path}")
    try:
        picture = open_picture(Path(path).read_bytes())
        picture.load()
    except Exception as error:  # on broken files Pillow's decoders let through almost anything
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error
    return _upright(picture, str(path))


def _upright(picture: Image.Image, name: str) -> Image.Image:
    if not picture.width or not picture.height:
        raise ValueError(f"{name} has no pixels: it is {picture.width}x{picture.height}")
    try:
        return upright_rgb(picture)
    except UnsupportedPixels as error:
        raise ValueError(f"{name} has pixels that are no 8-bit or 16-bit levels ({error}); give it in RGB") from error


def _levels(array: np.ndarray) -> np.ndarray:
    """8-bit levels [H, W, 3] or [B, H, W, 3] of an array in ACCEPTED."""
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"the image is {described(array)}; expected {ACCEPTED}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"the image is {described(array)}; expected {ACCEPTED}")
    return (array * 255).round().astype(np.uint8)


def described(image: Any) -> str:
    """Say what someone gave in the place of a picture."""
    if isinstance(image, Tensor):
        kind = f"a tensor {list(image.shape)} of {str(image.dtype).removeprefix('torch.')}"
        known = image.numel() and not image.is_meta
        return f"{kind} from {image.min().item():g} to {image.max().item():g}" if known else kind
    if isinstance(image, np.ndarray):
        values = f" from {image.min():g} to {image.max():g}" if image.size and image.dtype.kind in "iuf" else ""
        return f"an array {list(image.shape)} of {image.dtype}{values}"
    if isinstance(image, list | tuple):
        return f"a {type(image).__name__} of {len(image)}" + (f", {described(image[0])} first" if image else "")
    return f"a {type(image).__name__}, {image!r:.60}"


def one_for_each(prompt: str | Sequence[str], count: int) -> list[str]:
    """Give `count` prompts from one for all or one for each. Raises ValueError for another number or for no text."""
    prompts = texts_of(prompt) * (count if isinstance(prompt, str) else 1)
    if len(prompts) != count:
        raise ValueError(f"{len(prompts)} prompts for {count} images; give one prompt, or one for each image")
    return prompts


def texts_of(prompt: str | Sequence[str]) -> list[str]:
    """Give the texts of one or several prompts. Raises ValueError for what is no text."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompt is {prompt!r}; expected a text or a list of texts")
    return list(texts)
