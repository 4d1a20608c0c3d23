"""CLIP similarity of pictures and texts, from any CLIPModel folder or hub id."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eval.bicubic import resize_levels
from models.clip import ClipPixels
from models.clip_embeddings import ClipEmbeddings

PUBLISHED_CLIP = "openai/clip-vit-large-patch14"
"""With which PIE-Bench's tables were made."""


class ClipSimilarity(ClipEmbeddings):
    """100 times the cosine between the embeddings of an image and its text, as CLIPScore papers print it."""

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Similarity [B] of images [B, 3, H, W] in [-1, 1], square, and B texts."""
        return self.compare(images, self.embed(texts))

    def compare(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """Similarity [B] of images and the embeddings of their texts."""
        return 100 * functional.cosine_similarity(self.embed_images(images), embeddings)

    def embed_pictures(self, pictures: Sequence[Tensor] | Tensor) -> Tensor:
        """Embeddings [B, P] of pictures, uint8 [3, H, W] of any sizes, prepared as CLIP's image processor does."""
        return self.embed_pixels(picture_pixels(pictures, self.pixels))

    def score(self, pictures: Sequence[Tensor] | Tensor, embeddings: Tensor) -> Tensor:
        """CLIPScore [B] as torchmetrics and PIE-Bench have it: max(100 cos, 0), of pictures uint8 [3, H, W]."""
        return 100 * functional.cosine_similarity(self.embed_pictures(pictures), embeddings).clamp(min=0)


def clipscore(similarity: Tensor) -> Tensor:
    """Clipscore of StyleDiffusion's Table 2: 2.5 max(cos, 0) in percent (Hessel et al. 2021), of 100 times cosines.

    The paper does not say so; its values of 75 to 82 imply the factor.
    """
    return 2.5 * similarity.clamp(min=0)


def picture_pixels(pictures: Sequence[Tensor] | Tensor, pixels: ClipPixels) -> Tensor:
    """CLIP's pixel values [B, 3, side, side] of pictures, uint8 [3, H, W] of any sizes.

    As CLIPImageProcessor does: the shorter side resized to CLIP's by Pillow's bicubic, the middle cut out.
    """
    if isinstance(pictures, Tensor):
        return _processed(pictures, pixels)
    return torch.cat([_processed(picture[None], pixels) for picture in pictures])


def _processed(pictures: Tensor, pixels: ClipPixels) -> Tensor:
    height, width = pictures.shape[-2:]
    short = min(height, width)
    height, width = (int(pixels.side * length / short) for length in (height, width))
    top, left = (height - pixels.side) // 2, (width - pixels.side) // 2
    levels = resize_levels(pictures, (height, width))[..., top : top + pixels.side, left : left + pixels.side]
    return pixels((levels / 127.5 - 1).float())
