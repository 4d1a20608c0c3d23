"""What the text encoders see of a change: how far two prompts' embeddings differ, and words behind their limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone import Backbone
from models.text import Prompt
from models.words import Reader, changed_words, word_spans, word_tokens

_EQUAL = 1e-6
"""Cosine distance below which embeddings are equal but for rounding."""


@dataclass(frozen=True)
class Sight:
    """What is seen of the way from a source's prompt to a target.

    Args:
        distance: 1 - cosine between the prompts' token embeddings, all of them as one vector; 0 for equal ones.
        pooled: the same of the pooled embeddings, which SDXL has.
        unread: words of the target behind the last token that every text encoder reads.
        notes: what a user should know: a change that is not seen, words that are not read.
    """

    distance: float
    pooled: float | None
    unread: tuple[str, ...]
    notes: tuple[str, ...]


@torch.no_grad()
def seen_change(backbone: Backbone, source: str, target: str) -> Sight:
    """What the text encoders of a backbone see of a change from `source` to `target`."""
    assert backbone.text is not None, "a pipeline has text encoders"
    readers = backbone.readers
    before, after = (backbone.encode_text([text]) for text in (source, target))
    distance, pooled = _distances(before, after)
    unread = unread_words(readers, target)
    limit = min(reader.limit for reader in readers)
    notes = []
    if unread:
        notes.append(f"the text encoder reads {limit} tokens; of the target it does not read {_quoted(unread)}")
    if max(distance, pooled or 0.0) < _EQUAL:
        why = "it is the prompt itself" if not any(changed_words(source, target)) else "the text encoder reads the same"
        if set(_changed(source, target)) & set(unread):
            why = f"all that changes stands behind the {limit} tokens that are read"
        notes.append(f"the target {target!r} changes nothing: {why}")
    return Sight(distance, pooled, unread, tuple(notes))


def unread_words(readers: Sequence[Reader], text: str) -> tuple[str, ...]:
    """Words of a text, in their order, that one of the text encoders does not read for its limit."""
    spans = word_spans(text)
    cut = len(spans)
    for reader in readers:
        if len(reader.tokenizer(text, verbose=False).input_ids) > reader.limit:
            while cut and not word_tokens(reader.tokenizer, text, [cut - 1], reader.limit):
                cut -= 1
    return tuple(text[slice(*span)] for span in spans[cut:])


def _changed(source: str, target: str) -> list[str]:
    """The target's words that the source lacks."""
    return [target[slice(*word_spans(target)[i])] for i in changed_words(source, target)[1]]


def _distances(before: Prompt, after: Prompt) -> tuple[float, float | None]:
    pooled = None
    if before.pooled is not None and after.pooled is not None:
        pooled = _cosine_distance(before.pooled, after.pooled)
    return _cosine_distance(before.embeds, after.embeds), pooled


def _cosine_distance(x: Tensor, y: Tensor) -> float:
    """1 - cosine of two tensors as vectors."""
    a, b = (tensor.cpu().double().flatten() for tensor in (x, y))
    return max(0.0, 1 - (a @ b / (a.norm() * b.norm())).item())


def _quoted(words: Sequence[str], most: int = 8) -> str:
    shown = " ".join(words[:most])
    return f"{shown!r}" + (f" and {len(words) - most} words more" if len(words) > most else "")
