"""How well a pair of pictures shows its edit, by CLIP, and which pairs are good enough (InstructPix2Pix, 3.1.2)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from data.pairs.proposals import Triplet
from models.clip import ClipEmbeddings


@dataclass(frozen=True)
class PairScores:
    """Cosines in CLIP's space.

    Args:
        image_similarity: of the two pictures.
        source_similarity: of the source picture and its caption.
        target_similarity: of the edited picture and its caption.
        direction: of the change between the pictures and that between the captions (Gal et al. 2022, eq. 2).
    """

    image_similarity: float
    source_similarity: float
    target_similarity: float
    direction: float


@dataclass(frozen=True)
class FilterConfig:
    """Which pairs are kept; the thresholds are those of InstructPix2Pix's code.

    Args:
        min_image_similarity: least cosine of the two pictures.
        min_caption_similarity: least cosine of each picture and its caption.
        min_direction: least cosine of the change between the pictures and that between the captions.
        keep: at most so many pairs of a triplet, those of the best direction.
    """

    min_image_similarity: float = 0.7
    min_caption_similarity: float = 0.2
    min_direction: float = 0.2
    keep: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "keep" and not -1 <= value <= 1:
                raise ValueError(f"--filter.{name} is {value}, expected a cosine between -1 and 1")
        if self.keep < 1:
            raise ValueError(f"--filter.keep is {self.keep}, expected at least 1")

    def failure(self, scores: PairScores) -> str:
        """What a pair with these scores lacks, "" if it is good enough."""
        if scores.image_similarity < self.min_image_similarity:
            return "pictures too different"
        if min(scores.source_similarity, scores.target_similarity) < self.min_caption_similarity:
            return "a picture unlike its caption"
        return "" if scores.direction >= self.min_direction else "another change than the captions'"


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
