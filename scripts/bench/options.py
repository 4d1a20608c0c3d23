"""Time, memory and losses of a TurboEdit training with each memory and speed option."""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from data.jobs.command import parse
from data.jobs.device import choose_device
from data.shards.dataset import ShardDataset
from models.backbone import dtype_of
from models.generator import FewStepGenerator
from scripts.bench.choices import OPTIONS, PLAIN, GeneratorDtype, generator_dtype
from scripts.bench.random_backbones import sdxl_generator, write_random_shards
from scripts.bench.results import result
from scripts.bench.timing import loss_difference
from train.engine import fit_steps
from train.methods.memory_options import apply_memory_options
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.run.launch import Launch


@dataclass(frozen=True)
class OptionRun:
    """Seconds, losses and memory of one run.

    Args:
        seconds: Seconds of each step.
        losses: Loss of each step.
        held_bytes: Bytes that stay between the steps: weights, moments, averages.
        step_bytes: Bytes that a step needs beside that at its highest: activations and gradients.
    """

    seconds: list[float]
    losses: list[float]
    held_bytes: int
    step_bytes: int


def measure_options(
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["no", "bf16"],
    frozen: GeneratorDtype,
    size: Literal["miniature", "sdxl"],
    batch: int,
    steps: int,
    lr: float,
    select: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Measure the options.

    Args:
        frozen: Dtype of the frozen models.

    Raises:
        ValueError: The device is cuda where there is none.
    """
    dtype = generator_dtype(frozen, precision, choose_device(device).type)
    common = (
        *("--run.seed=0", f"--run.steps={steps + 2}", f"--run.global_batch={batch}", f"--run.micro_batch={batch}"),
        *(f"--run.device={device}", f"--run.mixed_precision={precision}", f"--optim.lr={lr}"),
        *("--data.workers=0", "--log.log_every=1"),
        *("--log.preview_every=0", f"--log.checkpoint_every={steps + 2}", f"--generator.dtype={dtype}"),
        *("--generator.path=models/miniature/student", f"--generator.cached_prompts={size == 'sdxl'}"),
    )
    measured: dict[str, OptionRun] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(dict.fromkeys((PLAIN, *select))):
            folders = (f"--run.folder={folder}/run{number}", f"--data.shards={folder}/shards")
            measured[name] = measure_option(parse(TurboEditConfig, [*common, *folders, *OPTIONS[name]]), size, name)
    print(f"{size}, precision {precision}, frozen models in {dtype}, batch {batch}, {steps} steps, learning rate {lr}")
    print(f"\n{table(measured)}\n")
    return option_results(measured)


def measure_option(config: TurboEditConfig, size: str, name: str) -> OptionRun:
    """Train the config's steps but the last two: one is measured for its memory, the last would save a checkpoint."""
    launch = Launch(config.run)
    generator = build_generator(config, size, launch.device)
    if not Path(config.data.shards).exists():
        write_random_shards(Path(config.data.shards), generator, num_samples=4 * config.run.global_batch)
    task = TurboEditTask(config, launch.device, generator)
    if name in CHANGES:
        CHANGES[name](task)
    dataset = ShardDataset(config.data.shards, task.fields)
    with closing(fit_steps(task, dataset, config, launch)) as running:
        next(running)
        seconds = [_timed(running, launch.device) for _ in range(config.run.steps - 2)]
        held = _held_bytes(launch.device)
        step_bytes = _step_bytes(running, launch.device)
    launch.release()
    lines = (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()
    return OptionRun(seconds, [json.loads(line)["loss"] for line in lines][: len(seconds)], held, step_bytes)


def build_generator(config: TurboEditConfig, size: str, device: torch.device) -> FewStepGenerator:
    """G with the config's options, the same weights each time."""
    if size == "miniature":
        return load_generator(config.generator, device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = sdxl_generator(device, dtype_of(config.generator.dtype))
    apply_memory_options(generator.backbone.unet, config.generator)
    return generator


def _channels_last(task: TurboEditTask) -> None:
    for module in (task.trainable, task.backbone.unet):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _recompute_around_generator(task: TurboEditTask) -> None:
    """Keep nothing of F while G's activations are there: G's backward pass frees them before F runs once more."""
    setattr(task.trainable, "forward", partial(checkpoint, task.trainable.forward, use_reentrant=False))  # noqa: B010


CHANGES: Mapping[str, Callable[[TurboEditTask], None]] = {
    "channels-last": _channels_last,
    "F recomputed around G": _recompute_around_generator,
}
"""Changes that were considered and are no options of the trainer (docs/options.md)."""


def _timed(running: Iterator[Any], device: torch.device) -> float:
    """Seconds of a step: of the clock on CUDA, of this process's CPU time on a CPU, which others may share."""
    if device.type == "cpu":
        start = time.process_time()
        next(running)
        return time.process_time() - start
    start = time.perf_counter()
    next(running)
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _held_bytes(device: torch.device) -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    kinds = (torch.Tensor, torch.nn.Parameter)  # not their subclasses: what compiling leaves behind holds no memory
    alive = (found.untyped_storage() for found in gc.get_objects() if type(found) in kinds)
    return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


def _step_bytes(running: Iterator[Any], device: torch.device) -> int:
    """The highest that one step allocates above what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        next(running)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        next(running)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def option_results(measured: Mapping[str, OptionRun]) -> list[dict[str, Any]]:
    """Results of the runs, four for each option."""
    plain, found = measured[PLAIN], []
    for name, run in measured.items():
        seconds = [statistics.median(side.seconds) for side in (run, plain)]
        found += [
            result(f"{name}: step", seconds[0], "s", seconds[1]),
            result(f"{name}: held", run.held_bytes / 1e9, "GB", plain.held_bytes / 1e9),
            result(f"{name}: step memory", run.step_bytes / 1e9, "GB", plain.step_bytes / 1e9),
            {"name": f"{name}: loss difference", "value": loss_difference(run.losses, plain.losses), "unit": "share"}
            | {"reference": None, "ratio": None},
        ]
    return found


def table(measured: Mapping[str, OptionRun]) -> str:
    """A Markdown table, a row an option."""
    plain = measured[PLAIN]
    lines = [
        "| option | step, ms | to plain | held, MB | activations and gradients, MB | first loss differs by | losses |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, run in measured.items():
        seconds = statistics.median(run.seconds)
        ratio = seconds / statistics.median(plain.seconds)
        memory = f"{run.held_bytes / 1e6:.1f} | {run.step_bytes / 1e6:.1f}"
        differences = (
            f"{loss_difference(run.losses[:1], plain.losses[:1]):.1g} | {loss_difference(run.losses, plain.losses):.1g}"
        )
        lines.append(f"| {name} | {1e3 * seconds:.0f} | {ratio:.2f} | {memory} | {differences} |")
    return "\n".join(lines)
