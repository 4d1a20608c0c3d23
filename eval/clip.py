"""CLIP similarity of pictures and texts, from any CLIPModel folder or hub id."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from models.image_tokens import ClipPixels


class ClipSimilarity:
    """100 times the cosine between the embeddings of an image and its text, as CLIPScore papers print it.

    Args:
        path: folder or hub id of a CLIPModel with its tokenizer. A folder without preprocessor_config.json holds a
            model that takes pictures as they are, in [-1, 1] (the miniature does).
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        self.model = CLIPModel.from_pretrained(path).to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(path)
        self.pixels = ClipPixels.load(path, self.model.config.vision_config.image_size)

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Similarity [B] of images [B, 3, H, W] in [-1, 1], square, and B texts."""
        return self.compare(images, self.embed(texts))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, P] of texts, for those that are compared with many images."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.model.device)).pooler_output

    @torch.no_grad()
    def compare(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """Similarity [B] of images and the embeddings of their texts."""
        found = self.model.get_image_features(pixel_values=self.pixels(images)).pooler_output
        return 100 * functional.cosine_similarity(found, embeddings)
