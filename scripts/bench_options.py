"""Time, memory and losses of a TurboEdit training with each memory and speed option, beside the plain one.

    python -m scripts.bench_options
    python -m scripts.bench_options --size sdxl --precision bf16 --batch 2 --select [plain,lora,adamw8bit]

The engine trains the same steps once for each option, one after the other in one process: the miniature's student with
its weights, or SDXL's UNet with random ones, on random latents. It prints a table; the last line is one JSON object, in
each result ratio is value / reference, and the reference is the plain run's.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from models.backbone import dtype_of
from models.generator import FewStepGenerator
from scripts.bench.random_backbones import sdxl_generator, write_random_shards
from scripts.bench.results import result
from scripts.bench.timing import launch_on
from train.engine import fit_steps
from train.methods.memory_options import apply_memory_options
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.run.launch import Launch

PLAIN = "plain"
OPTIONS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "plain, again": (),
    "checkpointing of F": ("--encoder.gradient_checkpointing=true",),
    "checkpointing of G": ("--generator.gradient_checkpointing=true",),
    "checkpointing of both": ("--encoder.gradient_checkpointing=true", "--generator.gradient_checkpointing=true"),
    "bf16": ("--run.mixed_precision=bf16", "--generator.dtype=bfloat16"),
    "lora": ("--encoder.lora.rank=16",),
    "adamw8bit": ("--optim.kind=adamw8bit",),
    "adamw not fused": ("--optim.fused=false",),
    "no average": ("--ema.decay=0",),
    "average on the CPU": ("--ema.device=cpu", "--ema.every=10"),
    "compile of both": ("--encoder.compile=true", "--generator.compile=true"),
    "channels-last": (),
    "F recomputed around G": (),
}
"""What the command line of train.turboedit says for each."""


@dataclass(frozen=True)
class Measured:
    """What a run came to.

    Args:
        seconds: Of each step.
        losses: Of each step.
        held_bytes: What stays between the steps: weights, moments, averages.
        step_bytes: What a step needs beside that at its highest: activations and gradients.
    """

    seconds: list[float]
    losses: list[float]
    held_bytes: int
    step_bytes: int


def bench(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["no", "bf16"] = "no",
    size: Literal["miniature", "sdxl"] = "miniature",
    batch: int = 8,
    steps: int = 50,
    lr: float = 1e-5,
    select: tuple[str, ...] = tuple(OPTIONS),
) -> list[dict[str, Any]]:
    """Measure the options.

    Args:
        device: auto takes CUDA where it is.
        precision: of all runs: of the encoder's forward pass, and the dtype of the frozen models.
        size: of the networks.
        batch: samples of a step.
        steps: of each run.
        lr: learning rate; the larger, the faster rounding grows in the losses.
        select: the options to measure; plain is always among them.

    Returns:
        The results that are printed.

    Raises:
        ValueError: an option that is not known, no step at all, or CUDA where there is none.
    """
    unknown = set(select) - set(OPTIONS)
    if unknown:
        raise ValueError(f"select {sorted(unknown)}: expected some of {list(OPTIONS)}")
    if batch < 1 or steps < 1:
        raise ValueError(f"batch {batch}, steps {steps}: expected at least 1")
    launch_on(device)
    dtype = "bfloat16" if precision == "bf16" else "float32"
    common = (
        *("--run.seed=0", f"--run.steps={steps + 2}", f"--run.global_batch={batch}", f"--run.micro_batch={batch}"),
        *(f"--run.mixed_precision={precision}", "--data.workers=0", f"--optim.lr={lr}", "--log.log_every=1"),
        *("--log.preview_every=0", f"--log.checkpoint_every={steps + 2}", f"--generator.dtype={dtype}"),
        *("--generator.path=models/miniature/student", f"--generator.cached_prompts={size == 'sdxl'}"),
    )
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(dict.fromkeys((PLAIN, *select))):
            folders = (f"--run.folder={folder}/run{number}", f"--data.shards={folder}/shards")
            measured[name] = measure(parse(TurboEditConfig, [*common, *folders, *OPTIONS[name]]), size, name)
    print(f"{size}, precision {precision}, batch {batch}, {steps} steps, learning rate {lr}\n\n{table(measured)}\n")
    return results(measured)


def measure(config: TurboEditConfig, size: str, name: str) -> Measured:
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
    return Measured(seconds, [json.loads(line)["loss"] for line in lines][: len(seconds)], held, step_bytes)


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
"""What was considered and is no option of the trainer (docs/options.md)."""


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


def results(measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Four results an option."""
    plain, found = measured[PLAIN], []
    for name, run in measured.items():
        seconds = [statistics.median(side.seconds) for side in (run, plain)]
        found += [
            result(f"{name}: step", seconds[0], "s", seconds[1]),
            result(f"{name}: held", run.held_bytes / 1e9, "GB", plain.held_bytes / 1e9),
            result(f"{name}: step memory", run.step_bytes / 1e9, "GB", plain.step_bytes / 1e9),
            {"name": f"{name}: loss difference", "value": loss_difference(run, plain), "unit": "share"}
            | {"reference": None, "ratio": None},
        ]
    return found


def loss_difference(run: Measured, plain: Measured, steps: int | None = None) -> float:
    """Largest relative difference of a step's loss, among the first `steps`."""
    pairs = zip(run.losses[:steps], plain.losses[:steps], strict=True)
    return max(abs(mine - theirs) / abs(theirs) for mine, theirs in pairs)


def table(measured: Mapping[str, Measured]) -> str:
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
        differences = f"{loss_difference(run, plain, 1):.1g} | {loss_difference(run, plain):.1g}"
        lines.append(f"| {name} | {1e3 * seconds:.0f} | {ratio:.2f} | {memory} | {differences} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print(json.dumps({"results": jsonargparse.auto_cli(bench, args=argv)}))


if __name__ == "__main__":
    main()
