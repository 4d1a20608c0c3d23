"""Loading an exported mapping network for evaluation, with this clone's code: nothing in the folder is executed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionModel

from eval.harness.exports import read_index
from models.attention_edits import Into
from models.clip import ClipPixels, ImageTokens
from models.value_mapper import AmortisedMapper

_CLASS = "StyleDiffusionPipeline"


@dataclass(frozen=True)
class ExportedMapper:
    """An amortised mapping network, the image tokens that it takes, and the sampling for which it was trained."""

    mapper: nn.Module
    tokens: ImageTokens
    num_steps: int
    steps_offset: int
    guidance: float
    into: Into

    def check(self, num_steps: int, guidance: float, steps_offset: int = 1) -> None:
        """Raises ValueError if it was trained for other steps or another guidance."""
        if self.steps_offset != steps_offset:
            raise ValueError(
                f"the mapping network was trained for steps with an offset of {self.steps_offset}, the evaluation has "
                f"{steps_offset}; train it on shards of data.encode --steps-offset {steps_offset}"
            )
        if (self.num_steps, self.guidance) != (num_steps, guidance):
            raise ValueError(
                f"the mapping network was trained for {self.num_steps} steps at guidance {self.guidance:g}, the "
                f"evaluation has {num_steps} at {guidance:g}; give --num_steps {self.num_steps} --guidance "
                f"{self.guidance:g}, or another export"
            )


def load_mapper(folder: str | Path, device: torch.device | str = "cpu") -> ExportedMapper:
    """The network of an export folder (made by train.export of a train.stylediffusion run), in float32.

    Raises ValueError if it is no such folder.
    """
    entries = read_index(folder, _CLASS)
    mapper = AmortisedMapper.from_pretrained(Path(folder) / "mapper", torch_dtype=torch.float32)
    vision = CLIPVisionModel.from_pretrained(Path(folder) / "image_encoder", dtype=torch.float32)
    pixels = ClipPixels(vision.config.image_size, tuple(entries["image_mean"]), tuple(entries["image_std"]))
    return ExportedMapper(
        mapper.to(device).eval().requires_grad_(False),
        ImageTokens(vision.to(device), pixels),
        entries["num_steps"],
        entries["steps_offset"],
        entries["guidance"],
        entries.get("into", "values"),  # exports of before the option have none
    )
