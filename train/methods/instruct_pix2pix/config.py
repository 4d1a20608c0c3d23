"""Options of an InstructPix2Pix training."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from train.methods.config import LoraConfig, StableDiffusionConfig
from train.run.config import FitConfig


@dataclass(frozen=True)
class UNetConfig:
    """The UNet, which is what is trained."""

    init_from: str | None = None
    """Run folder or export (folder or hub id) whose averaged weights it starts from, with a fresh optimizer; only the
    first start of a run reads it. Null starts from the backbone's."""
    gradient_checkpointing: bool = False
    """Recompute its activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile of its transformer blocks; the first steps then take minutes (docs/options.md)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters over the backbone's frozen weights; conv_in is trained in full."""


@dataclass(frozen=True)
class DropoutConfig:
    """Conditions left out at random, so that both guidances can lead away from them."""

    dropout: float = 0.05
    """p: the order is left out of p of the samples, the picture of p, and both of p; 0 teaches no guidance."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: the three shares are more than all samples, or below none.
        """
        if not 0 <= self.dropout <= 1 / 3:
            raise ValueError(
                f"objective.dropout is {self.dropout}, expected 0 to 1/3: it is left out of the order, the picture "
                "and both, each of its own samples"
            )


@dataclass(frozen=True, kw_only=True)
class InstructPix2PixConfig(FitConfig):
    """An InstructPix2Pix training.

    Args:
        backbone: The model that it starts from.
        unet: Options of the UNet, which is trained.
        objective: The loss.
        method: Name of the method, by which train.plan and train.export know it.
    """

    init_option: ClassVar[str] = "unet.init_from"
    backbone: StableDiffusionConfig = field(default_factory=StableDiffusionConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    objective: DropoutConfig = field(default_factory=DropoutConfig)
    method: Literal["instruct_pix2pix"] = "instruct_pix2pix"

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            ValueError: the UNet would compute with 16-bit and float32 weights without autocast.
        """
        super().__post_init__()
        if self.unet.lora.rank and self.backbone.dtype != "float32" and self.run.mixed_precision == "no":
            raise ValueError(
                f"with unet.lora the UNet has the backbone's {self.backbone.dtype} weights beside float32 ones of its "
                "own: set run.mixed_precision bf16, or backbone.dtype float32"
            )
