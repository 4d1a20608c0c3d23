"""Options of networks and algorithms: values alone, so a command line knows them before torch loads.

Timesteps of the few-step generator, the noise encoder's first variance, schedules of fits per timestep (null-text
inversion, StyleDiffusion), kinds of 8 bits, and StyleDiffusion's objective with its ablations.
"""

import math
from dataclasses import dataclass
from typing import Literal

TURBO_TIMESTEPS = (999, 749, 499, 249)
"""Timesteps of a four-step generator, from noisy to clean, such as SDXL-Turbo's."""

INITIAL_LOGVAR = -4.0
"""Log-variance that an untrained noise encoder gives everywhere."""

Quantization = Literal["int8", "fp8"]
"""Kinds of 8 bits in which linear layers of a frozen network may lie (models/quantized.py)."""

Form = Literal["modulate", "replace"]
"""Form of the embeddings that StyleDiffusion's network gives: scale and shift of the prompt's own, or new ones."""

Into = Literal["values", "keys", "both"]
"""Where embeddings go in cross attention. "values" is StyleDiffusion, the others its ablation."""

Automatic = Literal["prediction", "noise", "attention"]
"""Automatic masks: where the generator's first estimates under both prompts differ; where the noise encoder's first
means do (SwiftEdit's, Nguyen et al. 2025); where the words that differ are attended to (TurboEdit's)."""

AUTOMATIC: dict[str, Automatic] = {
    "auto": "prediction",
    "prediction": "prediction",
    "noise": "noise",
    "attention": "attention",
}
"""Automatic masks by the names that users give; "auto" is the one that costs nothing."""

MASK_THRESHOLD = 0.4
"""Share of its strongest place above which an automatic mask lets a place change; settled on validation scenes."""

Outside = Literal["source", "reconstruction"]
"""What stands where an edit changes nothing: the picture's own latent, or the last reconstruction as in the paper."""

UNCHANGED = 0.5
"""Distance of an edit's latent from the reconstruction's, in units of a latent's deviation, at which a place counts as
its own only by a share of 1/e; settled on validation scenes."""


@dataclass(frozen=True)
class PivotSchedule:
    """Schedule over timesteps i = 0, 1 ... from the noisiest, as in null-text's and StyleDiffusion's codes.

    Args:
        iterations: most iterations of the first timestep; timestep i gets ceil(iterations exp(-decay i)).
        decay: rate at which the iterations decay; 0 gives all timesteps as many.
        lr: Adam's at the first timestep; timestep i gets lr (1 - i / 100).
        stop, stop_growth: timestep i ends when its loss is below stop + i stop_growth.
    """

    iterations: int
    decay: float
    lr: float = 1e-2
    stop: float = 1e-5
    stop_growth: float = 2e-5

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.lr <= 0:
            raise ValueError(f"iterations is {self.iterations}, expected at least 0; lr is {self.lr}, expected above 0")

    def at(self, step: int) -> tuple[int, float, float]:
        """(iterations, learning rate, loss that is good enough) of timestep `step`."""
        iterations = math.ceil(self.iterations * math.exp(-self.decay * step))
        return iterations, self.lr * max(0.01, 1 - step / 100), self.stop + step * self.stop_growth


@dataclass(frozen=True)
class FitSchedule(PivotSchedule):
    """Options of fitting one image; defaults of the official code (the paper's text has a learning rate of 1e-4).

    Args:
        form: form of the networks; "direct" learns the embeddings themselves, without a network (the paper's ablation).
        iterations: most iterations of the first timestep; timestep i gets ceil(iterations exp(-decay i)).
        decay: rate at which the iterations decay.
        lr: Adam's at the first timestep; timestep i gets lr (1 - i / 100).
        stop, stop_growth: timestep i ends when its loss is below stop + i stop_growth.
    """

    iterations: int = 100
    decay: float = 0.1
    form: Form | Literal["direct"] = "modulate"


@dataclass(frozen=True)
class StyleObjective:
    """Loss of one DDIM step: L = L_rec + weight L_attn (StyleDiffusion, eq. 5 to 8).

    Args:
        guidance: w of the guided step; 7.5 in the official code.
        attention_weight: weight of the maps' loss; 1 in the official code, 0 leaves it out.
        attention_side: side of the maps that are compared, for latents of the UNet's own size: 16 of 64. Those of
            other shapes have maps that are as much smaller than they are.
        attention_blocks: beginnings of the names of the layers whose maps are compared; the official code leaves out
            the middle block.
        into: where the learned embeddings go. "values" is StyleDiffusion; "keys" and "both" are the paper's ablation.
    """

    guidance: float = 7.5
    attention_weight: float = 1.0
    attention_side: int = 16
    into: Into = "values"
    attention_blocks: tuple[str, ...] = ("down_blocks", "up_blocks")

    def __post_init__(self) -> None:
        if self.attention_weight < 0 or self.guidance < 1:
            raise ValueError(
                f"guidance is {self.guidance}, expected at least 1; attention_weight is {self.attention_weight}, "
                "expected at least 0"
            )
