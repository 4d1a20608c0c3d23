"""The words of a prompt and the positions of their tokens.

Words are what spaces separate; in scripts without spaces (Chinese, Japanese, Thai and their neighbours) every character
is one. Several tokens may make one word, and a word may stand in a prompt several times. All is found by the characters
on which a tokenizer's tokens stand, so that a word need not be divided like the same word in a prompt.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

PUNCTUATION = ".,;:!?\"'()[]{}“”‘’„‚…«»‹›¿¡–—/*。，、；：！？「」『』（）【】《》〈〉"

CLIP_TOKENS = 77
"""Tokens that CLIP's text encoders read, start and end among them."""

Span = tuple[int, int]
"""First character and the one behind the last."""

_MARKS = "\u0300-\u036f\u3099\u309a"  # accents that stand behind their letter
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3040-\u3098\u309b-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_WORD = re.compile(f"[^\\w\\s]*[{_SPACELESS}][{_MARKS}]*[^\\w\\s]*|[^\\s{_SPACELESS}]+")
_PIECE = re.compile(f"[{_SPACELESS}][{_MARKS}]*|(?:[^\\W_{_SPACELESS}][{_MARKS}]*)+")


class Tokenized(Protocol):
    """Text encoders with their tokenizers (models/text.py): one in Stable Diffusion, two in SDXL."""

    @property
    def tokenizers(self) -> Sequence[Any]:
        """The tokenizers."""


def token_limit(tokenizer: Any) -> int:
    """Tokens that are read of a prompt; CLIP's 77 where a tokenizer names no limit (transformers then gives 1e30)."""
    limit = tokenizer.model_max_length
    return int(limit) if limit < 1e9 else CLIP_TOKENS


class Reader(NamedTuple):
    """A tokenizer whose text encoder has to read all of a text, and how many tokens of the text itself it reads."""

    tokenizer: Any
    tokens: int

    @property
    def limit(self) -> int:
        """The tokens that are read with those that the tokenizer adds: CLIP's start and end, T5's end."""
        return self.tokens + self.tokenizer.num_special_tokens_to_add()


def clip_readers(tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
    """All of CLIP's tokenizers, with their limits but for start and end."""
    return tuple(Reader(tokenizer, token_limit(tokenizer) - 2) for tokenizer in tokenizers)


def word_spans(text: str) -> list[Span]:
    """Places of the words of `text`, with the punctuation around them."""
    return [found.span() for found in _WORD.finditer(text)]


def bare_words(text: str) -> list[str]:
    """The words of `text` in small letters and without the punctuation around them, accents composed."""
    return [_normal(text[slice(*span)]).strip(PUNCTUATION) for span in word_spans(text)]


def changed_words(source: str, target: str) -> tuple[list[int], list[int]]:
    """Indices of the words (of `word_spans`) of each prompt that the other lacks, by aligning the two sequences."""
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


def find_spans(text: str, word: str) -> list[Span]:
    """Places in `text` of every occurrence of `word`, which may be a phrase of several words.

    Capitals do not matter, nor whether accents are composed, nor punctuation, which ends a word as a space does: "cat"
    is in "the cat’s paw" and in "cat/dog", not in "cats". A phrase has a place for each of its words; what joins them
    without a space ("blue-eyed") belongs to it.

    Raises:
        ValueError: it is not there.
    """
    pieces, wanted = _pieces(text), [piece for piece, _ in _pieces(word)]
    starts = range(len(pieces) - len(wanted) + 1) if wanted else ()
    found = [pieces[i : i + len(wanted)] for i in starts if [p for p, _ in pieces[i : i + len(wanted)]] == wanted]
    if not found:
        raise ValueError(f"the word {word!r} is not in the prompt {text!r}; expected a word or phrase of it")
    return [span for phrase in found for span in _joined(text, [span for _, span in phrase])]


def has_word(text: str, word: str) -> bool:
    """Whether `word`, which may be a phrase of several words, is in `text`."""
    try:
        return bool(find_spans(text, word))
    except ValueError:
        return False


def _pieces(text: str) -> list[tuple[str, Span]]:
    """Runs of letters and digits, in scripts without spaces single characters: in small letters, and their places."""
    return [(_normal(found.group()), found.span()) for found in _PIECE.finditer(text)]


def spelled(text: str, places: Sequence[Span]) -> list[str]:
    """What stands at places in `text`, with the accents behind it, in small letters and accents composed."""
    return [_normal(text[start : _behind_accents(text, end)]) for start, end in places]


def _behind_accents(text: str, end: int) -> int:
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return end


def _joined(text: str, spans: Sequence[Span]) -> list[Span]:
    """The places of a phrase, those in one that have no space between them."""
    joined = list(spans[:1])
    for before, after in pairwise(spans):
        if re.search(r"\s", text[before[1] : after[0]]):
            joined.append(after)
        else:
            joined[-1] = (joined[-1][0], after[1])
    return joined


def _normal(word: str) -> str:
    return unicodedata.normalize("NFC", word).lower()


def word_tokens(tokenizer: Any, text: str, words: Sequence[int], limit: int | None = None) -> list[int]:
    """Positions in the tokenized prompt of the given words (indices into `word_spans`), their punctuation included.

    Words cut off by the length limit, by default the tokenizer's own, have none.
    """
    spans = word_spans(text)
    return tokens_within(_encoded(tokenizer, text, limit).offset_mapping, [spans[i] for i in words])


def named_tokens(text: Tokenized, prompt: str, word: str) -> list[int]:
    """Positions in the tokenized prompt of every occurrence of a word or phrase, without the punctuation around it.

    Args:
        text: the text encoders of the backbone, which all have to divide the prompt alike.

    Raises:
        ValueError: the word is not in the prompt or behind its length limit, or the tokenizers differ.
    """
    positions = tokens_within(read_tokens(text, prompt)[1], find_spans(prompt, word))
    if not positions:
        limit = token_limit(text.tokenizers[0])
        raise ValueError(f"the word {word!r} lies behind the {limit} tokens that are read of {prompt!r}; shorten it")
    return positions


def read_tokens(text: Tokenized, prompt: str) -> tuple[list[int], list[Span]]:
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


def tokens_within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Positions of the tokens at `offsets` that share a character with one of `spans`."""
    return [
        position
        for position, (start, end) in enumerate(offsets)
        if end > start and any(start < last and end > first for first, last in spans)
    ]


def _encoded(tokenizer: Any, text: str, limit: int | None = None) -> Any:
    limit = limit or token_limit(tokenizer)
    return tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
