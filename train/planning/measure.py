"""Real steps of a plan's config on this machine, beside what was counted for them."""

import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from data.shards.loader import batches
from train.engine import fit_steps
from train.method import Method
from train.planning.footprint import Device, Footprint, footprint
from train.rng import StepRandom
from train.run.launch import Launch


@dataclass(frozen=True)
class MeasuredSteps:
    """One process's steps.

    Args:
        device: "cpu" or the GPU's name.
        counted: Bytes of a micro batch without data.
        real: Bytes of a micro batch as autograd and torch really held them.
        seconds: Seconds of a step, on average without the first one.
        peak: Bytes that torch had allocated at most; None on a CPU.
    """

    device: str
    counted: Footprint
    real: Footprint
    seconds: float
    peak: int | None


def measure_steps(method: Method, config: Any, steps: int) -> MeasuredSteps:
    """Train `steps` steps after a first one, in a folder that is removed.

    Raises:
        ValueError: shards that do not fit, or a batch that does not divide.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Two more steps than are taken: a run that ends writes a checkpoint.
        run = replace(config.run, folder=folder, steps=steps + 2, processes=None, time_limit_min=None)
        log = replace(
            config.log, log_every=steps + 2, preview_every=0, checkpoint_every=steps + 2, trackers=(), best=None
        )
        data = replace(config.data, validation=None, probe=None, attributes=None)
        config = method.plan().steady(replace(config, run=run, log=log, data=data))
        launch = Launch(run)
        task, dataset = method.load(config, launch.device)
        task.trainable.to(launch.device)
        samples, on_gpu = run.micro_batch, launch.device.type == "cuda"

        def random(device: torch.device | str) -> StepRandom:
            return StepRandom(run.seed, 0, samples, torch.arange(samples), device)

        batch = next(batches(dataset, run.seed, samples, samples, rank=0, world_size=1))
        batch = {name: x.to(launch.device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        device: Device = "cuda" if on_gpu else "cpu"
        real = footprint(task, batch, random(launch.device), run.mixed_precision, device)
        planned = method.plan().task(config)
        counted = footprint(planned.task, planned.batch(samples), random("cpu"), run.mixed_precision, device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with closing(fit_steps(task, dataset, config, launch)) as progress:
            for _ in range(2):  # the start, and the step that warms up
                next(progress)
            seconds = _seconds(progress, steps, on_gpu)
    return MeasuredSteps(
        torch.cuda.get_device_name() if on_gpu else "cpu",
        counted,
        real,
        seconds,
        torch.cuda.max_memory_allocated() if on_gpu else None,
    )


def _seconds(progress: Any, steps: int, on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        next(progress)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps
