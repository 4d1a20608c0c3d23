"""Whether a training fits the GPUs under each preset, and which option would make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from models.precision import recast
from train.method import Method
from train.planning.footprint import Footprint, footprint
from train.planning.memory import (
    ADAM,
    CRITIC,
    GB,
    PRESETS,
    RESERVE_GB,
    AveragePlace,
    Memory,
    TrainedParameters,
    memory,
)
from train.rng import StepRandom
from train.run.config import EmaConfig, OptimConfig, option_of, with_option
from train.run.launch import accumulation_steps


@dataclass(frozen=True)
class Machine:
    """Machines to train on.

    Args:
        gpus: GPUs of one machine.
        machines: Machines of the preset multi_node.
        gpu_gb: Memory of a GPU in 10^9 bytes.
    """

    gpus: int
    machines: int
    gpu_gb: float


@dataclass(frozen=True)
class PresetFit:
    """A preset for a config.

    Args:
        preset: Name of the preset.
        gpus: GPUs that it takes.
        accumulation: Micro batches of an optimizer step on each; 0 if the launch refuses the batch.
        memory: Memory by part; None if refused.
        excess_gb: GB that are missing on each GPU; at most 0 where it fits.
        refusal: Error of the launch; "" if it takes the batch.
        option_that_fits: First option that makes it fit; "" if it fits or if none was found.
    """

    preset: str
    gpus: int
    accumulation: int = 0
    memory: Memory | None = None
    excess_gb: float = 0.0
    refusal: str = ""
    option_that_fits: str = ""

    @property
    def fits(self) -> bool:
        """Whether the launch takes the batch and the memory suffices."""
        return not self.refusal and self.excess_gb <= 0


class Budget:
    """Judges configs of a method on a machine. What a step holds is counted once for each config."""

    def __init__(self, method: Method, machine: Machine) -> None:
        self.method, self.parts = method, method.plan()
        self.machine = machine
        self._counted: dict[tuple[Any, bool], tuple[Footprint, int, dict[str, int]]] = {}

    def judge(self, config: Any) -> list[PresetFit]:
        """A verdict on each preset, with an option that makes it fit where it does not."""
        found = [self._judge(name, config) for name in PRESETS]
        return [
            replace(v, option_that_fits=self._option_that_fits(v.preset, config)) if _an_option_may_do(v) else v
            for v in found
        ]

    def alone(self, config: Any) -> PresetFit:
        """Fit on one GPU, however many run.processes expects: --measure is compared with it."""
        return self._judge("one_gpu", with_option(config, "run.processes", None))

    def footprint(self, config: Any, bf16_weights: bool = False) -> Footprint:
        """Bytes of a micro batch on a GPU; `bf16_weights` as DeepSpeed keeps them, else float32 ones under autocast."""
        return self._count(config, bf16_weights)[0]

    def _judge(self, name: str, config: Any) -> PresetFit:
        preset, run = PRESETS[name], config.run
        gpus = preset.num_gpus(self.machine.gpus, self.machine.machines)
        try:
            accumulation = accumulation_steps(run.global_batch, run.micro_batch, gpus)
        except ValueError as error:
            return PresetFit(name, gpus, refusal=str(error))
        if run.processes not in (None, gpus):
            return PresetFit(name, gpus, refusal=f"run.processes is {run.processes}, this preset takes {gpus} GPUs")
        eight_bit, half = config.optim.kind == "adamw8bit", run.mixed_precision
        bf16 = half == "bf16"
        adapters = self.method.adapters(config)
        options = {"LoRA": adapters, "optim.kind adamw8bit": eight_bit, "run.mixed_precision fp16": half == "fp16"}
        refused = [name for name, is_set in options.items() if is_set]
        if preset.zero and refused:
            return PresetFit(name, gpus, refusal=f"ZeRO takes no {refused[0]}")
        activations, parameters, others = self._count(config, bf16 and preset.zero > 0)
        place: AveragePlace = "none" if not config.ema.decay else "cpu" if config.ema.device == "cpu" else "gpu"
        trained = TrainedParameters(parameters, bf16, ADAM[config.optim.kind], place)
        needed = memory(preset, gpus, self.machine.gpus, trained, {"activations": activations.peak, **others})
        return PresetFit(name, gpus, accumulation, needed, needed.total / GB + RESERVE_GB - self.machine.gpu_gb)

    def _option_that_fits(self, name: str, config: Any) -> str:
        return next((words for words, other in self._options(config) if self._judge(name, other).fits), "")

    def _options(self, config: Any) -> Iterator[tuple[str, Any]]:
        """Configs that need less memory, and the option that makes them, the cheapest in time first."""
        if config.ema.decay > 0 and config.ema.device != "cpu":
            yield "--ema.device cpu --ema.every 10", with_option(config, "ema.device", "cpu")
        if config.optim.kind == "adamw":
            yield "--optim.kind adamw8bit", with_option(config, "optim.kind", "adamw8bit")
        off = [name for name in self.parts.checkpointing if not option_of(config, name)]
        for name in off:
            yield f"--{name} true", with_option(config, name, True)
        for size in range(config.run.micro_batch - 1, 0, -1):
            if config.run.micro_batch % size == 0:
                yield f"--run.micro_batch {size}", with_option(config, "run.micro_batch", size)
        if off:
            least = with_option(config, "run.micro_batch", 1)
            for name in off:
                least = with_option(least, name, True)
            yield " ".join([*(f"--{name} true" for name in off), "--run.micro_batch 1"]), least

    def _count(self, config: Any, bf16_weights: bool) -> tuple[Footprint, int, dict[str, int]]:
        # Neither the average nor the optimizer changes what is counted.
        key = (replace(config, ema=EmaConfig(), optim=OptimConfig()), bf16_weights)
        if key not in self._counted:
            planned, samples = self.parts.task(config), config.run.micro_batch
            if bf16_weights:
                recast(planned.task.trainable, torch.bfloat16)
            rng = StepRandom(config.run.seed, 0, samples, torch.arange(samples))
            counted = footprint(planned.task, planned.batch(samples), rng, config.run.mixed_precision)
            critic = {"critic": planned.critic * CRITIC} if planned.critic else {}
            self._counted[key] = counted, planned.trained, {**critic, **planned.frozen}
        return self._counted[key]


def _an_option_may_do(verdict: PresetFit) -> bool:
    """Whether an option could make it fit: all of them together free no more than these parts."""
    if verdict.memory is None or verdict.excess_gb <= 0:
        return False
    parts = verdict.memory.gpu
    return verdict.excess_gb < (parts["activations"] + parts["average"] + parts["optimizer"]) / GB
