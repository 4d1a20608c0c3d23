"""Trainings of SDXL's size with every option, and the latency of what they export."""

import gc
import itertools
import re
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from data.jobs.command import parse
from data.jobs.device import choose_device
from data.shards.dataset import ShardDataset
from models.backbone import dtype_of
from scripts.bench.choices import LATENCY, TRAININGS, GeneratorDtype, generator_dtype
from scripts.bench.latency import Latency, measure_latency
from scripts.bench.random_backbones import (
    REDUCED,
    SDXL,
    SdxlSize,
    sdxl_generator,
    write_random_shards,
    write_sdxl_configs,
)
from scripts.bench.results import result
from scripts.bench.timing import Timing, advance
from train.engine import fit_steps
from train.methods.memory_options import apply_memory_options
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.plan import PLAN
from train.methods.turboedit.task import TurboEditTask
from train.planning.flop import model_flop
from train.run.launch import Launch

SIZES = {"sdxl": SDXL, "reduced": REDUCED}
GOALS = {"mfu": 0.5, "samples_per_sec": 42.0, "invert": 0.15, "edit": 0.08}
"""On one H200: of a full fine-tune at micro batch 10, and seconds of an inversion and an edit. The paper's own figures
are 0.668 and 0.508 s on an H100."""

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingFigures:
    """Figures of a training: samples a second, TFLOP a second, highest memory (0 where it is not known)."""

    micro_batch: int
    rate: float
    tflops: float
    peak_gb: float


def measure_full_size(
    device: Literal["auto", "cpu", "cuda"],
    size: Literal["auto", "sdxl", "reduced"],
    precision: Literal["auto", "no", "bf16"],
    frozen: GeneratorDtype,
    micro_batches: tuple[int, ...],
    select: tuple[str, ...],
    steps: int,
    warmup: int,
    peak_tflops: float,
) -> list[dict[str, Any]]:
    """Measure trainings and latency.

    Args:
        frozen: Dtype of the frozen models.

    Raises:
        ValueError: The device is cuda where there is none.
    """
    kind = choose_device(device).type
    on_gpu = kind == "cuda"
    size_name = {True: "sdxl", False: "reduced"}[on_gpu] if size == "auto" else size
    mixed = {True: "bf16", False: "no"}[on_gpu] if precision == "auto" else precision
    dtype = generator_dtype(frozen, mixed, kind)
    where = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(f"{size_name} on {where}, precision {mixed}, frozen models in {dtype}, {steps} steps after {warmup}\n")
    full_size = size_name == "sdxl" and on_gpu
    found = []
    trainings = [name for name in TRAININGS if name in select]
    if trainings:
        print("| training | micro batch | step, ms | samples/s | TFLOP/s | MFU, % | peak memory, GB |")
        print("|---|---|---|---|---|---|---|")
    flop = {part: flop_per_sample(part, SIZES[size_name]) for part in {name.split("+")[0] for name in trainings}}
    for name, micro_batch in itertools.product(trainings, micro_batches):
        work = flop[name.split("+")[0]]
        run = guarded(
            partial(measure_training, device, name, work, SIZES[size_name], mixed, dtype, micro_batch, steps, warmup)
        )
        print(training_row(name, micro_batch, run, peak_tflops if on_gpu else None), flush=True)
        goals = GOALS if full_size and micro_batch == 10 and name.startswith("full") else {}
        found += training_results(f"{name}, micro batch {micro_batch}", run, peak_tflops, goals)
    if LATENCY in select:
        generator = partial(sdxl_generator, kind, dtype_of(dtype), SIZES[size_name], complete=True)
        latencies = guarded(lambda: measure_latency(generator(), steps)) or {}
        print("\n| inversion and edit | inversion, ms | edit, ms | noises differ by |\n|---|---|---|---|")
        for name, run_ in latencies.items():
            print(f"| {name} | {1e3 * run_.invert:.1f} | {1e3 * run_.edit:.1f} | {run_.difference:.1g} |")
            found += latency_results(name, run_, GOALS if full_size else {})
    return found


def guarded(case: Callable[[], T]) -> T | None:
    """Call a case and return what it returns, None where memory does not suffice; memory is free again after it."""
    try:
        outcome: T | None = case()
    except RuntimeError as error:  # torch has a class of its own for CUDA alone
        if not re.search(r"out of memory|can't allocate memory", str(error)):
            raise
        outcome = None
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return outcome


def measure_training(
    device: str,
    name: str,
    flop: float,
    size: SdxlSize,
    precision: str,
    dtype: str,
    micro_batch: int,
    steps: int,
    warmup: int,
) -> TrainingFigures:
    """Train some steps with the engine; the last of the config's would save a checkpoint and is never taken.

    Args:
        flop: FLOP of a sample.
        dtype: Dtype of the frozen models.
    """
    last = steps + warmup + 1
    with tempfile.TemporaryDirectory() as folder:
        options = [
            *(f"--run.folder={folder}/run", f"--data.shards={folder}/shards", f"--run.steps={last}", "--optim.lr=1e-6"),
            *(f"--run.global_batch={micro_batch}", f"--run.micro_batch={micro_batch}", "--data.workers=2"),
            *(f"--run.device={device}", f"--run.mixed_precision={precision}"),
            *(f"--generator.dtype={dtype}", "--generator.cached_prompts=true"),
            *(f"--log.log_every={last}", f"--log.checkpoint_every={last}", "--log.preview_every=0"),
        ]
        config = parse(TurboEditConfig, [*options, *TRAININGS[name]])
        launch = Launch(config.run)
        generator = sdxl_generator(launch.device, dtype_of(config.generator.dtype), size)
        apply_memory_options(generator.backbone.unet, config.generator)
        write_random_shards(Path(config.data.shards), generator, num_samples=4 * micro_batch)
        task = TurboEditTask(config, launch.device, generator)
        side = Timing([])
        with closing(fit_steps(task, ShardDataset(config.data.shards, task.fields), config, launch)) as running:
            next(running)
            advance(running, warmup)
            side.measure(partial(advance, running, steps), launch.device)
        launch.release()
    rate = micro_batch * steps / side.seconds[0]
    peak = side.peak_bytes / 1e9 if launch.device.type == "cuda" else 0.0
    return TrainingFigures(micro_batch, rate, rate * flop / 1e12, peak)


def flop_per_sample(part: str, size: SdxlSize) -> float:
    """Floating-point operations of a training sample on cached prompts; what checkpointing repeats is no work."""
    with tempfile.TemporaryDirectory() as folder:
        unused = ("--run.folder=unused", "--data.shards=unused", "--generator.dtype=float32")
        words = (f"--generator.path={write_sdxl_configs(Path(folder), size)}", "--generator.cached_prompts=true")
        return model_flop(PLAN, parse(TurboEditConfig, [*unused, *words, *TRAININGS[part]])).total


def training_row(name: str, micro_batch: int, run: TrainingFigures | None, peak_tflops: float | None) -> str:
    """A row of the table; without a GPU there is no peak to compare with."""
    if run is None:
        return f"| {name} | {micro_batch} | out of memory | | | | |"
    mfu = "" if peak_tflops is None else f"{100 * run.tflops / peak_tflops:.1f}"
    memory = f"{run.peak_gb:.1f}" if run.peak_gb else ""
    step = f"{1e3 * micro_batch / run.rate:.0f} | {run.rate:.2f} | {run.tflops:.3g}"
    return f"| {name} | {micro_batch} | {step} | {mfu} | {memory} |"


def training_results(
    name: str, run: TrainingFigures | None, peak_tflops: float, goals: dict[str, float]
) -> list[dict[str, Any]]:
    """Results of one training; one of them says where memory did not suffice."""
    if run is None:
        return [{"name": f"{name}: out of memory", "value": None, "unit": None, "reference": None, "ratio": None}]
    found = [
        result(f"{name}: step", run.micro_batch / run.rate, "s", None),
        result(f"{name}: rate", run.rate, "samples/s", goals.get("samples_per_sec")),
        result(f"{name}: work", run.tflops, "TFLOP/s", None),
    ]
    if run.peak_gb:
        found.append(result(f"{name}: MFU", run.tflops / peak_tflops, "share", goals.get("mfu")))
        found.append(result(f"{name}: peak memory", run.peak_gb, "GB", None))
    return found


def latency_results(name: str, run: Latency, goals: dict[str, float]) -> list[dict[str, Any]]:
    """Results of one way to run the networks."""
    return [
        result(f"{name}: inversion", run.invert, "s", goals.get("invert")),
        result(f"{name}: edit", run.edit, "s", goals.get("edit")),
    ]
