"""The pairs of an edit that are worth keeping, and the samples that they become."""

import hashlib
from dataclasses import asdict, dataclass

from PIL import Image
from torch import Tensor

from data.pairs.config import FilterConfig, PairScores
from data.pairs.drawing import Candidate
from data.pairs.proposals import Triplet
from data.pictures import images
from data.shards.sample import MAX_KEY_LENGTH, SampleInfo
from data.shards.shard import Drop, Sample
from data.shards.stage import Outcome
from models.pictures import to_uint8

_KEY_LENGTH = MAX_KEY_LENGTH - len("-0000")


@dataclass(frozen=True)
class DrawnPair:
    """A candidate as it was drawn."""

    candidate: Candidate
    scores: PairScores
    before: Image.Image
    after: Image.Image


class PairChoice:
    """The best pairs of a triplet so far."""

    def __init__(self, triplet: Triplet, config: FilterConfig) -> None:
        self.triplet = triplet
        self.num_seen = 0
        self._config = config
        self._best: list[DrawnPair] = []
        self._failures: dict[str, int] = {}

    def add(self, pair: DrawnPair) -> None:
        """Look at one more candidate."""
        self.num_seen += 1
        failure = self._config.failure(pair.scores)
        if failure:
            self._failures[failure] = self._failures.get(failure, 0) + 1
            return
        self._best = sorted([*self._best, pair], key=lambda p: (-p.scores.direction, p.candidate.number))
        self._best = self._best[: self._config.keep]

    def outcome(self, pictures: str) -> Outcome:
        """The samples of the pairs that are kept, or what most of the candidates lacked."""
        if self._best:
            passed = self.num_seen - sum(self._failures.values())
            return [_sample(pair, passed, self.num_seen, lossless=pictures == "png") for pair in self._best]
        reason = max(self._failures, key=lambda name: self._failures[name])
        detail = f"{self.triplet.instruction}: {self._failures}"
        return Drop(self.triplet.name, f"no pair: {reason}", "policy", detail)


def _sample(pair: DrawnPair, passed: int, seen: int, lossless: bool) -> Sample:
    """KEY.json with the instruction as the caption, KEY.jpg after the edit and KEY.source.jpg before it."""
    candidate, triplet = pair.candidate, pair.candidate.triplet
    (suffix, after), (_, before) = (images.encode(picture, lossless) for picture in (pair.after, pair.before))
    side = pair.after.width
    info = SampleInfo(
        key=f"{triplet.key[-_KEY_LENGTH:].lstrip('-')}-{candidate.number:03d}",
        caption=triplet.instruction,
        caption_raw=triplet.instruction,
        original_size=(side, side),
        crop=(0, 0, side, side),
        content_hash=hashlib.sha256(after).hexdigest(),
        source=triplet.name,
        extra={
            "source_caption": triplet.source,
            "target_caption": triplet.target,
            "seed": candidate.noise,
            "self_share": round(candidate.self_share, 4),
            "guidance": round(candidate.guidance, 4),
        },
        checks={name: round(value, 4) for name, value in asdict(pair.scores).items()} | {"passed": passed / seen},
    )
    return Sample(info.key, {"json": info.to_json(), suffix: after, f"source.{suffix}": before}, info.checks)


def to_picture(image: Tensor) -> Image.Image:
    """A picture [3, H, W] in [-1, 1]."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())
