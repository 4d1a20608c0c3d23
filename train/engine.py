"""The training loop. It knows no method: a task gives the loss, the engine everything around it.

A run's state is its folder: the same call on the same folder goes on from the newest checkpoint.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.jobs.errors import work_begins
from data.jobs.files import explained_if_full
from data.shards.dataset import ShardDataset
from data.shards.health import LoaderHealth
from data.shards.loader import batches
from train.rng import StepRandom, seed_step
from train.run.bad_steps import BadSteps
from train.run.checkpoint import EMA, MODEL, OPTIMIZER, Checkpoints, Parts, RunProgress, read_part, read_progress
from train.run.clock import RunClock
from train.run.config import FitConfig, RunConfig
from train.run.ema import Ema
from train.run.flop_rate import FlopRate
from train.run.folder import claim
from train.run.launch import Launch
from train.run.log import RunLog, log_file
from train.run.meters import Meters
from train.run.optim import LossScale, build_optimizer, lr_at, set_lr
from train.run.preemption import Preempted, Preemption
from train.run.preview import preview_grid
from train.run.profiling import Profiling
from train.run.weights import ReplicatedWeights, Weights
from train.task import Batch, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """Result of a run: its folder, steps, samples and seconds."""

    step: int
    samples: int
    folder: Path
    seconds: float


@dataclass
class _Run:
    """A run in motion: what it was given, and what moves."""

    task: Task
    dataset: ShardDataset
    config: FitConfig
    launch: Launch
    checkpoints: Checkpoints
    model: nn.Module  # task.trainable as wrapped for training
    optimizer: Any
    weights: Weights
    ema: Ema
    meters: Meters
    bad_steps: BadSteps
    progress: RunProgress


FlopCount = Callable[[], float] | None
"""Counts the FLOP of a sample's step, for MFU; None does without."""


def fit(
    task: Task,
    dataset: ShardDataset,
    config: FitConfig,
    launch: Launch,
    flop: FlopCount = None,
    initial: Mapping[str, Any] | None = None,
) -> Summary:
    """Train `task` in its run folder, from the newest checkpoint if there is one, to the last step or the time limit.

    Args:
        task: The method.
        dataset: Samples with the fields that the task reads.
        config: The run's config, or a subclass with the method's own fields.
        launch: The processes, made from `config.run`.
        flop: Counter of the FLOP of a sample's step.
        initial: What the weights are that the task begins with, if they are another training's; for environment.json.

    Raises:
        ValueError: the folder belongs to another config, a batch size does not fit, or a checkpoint is incomplete.
        NonFiniteGradient: too many steps in a row had no finite gradient.
        Preempted: the process was asked to stop; all is saved.
    """
    [progress] = deque(fit_steps(task, dataset, config, launch, flop, initial), maxlen=1)
    return Summary(progress.step, progress.samples, Path(config.run.folder), progress.seconds)


def fit_steps(
    task: Task,
    dataset: ShardDataset,
    config: FitConfig,
    launch: Launch,
    flop: FlopCount = None,
    initial: Mapping[str, Any] | None = None,
) -> Generator[RunProgress, None, None]:
    """`fit` for a caller who stands between the steps: the run's progress at the start and after every step.

    A caller who stops early leaves the folder as a crash would. On CUDA a step may still be running when it is yielded.
    """
    folder = Path(config.run.folder)
    with ExitStack() as stack:
        stack.enter_context(explained_if_full(folder))
        claim(folder, config, launch)
        stack.enter_context(log_file(folder, launch))
        log.info(launch.describe(config.run))
        checkpoints = Checkpoints(folder / "checkpoints", config.log.keep_checkpoints, config.log.keep_every)
        newest = _newest(checkpoints, launch)
        progress = read_progress(newest) if newest else RunProgress()
        yield progress
        if _finished(progress, config.run):
            log.info(
                "%s is finished at step %d: raise run.steps or run.time_limit_min to go on",
                folder,
                progress.step,
            )
        else:
            run = _prepare(task, dataset, config, launch, checkpoints)
            _restore(run, newest)
            yield from _train(run, FlopRate(flop, config.log.peak_tflops, launch), initial)
            launch.release()


def _train(run: _Run, flop_rate: FlopRate, initial: Mapping[str, Any] | None) -> Iterator[RunProgress]:
    """The loop, up to the last step or the time limit; yields after every step."""
    work_begins()
    task, config, launch, model, progress = run.task, run.config, run.launch, run.model, run.progress
    seed, global_batch, every = config.run.seed, config.run.global_batch, config.log
    stream = _batches(run)
    folder = Path(config.run.folder)
    with (
        RunLog(folder, config, launch, progress.step, initial) as runlog,
        Preemption() as preemption,
        Profiling(folder, every.profile, launch) as profiling,
    ):
        if every.preview_every and progress.step == 0:
            _preview(run, runlog)
        clock = RunClock(progress, launch.device)
        last = False
        while not last:
            step, keys = progress.step, []
            profiling.before(step)
            set_lr(run.optimizer, lr_at(step, config.optim, config.run.steps))

            # Gradient of the global batch: this rank's micro batches; the last of them averages over the ranks.
            for _ in range(launch.accumulation):
                with clock.waiting():
                    batch = next(stream)
                keys += batch["key"]
                rng = StepRandom(seed, step, global_batch, batch["rows"], launch.device)
                seed_step(seed, step, first_row=int(batch["rows"][0]))
                with launch.accelerator.accumulate(model):
                    with launch.autocast():
                        result = task.loss(model, _to_device(batch, launch.device), rng)
                        loss = torch.stack(list(result.terms.values())).sum()
                    run.weights.backward(launch, loss)
                run.meters.add(loss, result)

            # Update, unless the gradient is not finite. Nothing here waits for the device.
            scale = run.weights.loss_scale.current()
            norm = run.weights.step(launch, config.optim.grad_clip)
            good = torch.isfinite(norm)
            run.ema.update(step)
            run.meters.commit(good, {"grad_norm": norm})
            run.bad_steps.record(step, good, scale, keys)
            progress.step, progress.samples = step + 1, progress.samples + global_batch
            clock.tick()
            runlog.advance()

            # Now and then: numbers, a picture, a checkpoint. The first rank's clock alone tells that time is up.
            stop, late = launch.any(preemption.asked, launch.is_main and clock.is_over(config.run.time_limit_min))
            last = late or progress.step == config.run.steps
            if last or progress.step % every.log_every == 0:
                _log(run, runlog, clock, flop_rate)
            with clock.paused():
                if every.preview_every and (last or progress.step % every.preview_every == 0):
                    _preview(run, runlog)
                if stop or last or progress.step % every.checkpoint_every == 0:
                    _save(run, runlog, clock)
            yield progress
            if stop and not last:
                log.info("stopped at step %d as asked; the same command goes on from there", progress.step)
                raise Preempted
    log.info("ended at step %d of %d after %.1f min", progress.step, config.run.steps, progress.seconds / 60)


def _prepare(task: Task, dataset: ShardDataset, config: FitConfig, launch: Launch, checkpoints: Checkpoints) -> _Run:
    """Wrap what is trained. Frozen models, the loader and the schedule are never prepared."""
    module = task.trainable.to(launch.device).train()
    model, optimizer, weights = _wrap(module, config, launch)
    return _Run(
        task=task,
        dataset=dataset,
        config=config,
        launch=launch,
        checkpoints=checkpoints,
        model=model,
        optimizer=optimizer,
        weights=weights,
        ema=Ema(weights, config.ema),
        meters=Meters(task.groups, launch.device),
        bad_steps=BadSteps(config.optim.max_bad_steps),
        progress=RunProgress(),
    )


def _wrap(module: nn.Module, config: FitConfig, launch: Launch) -> tuple[nn.Module, Any, Weights]:
    optimizer = build_optimizer(module, config.optim)
    if not launch.zero_stage:
        model, optimizer = launch.prepare(module, optimizer)
        scale = LossScale(launch.device, launch.mixed_precision == "fp16")
        return model, optimizer, ReplicatedWeights(module, optimizer, scale)
    from train.run.zero import ShardedWeights, check_fit  # here, since nothing else needs DeepSpeed

    check_fit(module, optimizer)
    model, optimizer = launch.prepare(module, optimizer)
    return model, optimizer, ShardedWeights(module, optimizer)


def _newest(checkpoints: Checkpoints, launch: Launch) -> Path | None:
    """The newest checkpoint that is whole; the first rank reads it through and tells the others."""
    found = checkpoints.newest() if launch.is_main else None
    step = int(launch.from_main(-1 if found is None else read_progress(found).step))
    return None if step < 0 else checkpoints.path(step)


def _restore(run: _Run, newest: Path | None) -> None:
    """Take up the newest checkpoint: weights, averages, optimizer, counts."""
    if run.launch.is_main:
        run.checkpoints.remove_partial()
    if newest is None:
        log.info("starting from step 0")
        return
    if run.ema.enabled:
        run.weights.load(read_part(newest, EMA))
        run.ema.take()
    run.weights.load(read_part(newest, MODEL))
    run.weights.load_optimizer(read_part(newest, OPTIMIZER))
    run.progress = read_progress(newest)
    run.meters.load(run.progress.meters, run.launch)
    averages = ", averages" if run.ema.enabled else ""
    log.info("resuming from %s: weights%s, optimizer, %d samples seen", newest, averages, run.progress.samples)


def _batches(run: _Run) -> Iterator[Batch]:
    """Micro batches of this rank from the samples that are consumed onwards."""
    config, launch = run.config, run.launch
    return batches(
        run.dataset,
        seed=config.run.seed,
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=launch.rank,
        world_size=launch.world_size,
        consumed=run.progress.samples,
        workers=config.data.workers,
        window=config.data.window,
        health=LoaderHealth(config.data.max_bad_share, Path(config.run.folder) / "quarantine.jsonl"),
    )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; on CUDA the host does not wait for the copies."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)

    return {name: move(value) for name, value in batch.items()}


def _log(run: _Run, runlog: RunLog, clock: RunClock, flop_rate: FlopRate) -> None:
    """Read the meters, the one moment at which the host waits for the device. All ranks enter."""
    run.bad_steps.check(run.progress, run.launch)
    means = run.meters.read(run.launch)
    clock.stamp(run.progress, run.launch)
    progress, config = run.progress, run.config
    outer = {
        "step": progress.step,
        "samples": progress.samples,
        "epoch": progress.samples / len(run.dataset),
        "lr": lr_at(progress.step - 1, config.optim, config.run.steps),
        "loss": means.pop("loss", math.nan),
        "grad_norm": means.pop("grad_norm", math.nan),
        "bad_steps": progress.bad_steps,
    }
    if run.weights.loss_scale.enabled:
        outer["loss_scale"] = run.weights.loss_scale.current().item()
    inner = run.task.summarise(means) if means else {}  # empty if every step was left out
    taken = sorted(set(outer) & set(inner))
    if taken:
        raise ValueError(f"the task logs {taken}, names that the engine uses itself: give them others")
    timing = clock.interval(progress)
    runlog.metrics(outer | inner, timing | flop_rate.figures(timing["samples_per_sec"]))


def _preview(run: _Run, runlog: RunLog) -> None:
    """Let the averaged weights draw the first samples of the order, with the same noise each time. All ranks enter."""
    count = min(run.config.log.preview_samples, len(run.dataset))
    pictured = (*run.task.fields, "image") if "image" in run.dataset.available else run.task.fields
    dataset = ShardDataset(run.dataset.folder, tuple(dict.fromkeys(pictured)))
    health = LoaderHealth(max_bad_share=1.0)  # training counts and judges them
    batch = next(batches(dataset, run.config.run.seed, count, count, rank=0, world_size=1, health=health))
    rng = StepRandom(run.config.run.seed, 0, count, batch["rows"], run.launch.device, stream="preview")
    module = run.task.trainable  # without the wrapper: only the first rank needs the result
    module.eval()
    with torch.no_grad(), run.ema.applied(), run.launch.autocast():
        columns = run.task.preview(module, _to_device(batch, run.launch.device), rng)
    module.train()
    if columns and run.launch.is_main:
        runlog.picture(run.progress.step, preview_grid(columns))


def _save(run: _Run, runlog: RunLog, clock: RunClock) -> None:
    """Save a checkpoint. All ranks enter."""
    run.bad_steps.check(run.progress, run.launch)
    clock.stamp(run.progress, run.launch)
    progress = replace(run.progress, meters=run.meters.state(run.launch))
    if run.launch.is_main:
        runlog.flush()
    run.checkpoints.save(progress, _parts(run), run.launch.is_main)
    run.launch.barrier()


def _parts(run: _Run) -> Parts:
    """Parts of a checkpoint of the run."""

    def averages() -> dict[str, Tensor]:
        with run.ema.applied():
            state = run.weights.state()  # all ranks, and the first one copies it before the exchange goes back
            return {n: v.to("cpu", copy=True) for n, v in state.items()} if run.launch.is_main else {}

    averaged: Parts = {EMA: averages} if run.ema.enabled else {}
    return {MODEL: run.weights.state, **averaged, OPTIMIZER: run.weights.optimizer_state}


def _finished(progress: RunProgress, run: RunConfig) -> bool:
    limit = run.time_limit_min
    return progress.step >= run.steps or (limit is not None and progress.seconds >= 60 * limit)
