"""The words of a prompt and the positions of their tokens.

Words are what spaces separate. Several tokens may make one word, and a word may stand in a prompt several times.
"""

import difflib
from collections.abc import Sequence
from typing import Any

from .text import ClipText, DualClipText

PUNCTUATION = ".,;:!?\"'()[]{}“”‘’…"

Span = tuple[int, int]
"""First character and the one behind the last."""


def bare_words(text: str) -> list[str]:
    """The words of `text` in small letters and without the punctuation around them."""
    return [word.strip(PUNCTUATION).lower() for word in text.split()]


def changed_words(source: str, target: str) -> tuple[list[int], list[int]]:
    """Indices of the words (split at spaces) of each prompt that the other lacks, by aligning the two sequences."""
    a, b = bare_words(source), bare_words(target)
    only_a: list[int] = []
    only_b: list[int] = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        if tag != "equal":
            only_a += range(a0, a1)
            only_b += range(b0, b1)
    return only_a, only_b


def changed_tokens(tokenizer: Any, texts: Sequence[str], others: Sequence[str]) -> list[list[int]]:
    """Give for each of `texts` the positions of the words that its counterpart in `others` lacks."""
    return [
        word_tokens(tokenizer, text, changed_words(text, other)[0]) for text, other in zip(texts, others, strict=True)
    ]


def find_words(text: str, word: str) -> list[int]:
    """Indices in text.split() of every occurrence of `word`, which may be a phrase of several words.

    Capitals and the punctuation around words do not matter.

    Raises:
        ValueError: it is not there.
    """
    if not has_word(text, word):
        raise ValueError(f"the word {word!r} is not in the prompt {text!r}; expected a word or phrase of it")
    return sorted({start + i for start in _starts(text, word) for i in range(len(bare_words(word)))})


def has_word(text: str, word: str) -> bool:
    """Whether `word`, which may be a phrase of several words, is in `text`."""
    return any(bare_words(word)) and bool(_starts(text, word))


def _starts(text: str, word: str) -> list[int]:
    """Indices in text.split() of the first word of every occurrence of `word`."""
    words, wanted = bare_words(text), bare_words(word)
    return [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]


def word_tokens(tokenizer: Any, text: str, words: Sequence[int]) -> list[int]:
    """Positions in the tokenized prompt of the given words (indices into text.split()), their punctuation included.

    Words cut off by the length limit have none.
    """
    spans = word_spans(text)
    return tokens_within(_encoded(tokenizer, text).offset_mapping, [spans[i] for i in words])


def named_tokens(text: ClipText | DualClipText, prompt: str, word: str) -> list[int]:
    """Positions in the tokenized prompt of every occurrence of a word or phrase, without the punctuation around it.

    Args:
        text: the text encoders of the backbone, which all have to divide the prompt alike.

    Raises:
        ValueError: the word is not in the prompt or behind its length limit, or the tokenizers differ.
    """
    spans = word_spans(prompt)
    bare = [_without_punctuation(prompt, spans[i]) for i in find_words(prompt, word)]
    positions = tokens_within(read_tokens(text, prompt)[1], bare)
    if not positions:
        limit = text.tokenizers[0].model_max_length
        raise ValueError(f"the word {word!r} lies behind the {limit} tokens that are read of {prompt!r}; shorten it")
    return positions


def read_tokens(text: ClipText | DualClipText, prompt: str) -> tuple[list[int], list[Span]]:
    """Ids and places in `prompt` of the tokens that are read of it: with start and end, which have no place, unpadded.

    Raises:
        ValueError: the tokenizers of `text` (SDXL has two) divide the prompt differently, so that one position of a
            map would be two words.
    """
    first, *others = (_encoded(tokenizer, prompt) for tokenizer in text.tokenizers)
    for other in others:
        if other.offset_mapping != first.offset_mapping:
            raise ValueError(
                f"the tokenizers divide {prompt!r} into {len(first.input_ids)} and {len(other.input_ids)} tokens at "
                "different places; words can be controlled only where all tokenizers of a backbone agree"
            )
    return first.input_ids, first.offset_mapping


def word_spans(text: str) -> list[Span]:
    """Places where the words of text.split() stand."""
    spans: list[Span] = []
    end = 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        spans.append((start, end))
    return spans


def tokens_within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Positions of the tokens at `offsets` that share a character with one of `spans`."""
    return [
        position
        for position, (start, end) in enumerate(offsets)
        if end > start and any(start < last and end > first for first, last in spans)
    ]


def _encoded(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True)


def _without_punctuation(text: str, span: Span) -> Span:
    word = text[slice(*span)]
    start = span[0] + len(word) - len(word.lstrip(PUNCTUATION))
    return start, start + len(word.strip(PUNCTUATION))
