"""Words that a request names, freed of those that cannot be used: annotations are not always words of their prompts."""

from collections.abc import Sequence
from dataclasses import fields

from models.local_blend import BlendWords
from models.text import Text
from models.words import named_tokens


def usable_words(
    text: Text, sources: Sequence[str], targets: Sequence[str], words: Sequence[BlendWords | None]
) -> tuple[list[BlendWords], list[str]]:
    """Words that attention can find for each of B pairs of prompts, and why others are left out.

    A word that is not in its prompt is left out, as in the official code of Prompt-to-Prompt, which finds no token for
    it; a pair that has none left may change everywhere. (There that code gives the source back.)

    Args:
        text: the backbone's text encoders.
        sources, targets: B prompts each.
        words: the words of each pair, or None for a pair without.

    Raises:
        ValueError: the numbers of prompts and words differ.
    """
    if not len(sources) == len(targets) == len(words):
        raise ValueError(f"words of {len(words)} pairs for {len(targets)} prompts; give words or None for each")
    reasons: list[str] = []

    def found(prompt: str, some: Sequence[str]) -> tuple[str, ...]:
        kept = []
        for word in some:
            try:
                named_tokens(text, prompt, word)
                kept.append(word)
            except ValueError as error:
                reasons.append(str(error))
        return tuple(kept)

    usable = []
    for source, target, named in zip(sources, targets, words, strict=True):
        named = named or BlendWords()
        prompts = {"source": source, "target": target, "kept_source": source, "kept_target": target}
        usable.append(BlendWords(**{f.name: found(prompts[f.name], getattr(named, f.name)) for f in fields(named)}))
    return usable, reasons
