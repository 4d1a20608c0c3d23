"""The engine's loop beside a plain loop that computes the same losses."""

import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader

from data.jobs.command import parse
from data.jobs.device import choose_device
from data.shards.dataset import ShardDataset
from data.shards.order import SampleOrder
from models.backbone import dtype_of
from models.generator import FewStepGenerator
from models.noise_encoder import NoiseEncoder
from scripts.bench.choices import GeneratorDtype, generator_dtype
from scripts.bench.random_backbones import REDUCED, SDXL, sdxl_generator, write_random_shards
from scripts.bench.results import result
from scripts.bench.timing import Timing, advance, loss_difference
from train.engine import fit_steps
from train.methods.memory_options import apply_memory_options
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.rng import StepRandom
from train.run.launch import Launch

SIZES = {"reduced": REDUCED, "sdxl": SDXL}
LARGEST_DIFFERENCE = 1e-4
"""Between the two losses of a step, as a share of them, in float32."""

Steps = Iterator[Any]


def measure_loops(
    device: Literal["auto", "cpu", "cuda"],
    size: Literal["miniature", "reduced", "sdxl"],
    precision: Literal["auto", "no", "bf16"],
    frozen: GeneratorDtype,
    batch: int,
    steps: int,
    warmup: int,
    rounds: int,
    lr: float,
    gradient_checkpointing: bool,
) -> list[dict[str, Any]]:
    """Measure both loops.

    Args:
        frozen: Dtype of the engine's frozen models.

    Raises:
        ValueError: The two loops do not have the same losses.
    """
    kind = choose_device(device).type
    mixed = {True: "bf16", False: "no"}[kind == "cuda"] if precision == "auto" else precision
    dtype = generator_dtype(frozen, mixed, kind)
    last = warmup + steps + 1  # the config's last step would save a checkpoint and is never taken
    sides = {"engine": Timing([]), "plain": Timing([])}
    with tempfile.TemporaryDirectory() as folder:
        options = [
            *(f"--data.shards={folder}/shards", f"--run.steps={last}", f"--optim.lr={lr}"),
            *(f"--run.global_batch={batch}", f"--run.micro_batch={batch}", f"--run.mixed_precision={mixed}"),
            f"--run.device={device}",
            *("--generator.path=models/miniature/student", f"--log.checkpoint_every={last}", "--log.preview_every=0"),
            f"--encoder.gradient_checkpointing={gradient_checkpointing}",
            f"--generator.gradient_checkpointing={gradient_checkpointing}",
        ]
        plain = parse(TurboEditConfig, [*options, f"--run.folder={folder}/none", "--generator.dtype=float32"])
        where = Launch(plain.run).device
        write_random_shards(Path(plain.data.shards), _generator(plain, size, where), num_samples=4 * batch)

        def engine(folder: str, *more: str) -> Steps:
            ours = (f"--run.folder={folder}", f"--generator.dtype={dtype}", "--generator.cached_prompts=true")
            return engine_steps(parse(TurboEditConfig, [*options, *ours, *more]), size)

        expected = [float(next_loss) for next_loss in _taken(plain_steps(plain, size, where), last - 1)]
        _taken(engine(f"{folder}/checked", "--log.log_every=1"), last)
        lines = (Path(folder) / "checked/metrics.jsonl").read_text().splitlines()
        difference = loss_difference([json.loads(line)["loss"] for line in lines], expected)
        if (mixed, dtype) == ("no", "float32") and difference > LARGEST_DIFFERENCE:
            raise ValueError(f"losses of a step differ by a share of {difference:.2g}: no time is comparable")
        for number in range(rounds):
            makers: dict[str, Callable[[], Steps]] = {
                "engine": partial(engine, f"{folder}/run{number}", f"--log.log_every={last}"),
                "plain": partial(plain_steps, plain, size, where),
            }
            for name, make in makers.items():
                _measure(make(), sides[name], steps, warmup, where)
    print(f"{size} on {where.type}, precision {mixed}, frozen models of the engine in {dtype}")
    print(f"batch {batch}, {rounds} rounds of {steps} steps")
    return _results(sides, difference, batch * steps, where)


def engine_steps(config: TurboEditConfig, size: str) -> Steps:
    """The engine's; yields at the start and after every step."""
    launch = Launch(config.run)
    generator = _generator(config, size, launch.device)
    task = TurboEditTask(config, launch.device, generator)
    yield from fit_steps(task, ShardDataset(config.data.shards, task.fields), config, launch)


def plain_steps(config: TurboEditConfig, size: str, device: torch.device) -> Steps:
    """The plain loop's; yields the loss of every step."""
    generator = _generator(config, size, device)
    backbone, schedule = generator.backbone, generator.schedule
    timesteps = torch.tensor(generator.timesteps, device=device)
    encoder = NoiseEncoder.from_generator(backbone.unet, schedule, config.encoder.initial_logvar).train()
    apply_memory_options(encoder.unet, config.encoder)
    optim, num_rows = config.optim, config.run.global_batch
    optimizer = torch.optim.AdamW(encoder.parameters(), optim.lr, optim.betas, optim.eps, optim.weight_decay)
    averages = EMAModel(encoder.parameters(), decay=config.ema.decay)

    dataset = ShardDataset(config.data.shards, ("latent", "caption"))
    order = SampleOrder(dataset.sizes, config.run.seed, config.data.window)
    numbers = [order.index(position) for position in range(config.run.steps * num_rows)]
    loader = DataLoader(dataset, num_rows, sampler=numbers, num_workers=config.data.workers)
    for step, batch in enumerate(loader):
        # The engine's draws, so that the losses are the same.
        rng = StepRandom(config.run.seed, step, num_rows, torch.arange(num_rows), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.run.mixed_precision == "bf16"):
            x0 = batch["latent"].to(device)
            prompt = backbone.encode_text(batch["caption"])
            index = rng.integers("timestep", len(timesteps)).to(device)
            noise = rng.normal("sdedit", x0.shape[1:])

            x0_prev = torch.zeros_like(x0)
            later = index > 0
            if later.any():
                before = timesteps[index[later] - 1]
                noisy = schedule.add_noise(x0[later], noise[later], before)
                with torch.no_grad():
                    x0_prev[later] = generator.predict_x0(noisy, prompt[later], before)

            t = timesteps[index]
            mean, logvar = encoder(x0, x0_prev, prompt, t)
            noise = mean + torch.exp(0.5 * logvar) * rng.normal("posterior", x0.shape[1:])
            x0_hat = generator.predict_x0(schedule.add_noise(x0_prev, noise, t), prompt, t)
            mse = F.mse_loss(x0_hat.float(), x0.float())
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
            loss = mse + config.objective.kl_weight * kl
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        averages.step(encoder.parameters())
        yield _figures(loss=loss, mse=mse, kl=kl, noise_mean=noise.mean(), noise_std=noise.std(), norm=norm)["loss"]


def _figures(**values: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def _generator(config: TurboEditConfig, size: str, device: torch.device) -> FewStepGenerator:
    """G with its text encoders, the same weights each time."""
    if size == "miniature":
        return load_generator(config.generator, device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = sdxl_generator(device, dtype_of(config.generator.dtype), SIZES[size], complete=True)
    apply_memory_options(generator.backbone.unet, config.generator)
    return generator


def _taken(running: Steps, count: int) -> list[Any]:
    with closing(running):  # type: ignore[type-var]
        return [next(running) for _ in range(count)]


def _measure(running: Steps, side: Timing, steps: int, warmup: int, device: torch.device) -> None:
    """Time some steps of a loop and let go of all that it holds."""
    with closing(running):  # type: ignore[type-var]
        advance(running, warmup + 1)
        side.measure(partial(advance, running, steps), device)
    gc.collect()


def _results(sides: dict[str, Timing], difference: float, samples: int, device: torch.device) -> list[dict[str, Any]]:
    rates = {name: samples / statistics.median(side.seconds) for name, side in sides.items()}
    peaks = {name: side.peak_bytes / 1e9 for name, side in sides.items()}
    ratios = [plain / ours for ours, plain in zip(sides["engine"].seconds, sides["plain"].seconds, strict=True)]
    print(f"plain / engine, round by round: {' '.join(f'{ratio:.3f}' for ratio in ratios)}\n")
    print("| loop | samples/s |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} |")
    print(f"\nlosses of a step differ by a share of at most {difference:.2g}")
    found = [result("train_vs_plain_loop", rates["engine"], "samples/s", rates["plain"])]
    if device.type == "cuda":
        found.append(result("train_vs_plain_loop_peak_memory", peaks["engine"], "GB", peaks["plain"]))
    return [*found, {"name": "difference_of_losses", "value": difference, "unit": "share of a step's loss"}]
