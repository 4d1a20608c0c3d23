"""An image inverted by StyleDiffusion: where sampling starts and the mapped values of every step."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .inversion_files import read_inversion, write_inversion
from .prompt_to_prompt import Trajectory
from .text import Prompt
from .value_mapper import Modulation

_FORMAT = "stylediffusion inversion 1"


@dataclass(frozen=True)
class StyleDiffusionInversion:
    """Result that `invert` gives to `edit` and `reconstruct`.

    Args:
        trajectory: where sampling starts, and the mapped values of every step.
        texts: descriptions of the B images.
    """

    trajectory: Trajectory
    texts: tuple[str, ...]

    @property
    def values(self) -> tuple[Modulation, ...]:
        """The mapped values of every step."""
        return cast(tuple[Modulation, ...], self.trajectory.values)

    def to(self, *args: Any, **kwargs: Any) -> "StyleDiffusionInversion":
        """Move and cast all tensors as `Tensor.to` does."""
        before = self.trajectory
        null = before.nulls[0].to(*args, **kwargs)  # every step has the same
        after = replace(
            before,
            start=before.start.to(*args, **kwargs),
            prompt=before.prompt.to(*args, **kwargs),
            nulls=(null,) * len(before.nulls),
            values=tuple(Modulation(v.scale.to(*args, **kwargs), v.shift.to(*args, **kwargs)) for v in self.values),
        )
        return replace(self, trajectory=after)

    def save(self, path: str | Path) -> None:
        """Write everything into one safetensors file: tensors by name, texts in its metadata."""
        tensors: dict[str, Tensor | None] = {
            "start": self.trajectory.start,
            "prompt": self.trajectory.prompt.embeds,
            "null": self.trajectory.nulls[0].embeds,
            "scale": torch.stack([value.scale for value in self.values]),
            "shift": torch.stack([value.shift for value in self.values]),
        }
        write_inversion(path, _FORMAT, tensors, {"texts": self.texts, "into": self.trajectory.into})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "StyleDiffusionInversion":
        """Read what `save` has written.

        Raises:
            ValueError: the file is not there, or it holds no inversion.
        """
        found, facts = read_inversion(path, _FORMAT, device)
        values = tuple(map(Modulation, found["scale"], found["shift"]))
        nulls = (Prompt(found["null"]),) * len(values)
        trajectory = Trajectory(found["start"], Prompt(found["prompt"]), nulls, values, facts["into"])
        return cls(trajectory, tuple(facts["texts"]))
