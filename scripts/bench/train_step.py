"""The engine's step beside the bare sum of its parts."""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.jobs.device import choose_device
from data.shards.dataset import ShardDataset
from models.backbone import dtype_of
from models.noise_encoder import NoiseEncoder
from models.text import Prompt, micro_conditioning
from scripts.bench.choices import GeneratorDtype, generator_dtype
from scripts.bench.random_backbones import miniature_generator, sdxl_generator, write_random_shards
from scripts.bench.results import result
from scripts.bench.timing import Timing, advance
from train.critic.heads import Heads, hinge_loss, mean_logit
from train.engine import fit_steps
from train.methods.turboedit.config import (
    AdversaryConfig,
    EncoderConfig,
    GeneratorConfig,
    TurboEditConfig,
    TurboEditObjective,
)
from train.methods.turboedit.features import encoder_features
from train.methods.turboedit.task import TurboEditTask
from train.rng import StepRandom
from train.run.config import DataConfig, LogConfig, OptimConfig, RunConfig
from train.run.launch import Launch
from train.task import Batch

LR = 1e-6  # on both sides; small, because random weights teach nothing


class BareStep:
    """The parts that a step of TurboEdit needs, on the task's weights, with an optimizer and an average of its own.

    Args:
        task: The engine's task, once the engine has started.
        config: The engine's config.
        batch: A global batch of the engine's data, the same for every step.
    """

    def __init__(self, task: TurboEditTask, config: TurboEditConfig, batch: Batch) -> None:
        self.task, self.config = task, config
        self.backbone = task.backbone
        assert isinstance(task.trainable, NoiseEncoder)
        self.encoder: nn.Module = task.trainable.unet  # accelerate has wrapped the module around it
        self.device = self.backbone.unet.device
        self.latent = batch["latent"].to(self.device)
        self.captions: list[str] = batch.get("caption", [])
        self.cached_prompt = self._cached_prompt(batch) if task.cached_prompts else None
        self.t = torch.full((len(self.latent),), task.generator.timesteps[0], device=self.device)
        self.parameters = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, fused=True)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.heads: Heads | None = task.adversary.heads if task.adversary else None
        if self.heads:
            self.critic_optimizer = torch.optim.AdamW(self.heads.parameters(), lr=LR, fused=True)

    def __call__(self, step: int) -> None:
        """The parts of the engine's step number `step`, each as large as there."""
        prompt = self.cached_prompt or self.backbone.encode_text(self.captions)
        rows = self._num_simulated(step)
        if rows:
            with torch.no_grad():
                self.backbone.predict(self.latent[:rows], prompt[:rows], self.t[:rows])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.mixed_precision == "bf16"):
            inputs = torch.cat([self.latent, self.latent], dim=1)
            output = self.encoder(inputs, self.t, **prompt.to(dtype=torch.float32).unet_inputs()).sample
        noise, logvar = output.float().chunk(2, dim=1)
        x0_hat = self.backbone.predict(noise, prompt, self.t)
        loss = x0_hat.square().mean() + logvar.square().mean()
        if self.heads:
            loss = loss + self._adversary(self.heads, x0_hat, prompt)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.heads:
            torch.nn.utils.clip_grad_norm_(self.heads.parameters(), self.config.optim.grad_clip)
            self.critic_optimizer.step()
            self.critic_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1 - self.config.ema.decay)

    def _adversary(self, heads: Heads, x0_hat: Tensor, prompt: Prompt) -> Tensor:
        """The discriminator's step, and its term in the encoder's loss."""
        with torch.no_grad():
            real = encoder_features(self.backbone, self.latent, prompt, self.t)
        fake = encoder_features(self.backbone, x0_hat, prompt, self.t)
        term = -0.1 * mean_logit(heads.as_constant(fake)).mean()
        hinge_loss(heads(real), heads([feature.detach() for feature in fake])).mean().backward()
        return term

    @property
    def state_bytes(self) -> int:
        """Bytes of the moments and the averages, which the engine holds once more."""
        return 3 * sum(average.nbytes for average in self.averages)

    def _num_simulated(self, step: int) -> int:
        """Samples that need a previous reconstruction in the engine's step, by its own draw; 3/4 on average."""
        rows = torch.arange(len(self.latent))
        rng = StepRandom(self.config.run.seed, step, len(rows), rows)
        return int((rng.integers("timestep", len(self.task.timesteps)) > 0).sum())

    def _cached_prompt(self, batch: Batch) -> Prompt:
        pooled = batch["pooled"].to(self.device)
        return Prompt(batch["prompt"].to(self.device), pooled, micro_conditioning(pooled, self.backbone.own_size))


def measure_train_step(
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["no", "bf16"],
    frozen: GeneratorDtype,
    size: Literal["miniature", "sdxl"],
    batch: int,
    steps: int,
    block: int,
    workers: int,
    cached_prompts: bool,
    gradient_checkpointing: bool,
    adversary: bool,
) -> list[dict[str, Any]]:
    """Measure the engine's step against its parts on random weights and random shards.

    Args:
        frozen: Dtype of the frozen models.

    Raises:
        ValueError: Options that do not fit together.
    """
    dtype = generator_dtype(frozen, precision, choose_device(device).type)
    with tempfile.TemporaryDirectory() as folder:
        config = TurboEditConfig(
            # One step more than is taken: a run that ends writes a checkpoint.
            run=RunConfig(
                f"{folder}/run", 0, steps + block + 1, batch, batch, device=device, mixed_precision=precision
            ),
            data=DataConfig(f"{folder}/shards", workers=workers),
            optim=OptimConfig(lr=LR),
            log=LogConfig(log_every=block, preview_every=0, checkpoint_every=steps + block + 1),
            generator=GeneratorConfig(dtype=dtype, cached_prompts=cached_prompts),
            encoder=EncoderConfig(gradient_checkpointing=gradient_checkpointing),
            objective=TurboEditObjective(adversary=AdversaryConfig(weight=0.1 * adversary, start=0)),
        )
        launch = Launch(config.run)
        build = miniature_generator if size == "miniature" else sdxl_generator
        generator = build(launch.device, dtype_of(dtype))
        if gradient_checkpointing:
            generator.backbone.unet.enable_gradient_checkpointing()
        write_random_shards(Path(config.data.shards), generator, num_samples=4 * batch)
        engine, bare = measure_step(TurboEditTask(config, launch.device, generator), config, launch, block)
    print(f"{size}, {launch.device.type}, precision {precision}, frozen models in {dtype}")
    print(f"batch {batch}, {steps} steps in blocks of {block}")
    return step_results(engine, bare, batch * block, launch.device)


def measure_step(task: TurboEditTask, config: TurboEditConfig, launch: Launch, block: int) -> tuple[Timing, Timing]:
    """Measure the engine and the bare parts in turns, a block of steps each, without the first block of either."""
    dataset = ShardDataset(config.data.shards, task.fields)
    engine, bare = Timing([]), Timing([])
    with closing(fit_steps(task, dataset, config, launch)) as engine_steps:
        next(engine_steps)
        advance(engine_steps, block)
        parts = BareStep(task, config, dataset.read_batch(range(config.run.global_batch)))
        _repeat(parts, range(block))
        for first in range(block, config.run.steps - 1, block):
            engine.measure(partial(advance, engine_steps, block), launch.device)
            bare.measure(partial(_repeat, parts, range(first, first + block)), launch.device)
    if launch.device.type == "cuda":  # each side's own: the moments and averages of the other were there as well
        engine.peak_bytes -= parts.state_bytes
        bare.peak_bytes -= parts.state_bytes
    return engine, bare


def step_results(engine: Timing, bare: Timing, samples: int, device: torch.device) -> list[dict[str, Any]]:
    """The benchmark's results; `samples` is the number in a block.

    The overhead is the median of the blocks' own ratios: neighbours in time share what else the machine does.
    """
    ratios = [mine / reference for mine, reference in zip(engine.seconds, bare.seconds, strict=True)]
    rates = [samples / statistics.median(side.seconds) for side in (engine, bare)]
    print(f"engine / bare, block by block: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    # A process on the CPU has one resident peak, which cannot be told apart by side.
    reference_gb = bare.peak_bytes / 1e9 if device.type == "cuda" else None
    return [
        result("train_step_overhead", statistics.median(ratios), "engine step / bare parts", 1.0),
        result("train_step_samples_per_sec", rates[0], "samples/s", rates[1]),
        result("train_step_peak_memory", engine.peak_bytes / 1e9, "GB", reference_gb),
    ]


def _repeat(parts: BareStep, steps: Sequence[int]) -> None:
    for step in steps:
        parts(step)
