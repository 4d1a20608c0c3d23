"""Options of a StyleDiffusion training."""

from dataclasses import dataclass, field
from typing import Literal

from models.options import Form, StyleObjective
from train.methods.config import StableDiffusionConfig
from train.run.config import FitConfig


@dataclass(frozen=True)
class PivotModelConfig(StableDiffusionConfig):
    """The frozen Stable Diffusion that made the pivots, which are followed."""

    num_steps: int = 30
    """DDIM steps of the pivots (data.encode --pivot-steps)."""
    steps_offset: int = 1
    """Convention of the pivots' DDIM steps (data.encode --steps-offset)."""
    gradient_checkpointing: bool = False
    """Recompute the UNet's activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True)
class MapperConfig:
    """The mapping network."""

    clip: str = "openai/clip-vit-base-patch16"
    """Folder or hub id of the CLIP whose image tokens the shards hold (data.encode --clip)."""
    form: Form = "modulate"
    """modulate: values = a text + b, as in the official code; replace: the paper's form."""
    width: int = 512
    """Of its blocks."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 8
    """Of attention in each block."""


@dataclass(frozen=True, kw_only=True)
class StyleDiffusionConfig(FitConfig):
    """An amortised StyleDiffusion training.

    Args:
        backbone: The frozen model.
        mapper: What is trained.
        objective: The loss of a step.
        method: Name of the method, by which train.plan and train.export know it.
    """

    backbone: PivotModelConfig = field(default_factory=PivotModelConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)
    objective: StyleObjective = field(default_factory=StyleObjective)
    method: Literal["stylediffusion"] = "stylediffusion"
