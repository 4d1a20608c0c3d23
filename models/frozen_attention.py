"""Attention that an edit takes from its source (Prompt-to-Prompt), for the first steps of a few-step generator."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .attention import Rule
from .attention_edits import Alignment, CrossEdit, SelfReplacement
from .text import Text
from .word_alignment import refine_alignment


def frozen_attention(
    text: Text,
    sources: Sequence[str],
    targets: Sequence[str],
    strengths: Sequence[float],
    max_queries: int,
) -> list[Rule]:
    """Rules for an evaluation with the B sources in its first rows and the B targets after them.

    The targets' cross-attention maps of words that both prompts have, and their self-attention maps, become the
    sources'. TurboEdit's paper freezes "the attention map" in the first step and does not say which; here both.

    Args:
        text: the backbone's text encoders.
        strengths: strength of each target's embeddings, which lie between those of both prompts (see `partial`).
        max_queries: self-attention maps of more queries, which are of a higher resolution, are the targets' own.

    Raises:
        ValueError: tokenizers that disagree.
    """
    count = len(targets)
    source, target = slice(count), slice(count, 2 * count)
    alignment = partial(refine_alignment(text, sources, targets), strengths)
    return [CrossEdit(source, target, alignment), SelfReplacement(source, target, max_queries)]


def partial(alignment: Alignment, strengths: Sequence[float]) -> Alignment:
    """Adapt `alignment` to embeddings source + strength (target - source), whose tokens are a mixture of both prompts'.

    Column j is (1 - strength) times the source's own column j plus strength times what `alignment` says: at 0 the
    source's maps, with which its embeddings give back the source. Below 0 and above 1 it is that of 0 and 1.

    Args:
        strengths: one for each of the B pairs of `alignment`.
    """
    weight = torch.tensor(strengths, dtype=alignment.share.dtype).clamp(0, 1)[:, None]
    share = 1 - weight + weight * alignment.share
    matrix = alignment.matrix * (weight * alignment.share)[:, None]
    matrix = (1 - weight)[:, None] * torch.eye(matrix.shape[1]) + matrix
    return replace(alignment, matrix=matrix / share.clamp_min(1e-12)[:, None], share=share)
