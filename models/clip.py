"""Frozen CLIPs: the pixels that they take, all tokens of a picture, and embeddings of pictures and texts.

StyleDiffusion's mapping network starts from the tokens; pairs of pictures are judged by the embeddings.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel

from .backbone import freeze, named_in_errors
from .text import load_tokenizer
from .words import token_limit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipPixels:
    """Pictures as a CLIP takes them.

    Args:
        side: side of the square in pixels.
        mean, std: mean and standard deviation of each channel with which pictures in [0, 1] are normalised.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, path: str, side: int) -> "ClipPixels":
        """Load the normalisation of a folder's or hub id's image processor.

        A folder without preprocessor_config.json holds a CLIP that takes pictures as they are, in [-1, 1] (the
        miniature's does).
        """
        if Path(path).is_dir() and not (Path(path) / "preprocessor_config.json").is_file():
            logger.info("%s has no preprocessor_config.json: its CLIP gets pictures in [-1, 1]", path)
            return cls(side, (0.5,) * 3, (0.5,) * 3)
        processor = CLIPImageProcessorPil.from_pretrained(path)
        return cls(side, tuple(processor.image_mean), tuple(processor.image_std))

    def __call__(self, images: Tensor) -> Tensor:
        """CLIP's pixel values [B, 3, side, side] of images [B, 3, H, W] in [-1, 1]; bicubic, with antialiasing.

        The whole of an image is seen: one that is no square is pressed into one.
        """
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(-1, 1)
        mean, std = (torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return ((images + 1) / 2 - mean) / std


def token_shape(config: Any) -> tuple[int, int]:
    """N tokens of width D that a vision encoder of this configuration gives."""
    return (config.image_size // config.patch_size) ** 2 + 1, config.hidden_size


class ImageTokens:
    """The class token and the patches' after the final norm, without projection, as in StyleDiffusion's official code.

    transformers applies that norm to the class token alone; here all tokens go through it.

    Args:
        model: the vision encoder (OpenAI's ViT-B/16 in the official code); it is frozen.
        pixels: what it takes.
    """

    def __init__(self, model: CLIPVisionModel, pixels: ClipPixels) -> None:
        freeze(model)
        self.model = model
        self.pixels = pixels

    @classmethod
    def load(cls, path: str, device: torch.device | str = "cpu") -> "ImageTokens":
        """The vision encoder, in float32, of a folder or hub id of a CLIPModel or CLIPVisionModel.

        Raises:
            ValueError: the folder holds a model of another kind.
            OSError: there is no such folder or model.
        """
        with named_in_errors(path):
            kind = AutoConfig.from_pretrained(path).model_type
        if kind == "clip":
            model = CLIPModel.from_pretrained(path, dtype=torch.float32).vision_model
        elif kind == "clip_vision_model":
            model = CLIPVisionModel.from_pretrained(path, dtype=torch.float32)
        else:
            raise ValueError(f"{path} holds a model of type {kind!r}, expected 'clip' or 'clip_vision_model'")
        return cls(model.to(device), ClipPixels.load(path, model.config.image_size))

    @property
    def shape(self) -> tuple[int, int]:
        """N tokens of width D: (197, 768) for ViT-B/16 at 224 px."""
        return token_shape(self.model.config)

    @torch.no_grad()
    def __call__(self, images: Tensor, device: torch.device | None = None) -> Tensor:
        """Tokens [B, N, D], in the encoder's dtype, of images [B, 3, H, H] in [-1, 1].

        `device` is where hooks move the encoder's weights, if they are not there.

        Raises ValueError for pictures that are not square.
        """
        pixels = self.pixels(images.to(device or self.model.device))
        return self.model.post_layernorm(self.model(pixel_values=pixels).last_hidden_state)


class ClipEmbeddings:
    """Embeddings of pictures and texts by a frozen CLIPModel in float32.

    Args:
        path: folder or hub id of a CLIPModel with its tokenizer. A folder without preprocessor_config.json holds a
            model that takes pictures as they are, in [-1, 1] (the miniature does).
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        with named_in_errors(path):
            self.model = CLIPModel.from_pretrained(path, dtype=torch.float32).to(device)
        freeze(self.model)
        self.tokenizer = load_tokenizer(path)
        self.pixels = ClipPixels.load(path, self.model.config.vision_config.image_size)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, P] of texts."""
        limit = token_limit(self.tokenizer)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.model.device)).pooler_output

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings [B, P] of images [B, 3, H, H] in [-1, 1]."""
        return self.embed_pixels(self.pixels(images))

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, P] of what `ClipPixels` gives."""
        return self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
