"""Editors' options as a user chooses them: values alone, so a command line knows them before torch loads."""

from dataclasses import dataclass

from models.options import PivotSchedule

NEGATIVE = "ugly, blurry, black, low res, unrealistic"
"""The negative prompt of Plug-and-Play's official code."""

NEVER = -1.0
"""A loss that is never reached: nothing stops early."""


@dataclass(frozen=True)
class NullTextSchedule(PivotSchedule):
    """Optimisation of each timestep i = 0, 1 ... from the noisiest; the defaults are the official code's.

    Args:
        iterations: N, the most that each timestep gets.
        decay: decay of the iterations from timestep to timestep; the official code has none.
        lr: Adam's at the first timestep; timestep i gets lr (1 - i / 100).
        stop, stop_growth: an image has enough once its loss is below stop + i stop_growth.
    """

    iterations: int = 10
    decay: float = 0.0


@dataclass(frozen=True)
class ImagicConfig:
    """The two fits of Imagic; the defaults are the paper's for Stable Diffusion.

    Raises:
        ValueError: a number that cannot be.
    """

    embedding_steps: int = 1000
    """Steps of Adam in the embedding; 0 leaves the target's."""
    embedding_lr: float = 2e-3
    """Learning rate of these steps."""
    unet_steps: int = 1500
    """Steps of Adam in the UNet; 0 leaves it as it is."""
    unet_lr: float = 5e-7
    """Learning rate of these steps."""
    lora_rank: int | None = None
    """Rank of a LoRA adapter of the attention projections that is trained in the UNet's place; null for all weights."""
    draws: int = 1
    """Draws of timestep and noise in each step."""

    def __post_init__(self) -> None:
        least: dict[str, tuple[float, float]] = {
            "embedding_steps": (self.embedding_steps, 0),
            "unet_steps": (self.unet_steps, 0),
            "lora_rank": (1 if self.lora_rank is None else self.lora_rank, 1),
            "draws": (self.draws, 1),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise ValueError(f"{name} is {value}; expected at least {bound:g}")
        for name in ("embedding_lr", "unet_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a learning rate above 0")


@dataclass(frozen=True)
class InjectionSchedule:
    """Shares of the steps in which the target takes from the source; tau_c and tau_s are an editor's strength."""

    v: float = 0.5
    """tau_v: for mapped values."""
    u: float = 0.5
    """tau_u: for self-attention maps in the unconditional passes (P2Plus); 0 is plain Prompt-to-Prompt."""


@dataclass(frozen=True)
class StyleTaus(InjectionSchedule):
    """All shares of StyleDiffusion's edits, where no strength sets the first two."""

    c: float = 0.6
    """tau_c: for cross-attention maps."""
    s: float = 0.6
    """tau_s: for self-attention maps."""
