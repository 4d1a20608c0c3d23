"""The processes and devices of a run: one wrapper around accelerate's Accelerator, made before the task."""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, nn

from data.jobs.device import choose_device, use_tf32
from data.jobs.sharing import Ranks
from train.run.config import Precision, RunConfig
from train.run.optim import autocast
from train.run.zero_settings import build_whole, compile_nothing, deepspeed_plugin, resolve_zero_settings

PATIENCE = timedelta(hours=2)
"""Longest wait of processes for one that writes or checks a checkpoint."""


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro batches that a process takes for one optimizer step.

    Raises:
        ValueError: the global batch does not divide; the message names the nearest sizes that would.
    """
    if global_batch % world_size:
        below = global_batch // world_size * world_size
        near = [size for size in (below, below + world_size) if size > 0]
        raise ValueError(
            f"run.global_batch {global_batch} does not divide by {world_size} processes; "
            f"the nearest that do: {' and '.join(map(str, near))}"
        )
    share = global_batch // world_size
    if share % micro_batch:
        fits = [size for size in range(1, share + 1) if share % size == 0]
        near = [max(s for s in fits if s < micro_batch), *[s for s in fits if s > micro_batch][:1]]
        raise ValueError(
            f"run.micro_batch {micro_batch} on {world_size} processes does not divide run.global_batch {global_batch}; "
            f"the nearest micro batches that do: {' and '.join(map(str, near))}"
        )
    return share // micro_batch


class Launch:
    """Device, rank and collectives of this process.

    Runs on the device that `run.device` names (`ACCELERATE_USE_CPU=true` forces the CPU, but for DeepSpeed). Works
    under plain python, torchrun and `accelerate launch`, with DeepSpeed where the launcher asks for it; precision and
    batch come from the run's config and never from the launcher.

    Args:
        run: The run's config; sizes that do not divide, another number of processes than it names, or a device that
            torch cannot use, are refused here, before any model is built.
        grad_clip: Largest norm of the gradient, for DeepSpeed, which clips by itself; 0 does not clip.
    """

    def __init__(self, run: RunConfig, grad_clip: float = 0.0) -> None:
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or _device_type(run.device) == "cpu"
        zero = deepspeed_plugin()
        self.zero_stage: int = zero.zero_stage if zero else 0
        # accelerate's own CPU mode knows nothing of DeepSpeed, which needs no more of it than the backend.
        group: dict[str, Any] = {"timeout": PATIENCE} | ({"backend": "gloo"} if cpu and zero else {})
        accelerate_cpu = cpu and not zero
        if cpu and zero:
            compile_nothing()
        self.world_size = PartialState(cpu=accelerate_cpu, **group).num_processes
        if run.processes not in (None, self.world_size):
            raise ValueError(
                f"the launch has {self.world_size} process(es), the run expects run.processes {run.processes}: launch "
                "with torchrun --nproc_per_node or accelerate launch --multi_gpu --num_processes, or change the option"
            )
        self.accumulation = accumulation_steps(run.global_batch, run.micro_batch, self.world_size)
        if zero and run.mixed_precision == "fp16":
            raise ValueError(
                "run.mixed_precision is fp16, which this project scales by itself and not under DeepSpeed: launch with "
                "configs/accelerate/ddp.yaml or one_gpu.yaml, or set run.mixed_precision bf16"
            )
        # accelerate knows fp16 on GPUs alone; autocast and the scale of the loss are this project's own.
        precision = "no" if run.mixed_precision == "fp16" else run.mixed_precision
        _resolve_precision(run.mixed_precision, precision)
        if zero:
            resolve_zero_settings(zero, run.micro_batch, self.accumulation, grad_clip, run.mixed_precision)
        self.mixed_precision: Precision = run.mixed_precision
        self.accelerator = Accelerator(
            cpu=accelerate_cpu,
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(self.accumulation, sync_with_dataloader=False),
            deepspeed_plugin=zero,
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(**group),
            ],
        )
        if zero:
            build_whole()
        self.device: torch.device = self.accelerator.device
        use_tf32(self.device)
        self.rank: int = self.accelerator.process_index
        self.is_main: bool = self.accelerator.is_main_process
        # Of the hosts alone, so that a word between them never waits for a GPU.
        on_gpus = self.world_size > 1 and self.device.type == "cuda"
        self._hosts = torch.distributed.new_group(backend="gloo") if on_gpus else None
        self._start_logging()

    def describe(self, run: RunConfig) -> str:
        """Describe how the global batch lies on the processes."""
        return (
            f"{self.world_size} process(es) on {self.device.type}: global batch {run.global_batch} = "
            f"{self.world_size} x {self.accumulation} accumulated x micro batch {run.micro_batch}; "
            f"precision {run.mixed_precision}{f'; ZeRO-{self.zero_stage}' if self.zero_stage else ''}"
        )

    def _start_logging(self) -> None:
        level = logging.INFO if self.is_main else logging.ERROR
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
        logging.getLogger().setLevel(level)

    def autocast(self) -> torch.autocast:
        """The run's precision for a forward pass, the same under every launch."""
        return autocast(self.device.type, self.mixed_precision)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Wrap the trainable module and its optimizer; nothing else is ever prepared."""
        return self.accelerator.prepare(module, optimizer)

    def release(self) -> None:
        """Forget what was prepared, so that one process can train several parts one after the other."""
        self.accelerator.free_memory()

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the ranks, on every rank."""
        return self.accelerator.reduce(value, reduction="sum") if self.world_size > 1 else value

    def from_main(self, value: float) -> float:
        """The first rank's value, on every rank. All ranks must ask."""
        if self.world_size == 1:
            return value
        mine = torch.tensor(value if self.is_main else 0.0, dtype=torch.float64)
        torch.distributed.all_reduce(mine, group=self._hosts)
        return float(mine)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each of `flags` is true on any rank. All ranks must ask; their devices are not waited for."""
        if self.world_size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._hosts)
        return tuple(bool(flag) for flag in found.tolist())

    def gather(self, values: list[Any]) -> list[Any]:
        """The lists of all ranks in one, on every rank."""
        return gather_object(values) if self.world_size > 1 else values

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.accelerator.wait_for_everyone()


def _device_type(name: str) -> str:
    """The type of device that each process of the run takes.

    Raises:
        ValueError: torch cannot use it here, or processes of MPS are several: there they cannot reduce a gradient.
    """
    kind = choose_device(name, "--run.device").type
    if kind == "mps" and Ranks.of_launch().world_size > 1:
        raise ValueError(
            f"--run.device is {name}, which is MPS here and trains in one process: launch one, or set --run.device cpu"
        )
    return kind


def _resolve_precision(mixed_precision: str, told: str) -> None:
    """Refuse another precision of the launcher, and forget that of an earlier Launch in this process.

    accelerate keeps the first precision as state of the process, though one process may train several parts.

    Args:
        mixed_precision: The run's precision.
        told: The one that accelerate is told.

    Raises:
        ValueError: the launcher asks for another precision than the run.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher not in ("no", mixed_precision):
        raise ValueError(
            f"the launcher asks for mixed_precision {launcher}, the run for run.mixed_precision {mixed_precision}: "
            "launch with --mixed_precision no, the run's config alone decides"
        )
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != told:
        AcceleratorState._reset_state(reset_partial_state=False)
