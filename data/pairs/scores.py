"""Scores of how well a pair of pictures shows its edit, by CLIP (InstructPix2Pix, 3.1.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from data.pairs.config import PairScores
from data.pairs.proposals import Triplet
from models.clip import ClipEmbeddings


def score_pairs(clip: ClipEmbeddings, before: Tensor, after: Tensor, triplets: Sequence[Triplet]) -> list[PairScores]:
    """Scores of pictures [B, 3, H, H] in [-1, 1] before and after the edits of `triplets`."""
    images = [clip.embed_images(x) for x in (before, after)]
    texts = [clip.embed([getattr(triplet, name) for triplet in triplets]) for name in ("source", "target")]
    pictures, words = ([functional.normalize(x, dim=1) for x in pair] for pair in (images, texts))
    columns = [
        (pictures[0] * pictures[1]).sum(1),
        (pictures[0] * words[0]).sum(1),
        (pictures[1] * words[1]).sum(1),
        functional.cosine_similarity(pictures[1] - pictures[0], words[1] - words[0]),
    ]
    return [PairScores(*row) for row in torch.stack(columns, 1).tolist()]
