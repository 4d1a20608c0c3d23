"""Prompts: what a backbone's text encoders give, and the two ways in which the Stable Diffusion family makes them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .precision import without_autocast
from .shapes import SizeConditioning, Sizes
from .words import token_limit


@dataclass(frozen=True)
class Prompt:
    """Text conditioning of a batch.

    Args:
        embeds: token embeddings for cross attention, [B, L, D].
        pooled: pooled text embedding, [B, P] (SDXL), or None (SD).
        time_ids: SDXL's micro-conditioning in pixels, [B, 6], or None: original height, width, crop top, left, target
            height, width.
        mask: which of the L tokens are there, bool [B, L], or None where all are read, padding too (SD, SDXL). It may
            lie on the host, which then knows without waiting how many tokens each text has (Z-Image).
    """

    embeds: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def map(self, function: Any) -> "Prompt":
        """The prompt with `function` applied to each of its tensors."""
        rest = (None if x is None else function(x) for x in (self.pooled, self.time_ids, self.mask))
        return Prompt(function(self.embeds), *rest)

    def __getitem__(self, rows: Any) -> "Prompt":
        """The prompt of some rows; those of a tensor on the host are taken on any device without waiting for it."""
        if not isinstance(rows, Tensor):
            return self.map(lambda x: x[rows])
        at_once = rows.device.type == "cpu"
        return self.map(lambda x: x[rows.to(x.device, non_blocking=at_once)])

    def to(self, *args: Any, **kwargs: Any) -> "Prompt":
        """Move and cast all tensors as `Tensor.to` does, but for the mask, which stays what and where it is."""
        return replace(replace(self, mask=None).map(lambda x: x.to(*args, **kwargs)), mask=self.mask)

    def unet_inputs(self) -> dict[str, Any]:
        """Keyword arguments with which a UNet2DConditionModel takes this prompt."""
        inputs: dict[str, Any] = {"encoder_hidden_states": self.embeds}
        if self.pooled is not None:
            inputs["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": self.time_ids}
        return inputs


def concatenate(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts one after another along the batch, in their own dtype also under autocast."""
    first = prompts[0]
    with without_autocast(first.embeds.device):  # a CPU's refuses to join tensors of another dtype than its own
        pooled = [p.pooled for p in prompts if p.pooled is not None]
        time_ids = [p.time_ids for p in prompts if p.time_ids is not None]
        masks = [p.mask for p in prompts if p.mask is not None]
        return Prompt(
            torch.cat([p.embeds for p in prompts]),
            None if first.pooled is None else torch.cat(pooled),
            None if first.time_ids is None else torch.cat(time_ids),
            None if first.mask is None else torch.cat(masks),
        )


def interpolate(source: Prompt, targets: Sequence[Prompt], strengths: Sequence[float]) -> Prompt:
    """Prompt source + sum_k strength_k (target_k - source), for token and pooled embeddings alike.

    It has the source's micro-conditioning, as the picture keeps its size, and the tokens that any of the prompts has.
    Strengths may lie outside [0, 1]. Raises ValueError if the number of strengths is not that of the targets.
    """
    if len(targets) != len(strengths):
        raise ValueError(
            f"{len(targets)} target prompts but {len(strengths)} strengths; give one strength for each target"
        )

    def mix(x: Tensor, ys: Sequence[Tensor]) -> Tensor:
        return x + sum(s * (y - x) for s, y in zip(strengths, ys, strict=True))

    if len(targets) == 1 and strengths[0] == 1.0:
        return replace(targets[0], time_ids=source.time_ids)
    pooled = source.pooled
    if pooled is not None:
        pooled = mix(pooled, [p.pooled for p in targets if p.pooled is not None])
    mask = source.mask
    if mask is not None:
        mask = torch.stack([mask, *(p.mask for p in targets if p.mask is not None)]).any(0)
    return Prompt(mix(source.embeds, [p.embeds for p in targets]), pooled, source.time_ids, mask)


class Text(Protocol):
    """The text encoders of a family with their tokenizers."""

    @property
    def tokenizers(self) -> Sequence[Any]:
        """The tokenizers, in the order of the encoders."""

    @property
    def encoders(self) -> Sequence[Any]:
        """The networks."""

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts` for pictures of a `size`; `device` is where hooks move weights, if not there."""


@contextmanager
def silent(log: logging.Logger) -> Iterator[None]:
    """Within the block `log` says nothing."""
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def load_tokenizer(path: str, subfolder: str = "", kind: Any = CLIPTokenizer) -> Any:
    """The tokenizer of class `kind` of a folder or hub id, by default CLIP's.

    Raises:
        ValueError: its files are not there. transformers then gives one that knows its special tokens alone, for which
            every text is empty.
    """
    tokenizer = kind.from_pretrained(path, subfolder=subfolder)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        place = f"{path}/{subfolder}" if subfolder else path
        raise ValueError(
            f"{place} has no vocabulary: neither tokenizer.json nor vocab.json and merges.txt are there; offline, a "
            "hub id has to lie in the cache with all of its files"
        )
    return tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Token ids [B, token_limit], padded and truncated as the Stable Diffusion pipelines do; nothing waits."""
    ids = tokenizer(
        list(texts), padding="max_length", max_length=token_limit(tokenizer), truncation=True, return_tensors="pt"
    ).input_ids
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)


def micro_conditioning(pooled: Tensor, size: Sizes) -> Tensor:
    """SDXL's time_ids [B, 6] for pictures of a `size`, one for all or one for each, beside pooled embeddings [B, P].

    Raises:
        ValueError: another number of sizes.
    """
    if isinstance(size, SizeConditioning):
        # Made on the device: a copy of numbers of the host would wait for it.
        return torch.stack([pooled.new_full((len(pooled),), number) for number in _numbers(size)], dim=1)
    if len(size) != len(pooled):
        raise ValueError(f"{len(size)} sizes of pictures for {len(pooled)} texts; give one, or one for each text")
    numbers = torch.tensor([_numbers(one) for one in size], dtype=pooled.dtype)
    return numbers.pin_memory().to(pooled.device, non_blocking=True) if pooled.is_cuda else numbers.to(pooled.device)


def _numbers(size: SizeConditioning) -> tuple[int, ...]:
    return (*size.original, *size.crop, *size.target)


class ClipText:
    """Stable Diffusion: the last hidden state (after the final norm) of one CLIP text encoder."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizers = (tokenizer,)
        self.encoders = (encoder,)

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`, to which sizes are nothing; `device` is where hooks move weights, if not there."""
        encoder = self.encoders[0]
        return Prompt(encoder(tokenize(self.tokenizers[0], texts, device or encoder.device)).last_hidden_state)


class DualClipText:
    """SDXL: penultimate hidden states of two CLIP text encoders side by side, pooled projection of the second."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
        self.tokenizers = tuple(tokenizers)
        self.encoders = tuple(encoders)

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts` for pictures of a `size`; `device` is where hooks move weights, if not there."""
        hidden = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            output = encoder(tokenize(tokenizer, texts, device or encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return Prompt(torch.cat(hidden, dim=-1), output.text_embeds, micro_conditioning(output.text_embeds, size))
