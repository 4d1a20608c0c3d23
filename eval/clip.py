"""CLIP similarity of pictures and texts, from any CLIPModel folder or hub id."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer


class ClipSimilarity:
    """100 times the cosine between the embeddings of an image and its text, as CLIPScore papers print it.

    Args:
        path: folder or hub id of a CLIPModel with its tokenizer and preprocessor_config.json.
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        self.model = CLIPModel.from_pretrained(path).to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(path)
        processor = CLIPImageProcessor.from_pretrained(path)
        self.mean = torch.tensor(processor.image_mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(processor.image_std, device=device).view(1, 3, 1, 1)

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
        found = self.model.get_image_features(pixel_values=self._preprocess(images)).pooler_output
        return 100 * functional.cosine_similarity(found, embeddings)

    def _preprocess(self, images: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        if images.shape[-2:] != (side, side):
            images = functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        return ((images + 1) / 2 - self.mean) / self.std
