"""An inverted image: what `TurboEditPipeline.invert` gives and `edit` takes, to be moved, divided, saved and loaded."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .inversion_files import read_inversion, write_inversion
from .shapes import Cutout
from .text import Prompt

_FORMAT = "turboedit inversion 1"
_BESIDE_EMBEDS = ("pooled", "time_ids", "mask")


@dataclass
class TurboEditInversion:
    """Result that `invert` (or an edit, for an edit on top of it) gives to `edit`.

    Args:
        timesteps: the S timesteps, from noisy to clean: indices, or real numbers of a flow.
        noises, reconstructions: noise and generator's x0 of each timestep, [B, 4, h, w].
        sigmas: standard deviation of the encoder's Gaussian at each timestep, [B, 4, h, w].
        prompt: the prompt that goes with them, [B, L, D].
        texts: the descriptions of each of the B images; an edit of several attributes at once has several.
        attention: cross-attention maps of the prompt, mean over steps, layers and heads, [B, rows, columns, L]; None
            until `invert` is told to gather them or the first automatic mask needs them.
        cutouts: what each image shows of its photograph; None in files from when that was not kept.
        latent: the images' own latents [B, 4, h, w], as they are before any noise; those of an edit are what it has
            made, in which the source's stand where nothing changed; `reconstructions` are the generator's own all the
            way. None in files from when they were not kept.
        first: the generator's first estimate of an edit as it was before a mask; None where `reconstructions` begins
            with it.
    """

    timesteps: tuple[float, ...]
    noises: tuple[Tensor, ...]
    reconstructions: tuple[Tensor, ...]
    sigmas: tuple[Tensor, ...]
    prompt: Prompt
    texts: tuple[tuple[str, ...], ...]
    attention: Tensor | None = None
    cutouts: tuple[Cutout, ...] | None = None
    latent: Tensor | None = None
    first: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice | Sequence[int]) -> "TurboEditInversion":
        """Some of the inverted images, by a slice or their numbers in any order, which may repeat."""
        chosen = list(range(len(self)))[rows] if isinstance(rows, slice) else list(rows)
        part = self._map(lambda tensor: tensor[chosen])
        cutouts = None if self.cutouts is None else tuple(self.cutouts[row] for row in chosen)
        return replace(part, texts=tuple(self.texts[row] for row in chosen), cutouts=cutouts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.noises[0].shape[-2], self.noises[0].shape[-1]

    def to(self, *args: Any, **kwargs: Any) -> "TurboEditInversion":
        """Move and cast all tensors as `Tensor.to` does."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "TurboEditInversion":
        """The inversion with `function` applied to each of its tensors."""
        return replace(
            self,
            noises=tuple(map(function, self.noises)),
            reconstructions=tuple(map(function, self.reconstructions)),
            sigmas=tuple(map(function, self.sigmas)),
            prompt=self.prompt.map(function),
            attention=None if self.attention is None else function(self.attention),
            latent=None if self.latent is None else function(self.latent),
            first=None if self.first is None else function(self.first),
        )

    def save(self, path: str | Path) -> None:
        """Write everything into one safetensors file: tensors by name, timesteps and texts in its metadata."""
        tensors: dict[str, Tensor | None] = {
            f"{name}.{step}": tensor
            for name in ("noises", "reconstructions", "sigmas")
            for step, tensor in enumerate(getattr(self, name))
        }
        tensors |= {
            "prompt.embeds": self.prompt.embeds,
            **{f"prompt.{name}": getattr(self.prompt, name) for name in _BESIDE_EMBEDS},
            "attention": self.attention,
            "latent": self.latent,
            "first": self.first,
        }
        facts: dict[str, Any] = {"timesteps": self.timesteps, "texts": self.texts}
        if self.cutouts is not None:
            facts["cutouts"] = [asdict(cutout) for cutout in self.cutouts]
        write_inversion(path, _FORMAT, tensors, facts)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "TurboEditInversion":
        """Read what `save` has written.

        Raises:
            ValueError: the file is not there, or it holds no inversion.
        """
        found, facts = read_inversion(path, _FORMAT, device)
        timesteps = tuple(facts["timesteps"])

        def each_step(name: str) -> tuple[Tensor, ...]:
            return tuple(found[f"{name}.{step}"] for step in range(len(timesteps)))

        return cls(
            timesteps,
            noises=each_step("noises"),
            reconstructions=each_step("reconstructions"),
            sigmas=each_step("sigmas"),
            prompt=Prompt(found["prompt.embeds"], *(found.get(f"prompt.{name}") for name in _BESIDE_EMBEDS)),
            texts=tuple(tuple(texts) for texts in facts["texts"]),
            attention=_placed(found.get("attention")),
            cutouts=_cutouts(facts.get("cutouts")),
            latent=found.get("latent"),
            first=found.get("first"),
        )


def _cutouts(facts: list[dict[str, Any]] | None) -> tuple[Cutout, ...] | None:
    if facts is None:
        return None
    return tuple(Cutout(*(tuple(cutout[name]) for name in ("original", "crop", "size"))) for cutout in facts)


def _placed(maps: Tensor | None) -> Tensor | None:
    """Maps [B, rows, columns, L], also of a file from when all maps were squares and had their places in one row."""
    if maps is None or maps.ndim == 4:
        return maps
    side = isqrt(maps.shape[1])
    return maps.unflatten(1, (side, side))
