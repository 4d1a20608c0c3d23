"""Alignment of the columns of two prompts' attention maps (Prompt-to-Prompt, 3.2).

Columns are tokens. The official code also gives padding of the target what stands at the same position in the source,
be it a word; here only padding takes from padding, and other padding keeps the target's own map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .attention_edits import Alignment
from .text import Text
from .words import named_tokens, read_tokens, spelled, token_limit, tokens_within, word_spans

Pair = tuple[int, int]
"""Position in the source's tokens and in the target's."""


def replace_alignment(text: Text, sources: Sequence[str], targets: Sequence[str]) -> Alignment:
    """Word swap: word i of the target takes the map of word i of the source.

    Words of equally many tokens correspond token by token. Otherwise each token of the target's word takes all of the
    source's, divided by the number of the target's, as in the official code. That code shifts what follows such a word
    by the difference; here words that follow stay with their own.

    Args:
        text: the backbone's text encoders.
        sources, targets: B prompts each, of equally many words.

    Raises:
        ValueError: prompts of different numbers of words, or tokenizers that disagree.
    """
    return _alignment(text, sources, targets, _swapped_words)


def refine_alignment(text: Text, sources: Sequence[str], targets: Sequence[str]) -> Alignment:
    """Words added, dropped or changed: tokens that both prompts have, in order, take the source's map; new ones do not.

    Args:
        text: the backbone's text encoders.
        sources, targets: B prompts each.

    Raises:
        ValueError: tokenizers that disagree.
    """
    return _alignment(text, sources, targets, _common_tokens)


def reweight(
    alignment: Alignment,
    text: Text,
    prompts: Sequence[str],
    factors: Mapping[str, float] | Sequence[Mapping[str, float]],
) -> Alignment:
    """Give `alignment` with the finished maps of words multiplied by factors, which may be negative.

    Args:
        text: the backbone's text encoders.
        prompts: the B target prompts of `alignment`.
        factors: factors of words or phrases, the same for all prompts or one mapping for each.

    Raises:
        ValueError: a word is not in its prompt, or the number of mappings is not that of the prompts.
    """
    scale = alignment.scale.clone()
    for row, prompt, words in _of_each(prompts, factors):
        for word, factor in words.items():
            scale[row, named_tokens(text, prompt, word)] *= factor
    return replace(alignment, scale=scale)


def word_schedule(
    alignment: Alignment,
    text: Text,
    prompts: Sequence[str],
    shares: Mapping[str, float] | Sequence[Mapping[str, float]],
    default: float,
    num_steps: int,
) -> Callable[[int], Alignment | None]:
    """Give `alignment` as a function of the step, in which each word follows it for its own share of the steps.

    Afterwards the word's maps are the target's own, without a factor (alpha of the official code).

    Args:
        text: the backbone's text encoders.
        prompts: the B target prompts of `alignment`.
        shares: shares of the steps from the noisiest on, for words or phrases; the same for all prompts or one mapping
            for each. The official code's key "default_" is `default`, for all other tokens.
        num_steps: number of sampling steps.

    Returns:
        step -> the alignment of that step, or None where every map is the target's own.

    Raises:
        ValueError: a word is not in its prompt, a share is not between 0 and 1, or the number of mappings is not that
            of the prompts.
    """
    ends = torch.full(alignment.share.shape, _checked_share("default", default), dtype=torch.float64)
    for row, prompt, words in _of_each(prompts, shares):
        for word, share in words.items():
            ends[row, named_tokens(text, prompt, word)] = _checked_share(word, share)

    def at(step: int) -> Alignment | None:
        active = (step < ends * num_steps).to(alignment.share)
        if not active.any():
            return None
        return replace(alignment, share=alignment.share * active, scale=1 + (alignment.scale - 1) * active)

    return at


def common_subsequence(x: Sequence[Any], y: Sequence[Any]) -> list[Pair]:
    """Positions of equal items in the best global alignment of two sequences (Needleman and Wunsch 1970).

    A gap scores 0, a match 1, a mismatch -1, so two gaps are always better than a mismatch. Of equally good alignments
    it is the one of the official code, which from the end on leaves out tokens of `y` first, then of `x`.
    """
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x, start=1):
        for j, b in enumerate(y, start=1):
            diagonal = score[i - 1][j - 1] + (1 if a == b else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], diagonal)
    pairs = []
    i, j = len(x), len(y)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


Matcher = Callable[[Text, str, str], dict[Pair, float]]
"""(text, source, target) -> weights of the pairs of tokens that belong together, without padding."""


def _alignment(text: Text, sources: Sequence[str], targets: Sequence[str], match: Matcher) -> Alignment:
    matrix = torch.zeros(len(targets), *2 * [token_limit(text.tokenizers[0])])
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        for pair, weight in match(text, source, target).items():
            matrix[row][pair] = weight
        padding = max(len(read_tokens(text, prompt)[0]) for prompt in (source, target))
        matrix[row].diagonal()[padding:] = 1
    share = (matrix.sum(dim=1) > 0).to(matrix)
    return Alignment(matrix, share, torch.ones_like(share))


def _swapped_words(text: Text, source: str, target: str) -> dict[Pair, float]:
    words, new_words = _tokens_of_words(text, source), _tokens_of_words(text, target)
    if len(words) != len(new_words):
        raise ValueError(
            f"{source!r} and {target!r} have {len(words) - 2} and {len(new_words) - 2} words; swapping words "
            "(replace_alignment) needs as many in both, refine_alignment does not"
        )
    weights: dict[Pair, float] = {}
    for old, new in zip(words, new_words, strict=True):
        if len(old) == len(new):
            weights |= dict.fromkeys(zip(old, new, strict=True), 1.0)
        else:
            weights |= {(i, j): 1 / len(new) for i in old for j in new}
    return weights


def _common_tokens(text: Text, source: str, target: str) -> dict[Pair, float]:
    # Of many characters a token is but a byte or two, which others have too: they are equal where the characters are.
    (old, old_places), (new, new_places) = read_tokens(text, source), read_tokens(text, target)
    x, y = list(zip(old, spelled(source, old_places))), list(zip(new, spelled(target, new_places)))
    return dict.fromkeys(common_subsequence(x, y), 1.0)


def _tokens_of_words(text: Text, prompt: str) -> list[list[int]]:
    """Positions of the tokens of each word, and of the start and the end as if they were words."""
    offsets = read_tokens(text, prompt)[1]
    return [[0], *(tokens_within(offsets, [span]) for span in word_spans(prompt)), [len(offsets) - 1]]


def _of_each(
    prompts: Sequence[str], words: Mapping[str, float] | Sequence[Mapping[str, float]]
) -> list[tuple[int, str, Mapping[str, float]]]:
    """(row, prompt, numbers of its words) of every prompt."""
    mappings = [words] * len(prompts) if isinstance(words, Mapping) else list(words)
    if len(mappings) != len(prompts):
        raise ValueError(f"{len(mappings)} mappings of words for {len(prompts)} prompts; give one for all or for each")
    return [(row, prompt, mapping) for row, (prompt, mapping) in enumerate(zip(prompts, mappings))]


def _checked_share(word: str, share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"the share of {word!r} is {share}, expected a share of the steps between 0 and 1")
    return share
