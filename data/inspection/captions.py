"""Lengths of captions in words and tokens, and where a backbone stops reading them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data.captioning.tokens import TokenLimits
from data.shards.sample import OtherCaption, SampleInfo
from models.words import word_spans


@dataclass(frozen=True)
class Lengths:
    """One way to measure captions.

    Args:
        name: "words" or "tokens", with the tokenizer's number where two differ.
        raw, final: the length of each caption as it came and as training uses it.
        limit: length that is read; None where nothing is known to be cut.
    """

    name: str
    raw: Sequence[int]
    final: Sequence[int]
    limit: int | None = None

    def share_cut(self, lengths: Sequence[int]) -> float | None:
        """Share of captions that are longer than the limit."""
        if self.limit is None or not len(lengths):
            return None
        return float((np.asarray(lengths) > self.limit).mean())


@dataclass
class CaptionStatistics:
    """Lengths of captions, one after another; of several captions of a picture all of them.

    Args:
        limits: the backbone's tokenizers; without them the counts that data.caption left in KEY.json are taken.
        num_samples: samples whose captions were added.
    """

    limits: TokenLimits | None
    num_samples: int = 0
    _words: list[tuple[int, int]] = field(default_factory=list)
    _tokens: list[tuple[list[int], list[int]]] = field(default_factory=list)
    _cut: list[tuple[bool, bool]] = field(default_factory=list)
    _texts: Counter[str] = field(default_factory=Counter)

    def add(self, info: SampleInfo) -> None:
        """Counts the captions of one more sample."""
        self.num_samples += 1
        self._add(info)
        for other in info.other_captions:
            self._add(other)

    def _add(self, one: SampleInfo | OtherCaption) -> None:
        self._words.append((len(word_spans(one.caption_raw)), len(word_spans(one.caption))))
        self._texts[one.caption] += 1
        if self.limits is not None:
            raw, final = self.limits.count(one.caption_raw), self.limits.count(one.caption)
            self._cut.append((not self._fits(raw), not self._fits(final)))
        else:
            raw, final = (_counts(one.checks.get(name)) for name in ("tokens_raw", "tokens"))
        self._tokens.append((raw, final))

    @property
    def count(self) -> int:
        """Captions that were added."""
        return len(self._words)

    @property
    def num_equal(self) -> int:
        """Captions that are equal to another one's."""
        return sum(count for count in self._texts.values() if count > 1)

    @property
    def share_cut(self) -> tuple[float, float] | None:
        """Shares of raw and of final captions that some text encoder does not read to the end; None without limits."""
        if not self._cut:
            return None
        raw, final = np.mean(self._cut, axis=0).tolist()
        return raw, final

    def lengths(self) -> list[Lengths]:
        """Lengths in words, then in tokens if all were counted: by each tokenizer, or once where they agree."""
        if not self._words:
            return []
        tokens = []
        for index in range(min(len(counts) for pair in self._tokens for counts in pair)):
            raw, final = ([pair[side][index] for pair in self._tokens] for side in (0, 1))
            tokens.append(
                Lengths(f"tokens ({index + 1})", raw, final, self.limits.limits[index] if self.limits else None)
            )
        if tokens and all(
            (one.raw, one.final, one.limit) == (tokens[0].raw, tokens[0].final, tokens[0].limit) for one in tokens
        ):
            tokens = [replace(tokens[0], name="tokens")]
        return [Lengths("words", [raw for raw, _ in self._words], [final for _, final in self._words]), *tokens]

    def _fits(self, counts: list[int]) -> bool:
        assert self.limits is not None
        return all(count <= limit for count, limit in zip(counts, self.limits.limits))


def _counts(found: object) -> list[int]:
    """Token counts of KEY.json, [] where there are none."""
    return found if isinstance(found, list) and all(isinstance(count, int) for count in found) else []


def characters_read(text: str, limits: TokenLimits) -> int:
    """Number of a text's characters that all text encoders read."""
    ends = [len(text)]
    for tokenizer, limit in zip(limits.tokenizers, limits.limits):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = found["offset_mapping"]
        if len(offsets) > limit:
            ends.append(offsets[limit - 1][1] if limit else 0)
    return min(ends)
