"""Memory of a training by part, on each GPU and on its machine, for each way to launch it. Arithmetic alone.

Bytes a parameter: plain and distributed data parallel hold weights, gradients, Adam's moments and the average whole, in
float32. DeepSpeed's ZeRO holds bf16 weights under mixed precision and float32 masters beside the moments, and divides
among the GPUs the optimizer's part (stage 1), gradients too (2), weights too (3); Rajbhandari et al. 2020, section 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GB = 1e9

WEIGHT, BF16_WEIGHT, MASTER, AVERAGE = 4, 2, 4, 4
"""Bytes a parameter. Gradients have the dtype of the weights; DeepSpeed's optimizer takes them in float32."""

ADAM = {"adamw": 8, "adamw8bit": 2}
"""Bytes a parameter of Adam's two moments, by optim.kind."""

CRITIC = WEIGHT + WEIGHT + ADAM["adamw"]
"""Bytes a parameter of a second trained part, which every process holds whole, without an average."""

ZERO_BUCKET = 2 * 1e8
"""Parameters whose gradients DeepSpeed reduces at once: reduce_bucket_size of its files, twice for overlap_comm."""

ZERO_LIVE = 5e8
"""Parameters that stage 3 keeps gathered at most: stage3_max_live_parameters of configs/deepspeed."""

RESERVE_GB = 2.0
"""GB of every GPU for CUDA's context, work space of kernels and fragments; an estimate."""


@dataclass(frozen=True)
class Preset:
    """A way to launch a training.

    Args:
        over: GPUs that it takes: one, those of a machine, or those of all machines.
        zero: DeepSpeed's stage; 0 without DeepSpeed.
        offload: Whether the optimizer's part lies in the machine's memory instead of the GPUs', of stage 3 the weights
            too.
    """

    over: Literal["gpu", "machine", "machines"] = "machine"
    zero: int = 0
    offload: bool = False

    def num_gpus(self, per_machine: int, machines: int) -> int:
        """GPUs that take part."""
        return {"gpu": 1, "machine": per_machine, "machines": per_machine * machines}[self.over]


PRESETS: Mapping[str, Preset] = {
    "one_gpu": Preset(over="gpu"),
    "ddp": Preset(),
    "zero1": Preset(zero=1),
    "zero2": Preset(zero=2),
    "zero3": Preset(zero=3),
    "zero2_offload": Preset(zero=2, offload=True),
    "zero3_offload": Preset(zero=3, offload=True),
    "multi_node": Preset(over="machines"),
}
"""Presets by the name of their launch file in configs/accelerate."""


AveragePlace = Literal["gpu", "cpu", "none"]
"""Place of the average of the weights."""


@dataclass(frozen=True)
class TrainedParameters:
    """Parameters that are trained, and how they are kept.

    Args:
        parameters: Number of parameters with gradients (of LoRA, its own alone).
        bf16: Whether run.mixed_precision is bf16.
        adam: Bytes a parameter of the optimizer's moments.
        average: Place of the average of the weights.
    """

    parameters: int
    bf16: bool
    adam: int = ADAM["adamw"]
    average: AveragePlace = "gpu"


@dataclass(frozen=True)
class Memory:
    """Bytes by part, on each GPU and on each machine beside it."""

    gpu: Mapping[str, float]
    host: float

    @property
    def total(self) -> float:
        """Bytes on each GPU."""
        return sum(self.gpu.values())


def memory(
    preset: Preset, gpus: int, per_machine: int, trained: TrainedParameters, others: Mapping[str, float]
) -> Memory:
    """Memory of a training.

    Args:
        preset: Way to launch the training.
        gpus: GPUs that take part.
        per_machine: GPUs of one machine among them.
        trained: Parameters that are trained.
        others: Bytes on each GPU that no preset divides: activations, frozen models.
    """
    zero, n = preset.zero, trained.parameters
    weight = BF16_WEIGHT if zero and trained.bf16 else WEIGHT
    share = 1 / gpus if zero else 1.0
    weights = n * weight * (share if zero == 3 else 1)
    gradients = n * weight * (share if zero >= 2 else 1)
    optimizer = share * n * (trained.adam + (2 * MASTER if zero else 0))  # with the gradients that it takes
    average = 0.0 if trained.average == "none" else share * n * AVERAGE
    average_on_host = trained.average == "cpu" or preset.offload
    weights_on_host = preset.offload and zero == 3
    gpu = {
        "weights": 0.0 if weights_on_host else weights,
        "gradients": 0.0 if preset.offload else gradients,
        "optimizer": 0.0 if preset.offload else optimizer,
        "average": 0.0 if average_on_host else average,
        "buffers": (min(n, ZERO_BUCKET) + (min(n, ZERO_LIVE) if zero == 3 else 0)) * weight if zero else 0.0,
    }
    host = optimizer * preset.offload + average * average_on_host + weights * weights_on_host
    return Memory({**gpu, **others}, host * min(gpus, per_machine))
