"""What a user asks of an edit: descriptions with their strengths, for one result or for many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch

from .attention_edits import Alignment
from .pictures import texts_of
from .text import Prompt, concatenate, interpolate

Strength = float | Sequence[float]


@dataclass(frozen=True)
class Wish:
    """One description, and how far the edit goes towards it, for each result or for all."""

    texts: tuple[str, ...]
    strengths: tuple[float, ...]

    def spread(self, count: int) -> "Wish":
        """The wish with a description and a strength for each of `count` results."""
        return Wish(self.texts * (count // len(self.texts)), self.strengths * (count // len(self.strengths)))


def read_wishes(prompt: str | Sequence[str] | Mapping[Any, Strength], strength: Strength) -> list[Wish]:
    """The wishes that are to come true at once: those of a mapping from descriptions to strengths, or else one.

    Raises:
        ValueError: no description, what is no text or no finite number, or strengths beside those of a mapping.
    """
    if not isinstance(prompt, Mapping):
        return [Wish(tuple(texts_of(prompt)), _numbers(strength))]
    if not prompt:
        raise ValueError("prompt is an empty mapping; give at least one description with its strength")
    if strength != 1.0:
        raise ValueError(f"strength is {strength!r} beside a mapping, which has its own strengths; leave it out")
    return [Wish(tuple(texts_of(texts)), _numbers(own)) for texts, own in prompt.items()]


def count_results(num_images: int, wishes: Sequence[Wish], num_masks: int) -> int:
    """The number of results, for which there is one of everything for all, or one for each.

    Raises:
        ValueError: numbers that do not go together.
    """
    given = {"images": [num_images], "masks": [num_masks]}
    given |= {"prompts": [len(wish.texts) for wish in wishes], "strengths": [len(wish.strengths) for wish in wishes]}
    count = max(max(numbers) for numbers in given.values())
    for name, numbers in given.items():
        for number in numbers:
            if number not in (1, count):
                raise ValueError(
                    f"{number} {name} for {count} results; give one for all of them, or one for each: result i has "
                    "image i, prompt i, strength i and mask i"
                )
    return count


def mixed(source: Prompt, targets: Sequence[Prompt], wishes: Sequence[Wish]) -> Prompt:
    """The source's prompt for each result, moved towards the targets [B, L, D] of all wishes by their strengths.

    Raises:
        ValueError: The source's has another shape than the targets: another model has made it.
    """
    for target in targets:
        if target.embeds.shape[1:] != source.embeds.shape[1:]:
            made, expected = (list(prompt.embeds.shape[1:]) for prompt in (source, target))
            raise ValueError(
                f"the inversion was made with another generator: its prompts are {made} large, this one's {expected}; "
                "edit it with its own pipeline, or invert the picture with this one"
            )
    rows = [slice(row, row + 1) for row in range(len(source))]
    return concatenate(
        [
            interpolate(source[row], [target[row] for target in targets], [wish.strengths[i] for wish in wishes])
            for i, row in enumerate(rows)
        ]
    )


def in_target_places(source: Prompt, alignment: Alignment) -> Prompt:
    """The source's prompt with its tokens where the targets have them; places of new tokens keep what they have.

    Args:
        source: prompt [B, L, D] of the inverted pictures.
        alignment: which tokens the targets have from their sources (`refine_alignment`).

    Raises:
        ValueError: the prompt has other tokens than those of the first tokenizer alone, as of models with a T5.
    """
    if source.embeds.shape[1] != alignment.matrix.shape[1]:
        raise ValueError(
            f"align works where prompts are the {alignment.matrix.shape[1]} tokens of a CLIP; this generator's have "
            f"{source.embeds.shape[1]}: leave it out"
        )
    moved = torch.einsum("bst,bsd->btd", alignment.matrix.to(source.embeds), source.embeds)
    shared = alignment.share.to(source.embeds.device)[..., None] > 0
    return replace(source, embeds=torch.where(shared, moved, source.embeds))


def _numbers(strength: Strength) -> tuple[float, ...]:
    values = strength.tolist() if hasattr(strength, "tolist") else strength  # of NumPy or torch
    numbers = values if isinstance(values, list | tuple) else (values,)
    if not numbers or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"strength is {strength!r}; expected a number, or a list with one for each result")
    if not all(map(isfinite, numbers)):
        raise ValueError(f"strength is {strength!r}; expected finite numbers")
    return tuple(float(number) for number in numbers)
