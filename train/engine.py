"""The training loop. It knows no method: a task gives the loss, the engine everything around it.

A run's state is its folder: the same call on the same folder goes on from the newest checkpoint.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.jobs.errors import work_begins
from data.jobs.files import explained_if_full
from data.shards.dataset import ON_HOST, ShardDataset
from data.shards.health import LoaderHealth
from data.shards.loader import batches, tell_captions
from train.critic.training import CriticTraining
from train.heldout.figures import HeldOut
from train.heldout.samples import words_of
from train.rng import StepRandom, seed_step
from train.run.bad_steps import BadSteps
from train.run.checkpoint import (
    EMA,
    MODEL,
    OPTIMIZER,
    Checkpoints,
    Judgement,
    Parts,
    Ranking,
    RunProgress,
    heldout_samples,
    read_part,
    read_progress,
)
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
from train.task import Batch, Task, critic_of

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
    critic: CriticTraining  # the task's second part, where it has one
    meters: Meters
    bad_steps: BadSteps
    progress: RunProgress
    heldout: HeldOut | None


FlopCount = Callable[[], float] | None
"""Counts the FLOP of a sample's step, for MFU; None does without."""


def fit(
    task: Task,
    dataset: ShardDataset,
    config: FitConfig,
    launch: Launch,
    flop: FlopCount = None,
    record: Mapping[str, Any] | None = None,
) -> Summary:
    """Train `task` in its run folder, from the newest checkpoint if there is one, to the last step or the time limit.

    Args:
        task: The method.
        dataset: Samples with the fields that the task reads.
        config: The run's config, or a subclass with the method's own fields.
        launch: The processes, made from `config.run`.
        flop: Counter of the FLOP of a sample's step.
        record: What else is to be known of this start, by name, for environment.json.

    Raises:
        ValueError: the folder belongs to another config, a batch size does not fit, or a checkpoint is incomplete.
        NonFiniteGradient: too many steps in a row had no finite gradient.
        Preempted: the process was asked to stop; all is saved.
    """
    [progress] = deque(fit_steps(task, dataset, config, launch, flop, record), maxlen=1)
    return Summary(progress.step, progress.samples, Path(config.run.folder), progress.seconds)


def fit_steps(
    task: Task,
    dataset: ShardDataset,
    config: FitConfig,
    launch: Launch,
    flop: FlopCount = None,
    record: Mapping[str, Any] | None = None,
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
        tell_captions(dataset)
        checkpoints = Checkpoints(
            folder / "checkpoints", config.log.keep_checkpoints, config.log.keep_every, Ranking.of(config)
        )
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
            yield from _train(run, FlopRate(flop, config.log.peak_tflops, launch), record)
            launch.release()


def _train(run: _Run, flop_rate: FlopRate, record: Mapping[str, Any] | None) -> Iterator[RunProgress]:
    """The loop, up to the last step or the time limit; yields after every step."""
    work_begins()
    task, config, launch, model, progress = run.task, run.config, run.launch, run.model, run.progress
    seed, global_batch, every = config.run.seed, config.run.global_batch, config.log
    stream = _batches(run)
    folder = Path(config.run.folder)
    with (
        RunLog(folder, config, launch, progress.step, record) as runlog,
        Preemption() as preemption,
        Profiling(folder, every.profile, launch) as profiling,
    ):
        if every.preview_every and progress.step == 0:
            _preview(run, runlog)
        _validate_first(run, runlog)
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
                    run.weights.backward(launch, run.critic.backward(loss, result.critic))
                run.meters.add(loss, result)

            # Update, unless the gradient is not finite. Nothing here waits for the device.
            scale = run.weights.loss_scale.current()
            norm = run.weights.step(launch, config.optim.grad_clip)
            good = torch.isfinite(norm)
            run.critic.step(good)
            run.ema.update(step)
            run.meters.commit(good, {"grad_norm": norm, **run.critic.figures()})
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
                judgement = _validate(run, runlog, last)
                if _is_best(run, judgement) or stop or last or progress.step % every.checkpoint_every == 0:
                    _save(run, runlog, clock, judgement)
                    runlog.page()
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
        critic=CriticTraining(critic_of(task), launch, config.optim.grad_clip),
        meters=Meters(task.groups, launch.device),
        bad_steps=BadSteps(config.optim.max_bad_steps),
        progress=RunProgress(),
        heldout=HeldOut(config, task, dataset) if config.data.validation else None,
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
    run.critic.load(newest)
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
    """The batch with its tensors on the device but for those of the host; on CUDA it does not wait for the copies."""

    def move(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or name in ON_HOST:
            return value
        return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)

    return {name: move(name, value) for name, value in batch.items()}


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


@contextmanager
def _averaged(run: _Run) -> Iterator[nn.Module]:
    """The trained module with the averaged weights, without its wrapper, to be looked at. All ranks must enter."""
    module = run.task.trainable
    module.eval()
    try:
        with torch.no_grad(), run.ema.applied():
            yield module
    finally:
        module.train()


def _preview(run: _Run, runlog: RunLog) -> None:
    """Let the averaged weights draw the same samples with the same noise each time. All ranks enter."""
    count = run.config.log.preview_samples
    batch = _first_samples(run, count) if run.heldout is None else run.heldout.samples.pictured(count)
    rows = batch["rows"]
    rng = StepRandom(run.config.run.seed, 0, len(rows), rows, run.launch.device, stream="preview")
    with _averaged(run) as module, run.launch.autocast():
        columns = run.task.preview(module, _to_device(batch, run.launch.device), rng)
    if columns and run.launch.is_main:
        words = [] if run.heldout is None else words_of(batch)
        runlog.picture(run.progress.step, preview_grid(columns, words))


def _first_samples(run: _Run, count: int) -> Batch:
    """The first samples of the order, with their pictures where the shards hold them."""
    count = min(count, len(run.dataset))
    pictured = (*run.task.fields, "image") if "image" in run.dataset.available else run.task.fields
    dataset = ShardDataset(run.dataset.folder, tuple(dict.fromkeys(pictured)))
    health = LoaderHealth(max_bad_share=1.0)  # training counts and judges them
    return next(batches(dataset, run.config.run.seed, count, count, rank=0, world_size=1, health=health))


def _validate(run: _Run, runlog: RunLog, last: bool) -> Judgement | None:
    """Look at the held-out samples if it is time. All ranks enter."""
    if run.heldout is None or not run.heldout.is_due(run.progress.step, last):
        return None
    with _averaged(run) as module:
        figures = run.heldout.figures(module, run.launch)
    runlog.validation(run.progress.step, figures)
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}
    return Judgement(heldout_samples(run.config), finite)


def _is_best(run: _Run, judgement: Judgement | None) -> bool:
    """Whether the present weights are the best so far by `log.best`. All ranks must ask."""
    if judgement is None:
        return False
    best = run.launch.is_main and run.checkpoints.would_be_best(judgement)
    if best:
        log.info("step %d has the best %s so far; its checkpoint stays", run.progress.step, run.config.log.best)
    return bool(run.launch.from_main(best))


def _validate_first(run: _Run, runlog: RunLog) -> None:
    """Look at the held-out samples where the run has not yet, and see that `log.best` is one of their figures.

    Raises:
        ValueError: it is not.
    """
    if run.heldout is None or not run.config.log.validate_every:
        return
    if not run.launch.gather(runlog.validated()):
        _validate(run, runlog, last=True)
    figures, best = run.launch.gather(runlog.validated()), run.config.log.best
    if best is not None and best not in figures:  # other options than those of the latest look may give it now
        with _averaged(run) as module:
            figures = list(run.heldout.figures(module, run.launch))
    if best is not None and best not in figures:
        short = ", ".join(name for name in figures if name.count("/") == 1)
        raise ValueError(
            f"log.best is {best}, which is no figure of this run; those are: {short}, and more by group (metrics.jsonl)"
        )


def _save(run: _Run, runlog: RunLog, clock: RunClock, judgement: Judgement | None) -> None:
    """Save a checkpoint. All ranks enter."""
    run.bad_steps.check(run.progress, run.launch)
    clock.stamp(run.progress, run.launch)
    progress = replace(run.progress, meters=run.meters.state(run.launch))
    if run.launch.is_main:
        runlog.flush()
    run.checkpoints.save(progress, _parts(run), run.launch.is_main, judgement)
    run.launch.barrier()


def _parts(run: _Run) -> Parts:
    """Parts of a checkpoint of the run."""

    def averages() -> dict[str, Tensor]:
        with run.ema.applied():
            state = run.weights.state()  # all ranks, and the first one copies it before the exchange goes back
            return {n: v.to("cpu", copy=True) for n, v in state.items()} if run.launch.is_main else {}

    averaged: Parts = {EMA: averages} if run.ema.enabled else {}
    return {MODEL: run.weights.state, **averaged, OPTIMIZER: run.weights.optimizer_state, **run.critic.parts()}


def _finished(progress: RunProgress, run: RunConfig) -> bool:
    limit = run.time_limit_min
    return progress.step >= run.steps or (limit is not None and progress.seconds >= 60 * limit)
