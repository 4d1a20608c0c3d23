"""A plan's figures, as text for a terminal and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.planning.budget import PresetFit
from train.planning.footprint import Flop, Footprint
from train.planning.measure import MeasuredSteps
from train.planning.memory import ADAM, AVERAGE, GB, RESERVE_GB, WEIGHT
from train.planning.options import PlanOptions
from train.planning.shards import Shards
from train.run.optim import lr_at

REACHABLE_TFLOPS = {"bf16": 790.0, "fp16": 790.0, "no": 60.0}
"""TFLOP/s of large matrix products on an H100 by run.mixed_precision; its data sheet says 989 and 67."""


@dataclass(frozen=True)
class Plan:
    """All figures.

    Args:
        config: Config of the run.
        options: Options of the plan.
        trained: Number of trained parameters.
        critic: Number of parameters of the second trained part; 0 where there is none.
        frozen: Bytes of the frozen models by name.
        prompt_bytes: Bytes of a caption's embeddings in shards; 0 where the method reads none.
        footprint: Bytes of a micro batch with float32 weights.
        model: FLOP of a sample.
        executed: FLOP of a sample with what is computed again.
        verdicts: Fit of each preset.
        alone: Fit on one GPU, however many the run expects.
        shards: Findings about the shards; None where they are not here.
        measured: Measured steps; None where they were not asked for.
    """

    config: Any
    options: PlanOptions
    trained: int
    critic: int
    frozen: Mapping[str, int]
    prompt_bytes: int
    footprint: Footprint
    model: Flop
    executed: Flop
    verdicts: Sequence[PresetFit]
    alone: PresetFit
    shards: Shards | None
    measured: MeasuredSteps | None

    @property
    def tflops(self) -> float:
        """TFLOP/s of a GPU at its best."""
        return self.options.tflops or REACHABLE_TFLOPS[self.config.run.mixed_precision]

    @property
    def fitting(self) -> list[str]:
        """Presets that fit, among those that are asked for."""
        return [v.preset for v in self.verdicts if v.fits and self.options.preset in (None, v.preset)]

    @property
    def answer(self) -> str:
        """Yes or no, and why."""
        if self.shards and self.shards.problems:
            return f"no: the shards are not ready: {self.shards.problems[0]}"
        wanted = [v for v in self.verdicts if self.options.preset in (None, v.preset)]
        if self.fitting:
            return f"yes: {', '.join(_with_host(v) for v in wanted if v.fits)}"
        if all(v.refusal for v in wanted):
            return f"no: {wanted[0].preset} is refused: {wanted[0].refusal}"
        cured = [f"{v.preset} with {v.option_that_fits}" for v in wanted if v.option_that_fits]
        other = [v.preset for v in self.verdicts if v.fits]
        ways = cured or [f"the preset {name}" for name in other]
        return (
            f"no: what fits: {', or '.join(ways[:3])}"
            if ways
            else "no: no preset fits, and no option that was tried changes that"
        )

    def seconds(self, gpus: int) -> float:
        """Seconds of an optimizer step on so many GPUs."""
        work = self.config.run.global_batch * self.executed.total / 1e12
        return work / (gpus * self.tflops * self.options.mfu)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint: weights and the average in float32, and the moments; a critic's without average."""
        average = AVERAGE if self.config.ema.decay > 0 else 0
        own = self.trained * (WEIGHT + ADAM[self.config.optim.kind] + average)
        return own + self.critic * (WEIGHT + ADAM["adamw"])

    def json(self) -> dict[str, Any]:
        """The figures as plain values."""
        figures = {name: value for name, value in asdict(self).items() if name != "config"}
        times = {v.preset: self.seconds(v.gpus) for v in self.verdicts if not v.refusal}
        return {"answer": self.answer, "fits": self.fitting, "seconds_per_step": times, **figures}


def _with_host(verdict: PresetFit) -> str:
    """The preset's name, with what it needs of each machine's own memory."""
    host = verdict.memory.host / GB if verdict.memory else 0.0
    return f"{verdict.preset} (and {host:.0f} GB of host memory)" if host >= 1 else verdict.preset


def plan_text(plan: Plan) -> str:
    """The plan for a terminal; its last line is the answer."""
    parts = [_work(plan), _memory(plan), _schedule(plan), _data(plan), _measured(plan), [plan.answer]]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first and the last to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *middle, last in rows:
        cells = [first.ljust(widths[0]), *(x.rjust(w) for x, w in zip(middle, widths[1:-1], strict=True)), last]
        lines.append("  ".join(cells).rstrip())
    return lines


def _work(plan: Plan) -> list[str]:
    run = plan.config.run
    frozen = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in plan.frozen.items())
    critic = f" and {plan.critic / 1e6:,.1f} M of the critic" if plan.critic else ""
    again = plan.executed.total / plan.model.total
    more = f"; {again:.2f} times as many with what checkpointing computes again" if again > 1.001 else ""
    return [
        f"trained: {plan.trained / 1e6:,.1f} M parameters{critic}; frozen: {frozen}",
        f"FLOP: {_tera(plan.model.total)} a sample (forward {_tera(plan.model.forward)}, backward "
        f"{_tera(plan.model.backward)}), {_tera(plan.model.total * run.global_batch)} a step{more}",
        f"activations: {plan.footprint.saved / GB:.2f} GB saved by autograd after the forward pass, at most "
        f"{plan.footprint.peak / GB:.2f} GB live (micro batch {run.micro_batch}, precision {run.mixed_precision})",
    ]


def _tera(flop: float) -> str:
    return f"{flop / 1e12:.2f} TFLOP" if flop >= 1e10 else f"{flop / 1e9:.2f} GFLOP"


def _memory(plan: Plan) -> list[str]:
    shown = next((v.memory for v in plan.verdicts if v.memory), None)
    parts = list(shown.gpu) if shown else []
    rows = [["preset", "GPUs", "micro batches", *parts, "sum", "host", "s/step", "days", "fits"]]
    for v in plan.verdicts:
        if v.memory is None:
            rows.append([v.preset, str(v.gpus), *[""] * (len(parts) + 5), "no: refused, see below"])
            continue
        sizes = [f"{size / GB:.1f}" for size in (*v.memory.gpu.values(), v.memory.total, v.memory.host)]
        seconds = plan.seconds(v.gpus)
        days = f"{seconds * plan.config.run.steps / 86400:.1f}"
        rows.append([v.preset, str(v.gpus), str(v.accumulation), *sizes, f"{seconds:.3g}", days, _fits(v)])
    head = (
        f"GB on each GPU of {plan.options.gpu_memory:g} (less {RESERVE_GB:g} for CUDA itself) and on each host; "
        f"time at {plan.options.mfu:.0%} of {plan.tflops:g} TFLOP/s"
    )
    refused: dict[str, list[str]] = {}
    for v in plan.verdicts:
        if v.refusal:
            refused.setdefault(v.refusal, []).append(v.preset)
    return [head, *aligned(rows), *(f"{', '.join(names)}: {words}" for words, names in refused.items())]


def _fits(verdict: PresetFit) -> str:
    if verdict.fits:
        return "yes"
    return f"no: {verdict.excess_gb:.1f} GB too much" + (
        f"; try {verdict.option_that_fits}" if verdict.option_that_fits else ""
    )


def _schedule(plan: Plan) -> list[str]:
    run, optim = plan.config.run, plan.config.optim
    last = run.steps - 1
    steps = sorted({s for s in (0, optim.warmup_steps, run.steps // 4, run.steps // 2, last) if s <= last})
    rates = ", ".join(f"{lr_at(step, optim, run.steps):.3g} at step {step:,}" for step in steps)
    total = run.steps * run.global_batch
    epochs = ""
    if plan.shards and plan.shards.samples:
        each = plan.shards.samples
        epochs = f", {total / each:,.1f} epochs of {each:,} ({each // run.global_batch:,} steps)"
    warm = f"{optim.warmup_steps:,} steps ({optim.warmup_steps * run.global_batch:,} samples)"
    return [
        f"learning rate: warm-up over {warm}, then {optim.decay}: {rates}",
        f"{run.steps:,} steps of {run.global_batch:,} samples: {total:,} samples{epochs}",
    ]


def _data(plan: Plan) -> list[str]:
    return [*_shards(plan.config.data.shards, plan.shards), *_prompts(plan), *_disk(plan), *_readers(plan)]


def _prompts(plan: Plan) -> Iterator[str]:
    if plan.prompt_bytes:
        each, samples = plan.prompt_bytes / 1e6, plan.shards.samples if plan.shards else 0
        these = f", {samples * plan.prompt_bytes / GB:,.3g} GB of these" if samples else ""
        yield (
            f"cached prompts (data.encode --prompts true): {each:.3g} MB a caption, "
            f"{each * 1e6 / 1e3:,.0f} GB a million{these}"
        )


def _shards(folder: str, shards: Shards | None) -> list[str]:
    if shards is None:
        return [f"shards: none at {folder} on this machine: samples, captions and fingerprints are not checked"]
    each = shards.bytes / max(1, shards.samples)
    cut = "not counted" if shards.cut is None else f"{shards.cut:.1%} not read to the end"
    return [
        f"shards: {shards.samples:,} samples in {shards.shards:,} shards, {shards.bytes / GB:.3g} GB "
        f"({each * 1e6 / GB:,.1f} GB a million samples)",
        f"captions: {cut}; fingerprints: {shards.fingerprints}",
        *(f"wrong: {text}" for text in shards.problems),
        *(f"remark: {text}" for text in shards.remarks),
    ]


def _disk(plan: Plan) -> Iterator[str]:
    log, steps = plan.config.log, plan.config.run.steps
    saved = sorted({*range(log.checkpoint_every, steps, log.checkpoint_every), steps})
    for_good = {step for step in saved if log.keep_every and step % log.keep_every == 0}
    kept = len({*saved[-log.keep_checkpoints :], *for_good}) + (log.best is not None)
    size = plan.checkpoint_bytes / GB
    yield f"checkpoints: {size:.3g} GB each; with {kept} kept and one being written {size * (kept + 1):,.3g} GB"


def _readers(plan: Plan) -> Iterator[str]:
    workers = plan.config.data.workers
    gpus = sorted({v.gpus for v in plan.verdicts})
    readers = ", ".join(f"{n} x {workers} = {n * workers}" for n in gpus) if workers else "in the training processes"
    yield f"readers (ranks x data.workers): {readers}"


def _measured(plan: Plan) -> list[str]:
    found = plan.measured
    if found is None:
        return []
    rows = [["", "counted", "measured", ""]]
    for name in ("saved", "peak"):
        counted, real = getattr(found.counted, name), getattr(found.real, name)
        rows.append([f"{name} bytes", f"{counted:,}", f"{real:,}", _ratio(counted, real)])
    if found.peak is not None and plan.alone.memory is not None:
        total = plan.alone.memory.total
        rows.append(["bytes of the GPU", f"{total:,.0f}", f"{found.peak:,}", _ratio(total, found.peak)])
    counted_seconds = plan.seconds(1)
    rows.append(
        ["seconds a step", f"{counted_seconds:.3g}", f"{found.seconds:.3g}", _ratio(counted_seconds, found.seconds)]
    )
    reached = plan.config.run.global_batch * plan.executed.total / found.seconds / 1e12
    return [
        f"measured: one process on {found.device}",
        *aligned(rows),
        f"reached: {reached:.3g} TFLOP/s (--mfu {reached / plan.tflops:.2g} of --tflops {plan.tflops:g})",
    ]


def _ratio(counted: float, real: float) -> str:
    return f"{counted / real - 1:+.1%}"
