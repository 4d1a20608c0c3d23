"""CLIP similarity of pictures and texts, from any CLIPModel folder or hub id."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

logger = logging.getLogger(__name__)


class ClipSimilarity:
    """100 times the cosine between the embeddings of an image and its text, as CLIPScore papers print it.

    Args:
        path: folder or hub id of a CLIPModel with its tokenizer. A folder without preprocessor_config.json holds a
            model that takes pictures as they are, in [-1, 1] (the miniature does).
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        self.model = CLIPModel.from_pretrained(path).to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(path)
        mean, std = _normalisation(path)
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)

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


def _normalisation(path: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, by channel, that pictures in [0, 1] are normalised with."""
    if Path(path).is_dir() and not (Path(path) / "preprocessor_config.json").is_file():
        logger.info("%s has no preprocessor_config.json: its CLIP gets pictures in [-1, 1]", path)
        return [0.5] * 3, [0.5] * 3
    processor = CLIPImageProcessor.from_pretrained(path)
    return processor.image_mean, processor.image_std
