"""An inverted image: what `TurboEditPipeline.invert` gives and `edit` takes, to be moved, divided, saved and loaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .text import Prompt

_FORMAT = "turboedit inversion 1"


@dataclass
class TurboEditInversion:
    """Result that `invert` (or an edit, for an edit on top of it) gives to `edit`.

    Args:
        timesteps: the S timestep indices, from noisy to clean.
        noises, reconstructions: noise and generator's x0 of each timestep, [B, 4, h, w].
        sigmas: standard deviation of the encoder's Gaussian at each timestep, [B, 4, h, w].
        prompt: the prompt that goes with them, [B, L, D].
        texts: the descriptions of each of the B images; an edit of several attributes at once has several.
        attention: cross-attention maps of the prompt, mean over steps, layers and heads, [B, r*r, L]; None until
            `invert` is told to gather them or the first automatic mask needs them.
    """

    timesteps: tuple[int, ...]
    noises: tuple[Tensor, ...]
    reconstructions: tuple[Tensor, ...]
    sigmas: tuple[Tensor, ...]
    prompt: Prompt
    texts: tuple[tuple[str, ...], ...]
    attention: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice | Sequence[int]) -> "TurboEditInversion":
        """Some of the inverted images, by a slice or their numbers in any order, which may repeat."""
        chosen = list(range(len(self)))[rows] if isinstance(rows, slice) else list(rows)
        part = self._map(lambda tensor: tensor[chosen])
        return replace(part, texts=tuple(self.texts[row] for row in chosen))

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
        )

    def save(self, path: str | Path) -> None:
        """Write everything into one safetensors file: tensors by name, timesteps and texts in its metadata."""
        tensors = {
            f"{name}.{step}": tensor
            for name in ("noises", "reconstructions", "sigmas")
            for step, tensor in enumerate(getattr(self, name))
        }
        optional = {
            "prompt.embeds": self.prompt.embeds,
            "prompt.pooled": self.prompt.pooled,
            "prompt.time_ids": self.prompt.time_ids,
            "attention": self.attention,
        }
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        metadata = {"format": _FORMAT, "timesteps": json.dumps(self.timesteps), "texts": json.dumps(self.texts)}
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        Path(path).write_bytes(content)  # safetensors' own files could be read by their owner alone

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "TurboEditInversion":
        """Read what `save` has written.

        Raises:
            ValueError: the file is not there, or it holds no inversion.
        """
        if not Path(path).is_file():
            raise ValueError(f"there is no inversion at {path}; expected a file that its save has written")
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        except SafetensorError as error:
            raise ValueError(f"{path} is no inversion: it cannot be read as safetensors ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is no inversion: its format is {metadata.get('format')!r}, expected {_FORMAT!r}; "
                "give a file that its save has written"
            )
        timesteps = tuple(json.loads(metadata["timesteps"]))

        def each_step(name: str) -> tuple[Tensor, ...]:
            return tuple(found[f"{name}.{step}"] for step in range(len(timesteps)))

        return cls(
            timesteps,
            noises=each_step("noises"),
            reconstructions=each_step("reconstructions"),
            sigmas=each_step("sigmas"),
            prompt=Prompt(found["prompt.embeds"], found.get("prompt.pooled"), found.get("prompt.time_ids")),
            texts=tuple(tuple(texts) for texts in json.loads(metadata["texts"])),
            attention=found.get("attention"),
        )
