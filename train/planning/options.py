"""Options of train.plan itself: what there is to train on."""

from dataclasses import dataclass

from train.planning.memory import PRESETS


@dataclass(frozen=True)
class PlanOptions:
    """Machines to train on, and figures that are asked for."""

    gpus: int = 8
    """GPUs of a machine."""
    machines: int = 2
    """Machines of the preset multi_node."""
    gpu_memory: float = 80.0
    """Memory of a GPU in GB (10^9 bytes)."""
    mfu: float = 0.4
    """Share of `tflops` that a training reaches. What gradient checkpointing computes again counts as work here."""
    tflops: float | None = None
    """Peak of a GPU in TFLOP/s. By default 790 for bf16 and 60 for float32: large matrix products on an H100."""
    preset: str | None = None
    """The one of configs/accelerate that has to fit; by default any will do."""
    measure: int = 0
    """Steps that are really trained on this machine, to compare; needs weights and shards."""
    json: str | None = None
    """File for the figures as JSON."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if min(self.gpus, self.machines) < 1 or self.measure < 0:
            raise ValueError(
                f"--gpus is {self.gpus} and --machines {self.machines}, expected at least 1 of each; --measure is "
                f"{self.measure}, expected a number of steps or 0 for none"
            )
        if self.gpu_memory <= 0 or not 0 < self.mfu <= 1 or (self.tflops is not None and self.tflops <= 0):
            raise ValueError(
                f"--gpu_memory {self.gpu_memory} and --tflops {self.tflops} must be above 0, --mfu {self.mfu} a share "
                "between 0 and 1"
            )
        if self.preset not in (None, *PRESETS):
            raise ValueError(f"--preset is {self.preset}, expected one of {', '.join(PRESETS)}")
