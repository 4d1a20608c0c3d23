"""Local blend of Prompt-to-Prompt: only where the maps of chosen words are strong does the edit change the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Rule
from .attention_maps import AttentionMaps, Capture, token_heat
from .text import Text
from .words import named_tokens


@dataclass(frozen=True)
class BlendWords:
    """Words (or phrases) that say where one pair of prompts differs.

    Args:
        source, target: words of the source's and of the target's prompt; without any, the whole picture may change.
        kept_source, kept_target: words whose places are taken out again.

    Raises:
        ValueError: a text in the place of a sequence of words, whose letters would be taken for words.
    """

    source: Sequence[str] = ()
    target: Sequence[str] = ()
    kept_source: Sequence[str] = ()
    kept_target: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, words in vars(self).items():
            if isinstance(words, str):
                raise ValueError(f"{name} is {words!r}, expected a sequence of words such as ({words!r},)")


class LocalBlend:
    """The `Blend` of one call of `prompt_to_prompt.edit`, to be given with its `rules`.

    Cross-attention maps of the conditional rows, as edited, are summed over steps, layers, heads and the words' tokens.
    Source's and target's are pooled (3 x 3, maximum), brought to the latent's size (nearest), divided by their maximum
    and compared with the threshold; where either is above it the target's latent stays, elsewhere it is the source's.
    Words that are taken out are not pooled, as in the official code.

    Args:
        text: the backbone's text encoders.
        sources, targets: B prompts each.
        words: the words of each pair.
        num_steps: number of sampling steps.
        size: height and width of the maps: a quarter of the latent's, 16 x 16 for Stable Diffusion's squares.
        start: share of the steps before the first blend; maps are summed from the first step on.
        threshold: share of the strongest attention above which a place may change.

    Raises:
        ValueError: a word is not in its prompt, the numbers of prompts and words differ, or a share is not between 0
            and 1.
    """

    def __init__(
        self,
        text: Text,
        sources: Sequence[str],
        targets: Sequence[str],
        words: Sequence[BlendWords],
        num_steps: int,
        size: tuple[int, int] = (16, 16),
        start: float = 0.2,
        threshold: float = 0.3,
    ) -> None:
        if not len(sources) == len(targets) == len(words):
            raise ValueError(
                f"{len(sources)} sources, {len(targets)} targets, words of {len(words)} pairs; expected equal numbers"
            )
        for name, share in (("start", start), ("threshold", threshold)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}, expected a share between 0 and 1")
        prompts = [*sources, *targets]
        self._tokens = _tokens(text, prompts, [*(w.source for w in words), *(w.target for w in words)])
        self._kept = _tokens(text, prompts, [*(w.kept_source for w in words), *(w.kept_target for w in words)])
        self._everywhere = torch.tensor([not (w.source or w.target) for w in words])
        self._first = int(start * num_steps)
        self._threshold = threshold
        self._maps = AttentionMaps(size)
        count = len(words)
        self.rules: tuple[Rule, ...] = (Capture(self._maps, slice(2 * count, 4 * count)),)

    def __call__(self, step: int, source: Tensor, target: Tensor) -> Tensor:
        """The target latents [B, 4, h, w] after `step`, outside the mask replaced by the source's."""
        if step < self._first:
            return target
        return torch.where(self.mask((target.shape[-2], target.shape[-1])), target, source)

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Mask of where the picture may change by the maps of all steps so far: bool [B, 1, h, w].

        Raises:
            ValueError: no cross-attention layer has maps of the size that was asked for.
        """
        maps = self._maps.mean()
        heat = F.max_pool2d(token_heat(maps, self._tokens), 3, stride=1, padding=1)
        places = self._above(heat, size) | self._everywhere.to(maps.device)[:, None, None, None]
        return places & ~self._above(token_heat(maps, self._kept), size)

    def _above(self, heat: Tensor, size: tuple[int, int]) -> Tensor:
        """Where the source's or the target's heat [2 B, 1, *], at most 1, is above the threshold: [B, 1, h, w]."""
        source, target = (F.interpolate(heat, size) > self._threshold).chunk(2)
        return source | target


def _tokens(text: Text, prompts: Sequence[str], words: Sequence[Sequence[str]]) -> list[list[int]]:
    """Positions of the words of each prompt, each once."""
    return [
        sorted({position for word in some for position in named_tokens(text, prompt, word)})
        for prompt, some in zip(prompts, words, strict=True)
    ]
