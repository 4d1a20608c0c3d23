"""Embeddings of pictures and texts in the space that a CLIP's two encoders share."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from .backbone import fingerprint, freeze
from .clip import ClipPixels


class ClipEmbeddings:
    """A frozen CLIPModel in float32.

    Args:
        path: folder or hub id of a CLIPModel with its tokenizer. A folder without preprocessor_config.json holds a
            model that takes pictures as they are, in [-1, 1] (the miniature does).
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        self.model = CLIPModel.from_pretrained(path, dtype=torch.float32).to(device)
        freeze(self.model)
        self.tokenizer = CLIPTokenizer.from_pretrained(path)
        self.pixels = ClipPixels.load(path, self.model.config.vision_config.image_size)

    @property
    def fingerprint(self) -> str:
        """Identifies the CLIP and the normalisation of its pictures."""
        return fingerprint(self.model, {"mean": self.pixels.mean, "std": self.pixels.std})

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, P] of texts."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.model.device)).pooler_output

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings [B, P] of images [B, 3, H, H] in [-1, 1]."""
        return self.embed_pixels(self.pixels(images))

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, P] of what `ClipPixels` gives."""
        return self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
