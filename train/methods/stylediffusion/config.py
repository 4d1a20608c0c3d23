"""Options of a StyleDiffusion training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from models.options import FitSchedule, Form, StyleObjective
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

    init_from: str | None = None
    """Run folder or export (folder or hub id) whose averaged weights it starts from, with a fresh optimizer; only the
    first start of a run reads it. Null starts from random weights."""
    clip: str = "openai/clip-vit-base-patch16"
    """Folder or hub id of the CLIP whose image tokens the shards hold (data.encode --clip)."""
    form: Form = "modulate"
    """modulate: values = a text + b, as in the official code; replace: the paper's form."""
    width: int = 512
    """Width of its blocks."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 8
    """Heads of attention in each block."""


@dataclass(frozen=True)
class AmortisedObjective(StyleObjective):
    """Loss of one DDIM step, and the latents at which it is taken.

    Args:
        guidance: w of the guided step; 7.5 in the official code.
        attention_weight: weight of the maps' loss; 1 in the official code, 0 leaves it out.
        attention_side: side of the maps that are compared, for latents of the UNet's own size: 16 of 64. Those of
            other shapes have maps that are as much smaller than they are.
        attention_blocks: beginnings of the names of the layers whose maps are compared; the official code leaves out
            the middle block.
        into: where the learned embeddings go. "values" is StyleDiffusion; "keys" and "both" are the paper's ablation.
        own_share: share of the latents that the network's own guided sampling makes from an earlier pivot, instead of
            the pivots themselves; each such step costs two evaluations of the UNet, without gradient.
        own_steps: most steps of that sampling; 1 to so many are drawn, fewer where the noisiest pivot comes first.
    """

    own_share: float = 0.0
    own_steps: int = 30

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        super().__post_init__()
        if not 0 <= self.own_share <= 1:
            raise ValueError(f"objective.own_share is {self.own_share}, expected a share between 0 and 1")
        if self.own_steps < 1:
            raise ValueError(f"objective.own_steps is {self.own_steps}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class StyleDiffusionConfig(FitConfig):
    """An amortised StyleDiffusion training.

    Args:
        backbone: The frozen model.
        mapper: Options of the mapping network, which is trained.
        objective: The loss of a step.
        method: Name of the method, by which train.plan and train.export know it.
    """

    former: ClassVar[Mapping[str, Any]] = {"objective.own_share": 0.0, "objective.own_steps": 30}
    init_option: ClassVar[str] = "mapper.init_from"
    backbone: PivotModelConfig = field(default_factory=PivotModelConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)
    objective: AmortisedObjective = field(default_factory=AmortisedObjective)
    method: Literal["stylediffusion"] = "stylediffusion"


@dataclass(frozen=True, kw_only=True)
class ImageFitsConfig:
    """Fits of the images in a folder of shards.

    Args:
        shards: Folder with pivots and image tokens (data.encode --pivots true --clip CLIP).
        out: Folder of the fits.
        num: Number of images, from the first; all by default.
        batch: Number of images that are fitted side by side, each on its own; a killed process loses at most as many.
        seed: Seed of the networks' first weights.
        device: Place where the fits run; "auto" takes each process's own GPU if there is one.
        backbone: The frozen model.
        objective: The loss of a step.
        schedule: Iterations and learning rates.
    """

    shards: str
    out: str
    num: int | None = None
    batch: int = 1
    seed: int = 0
    device: str = "auto"
    backbone: PivotModelConfig = field(default_factory=PivotModelConfig)
    objective: StyleObjective = field(default_factory=StyleObjective)
    schedule: FitSchedule = field(default_factory=FitSchedule)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.batch < 1 or (self.num is not None and self.num < 1):
            raise ValueError(f"batch is {self.batch} and num is {self.num}, expected at least 1")
