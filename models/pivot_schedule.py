"""How long each timestep is optimised when guided sampling is to follow an image's pivots."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PivotSchedule:
    """Of timesteps i = 0, 1 ... from the noisiest; the form that null-text's and StyleDiffusion's official codes share.

    Args:
        iterations: at most, of the first timestep; timestep i gets ceil(iterations exp(-decay i)).
        decay: of the iterations; 0 gives all timesteps as many.
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
