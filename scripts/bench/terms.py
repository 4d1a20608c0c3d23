"""A training step with each term of TurboEdit's objective beside one without."""

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from data.jobs.device import choose_device
from data.shards.dataset import ShardDataset
from eval.metrics.lpips import Lpips, classifier_features
from models.backbone import dtype_of
from models.generator import FewStepGenerator
from scripts.bench.choices import GeneratorDtype, generator_dtype
from scripts.bench.random_backbones import miniature_generator, sdxl_generator, write_random_shards
from scripts.bench.results import result
from scripts.bench.timing import Timing
from train.methods.turboedit.config import EncoderConfig, GeneratorConfig, TurboEditConfig, TurboEditObjective
from train.methods.turboedit.task import TurboEditTask
from train.methods.turboedit.terms import TermNetworks
from train.rng import StepRandom
from train.run.config import DataConfig, Precision, RunConfig
from train.run.optim import autocast
from train.task import Batch

KNOWN = TurboEditObjective(known_noise_weight=0.1)

OBJECTIVES: Mapping[str, TurboEditObjective] = {
    "own_share": TurboEditObjective(own_share=0.5),
    "known_noise": KNOWN,
    "moments": TurboEditObjective(moments_weight=0.1),
    "spectrum": TurboEditObjective(spectrum_weight=0.1),
    "timestep_weights": TurboEditObjective(timestep_weights="balanced"),
    "perceptual_features": TurboEditObjective(perceptual_weight=0.1),
    "perceptual_lpips": TurboEditObjective(
        perceptual_weight=0.1, perceptual="lpips", perceptual_network="random weights"
    ),
    "known_noise_and_score": replace(KNOWN, score_weight=0.1, score_teacher="the generator"),
}
"""Objectives with one term each, by its name."""

NEEDS_ALL_PARTS = ("perceptual_lpips", "known_noise_and_score")
"""Those that need the whole VAE or text encoders, which the SDXL of the benches lacks."""


class TermStep:
    """Steps of a task without the engine: loss, backward pass, AdamW.

    Args:
        task: The task; all share one trainable module and its optimizer.
        batch: A batch on the device, the same for every step.
        optimizer: The module's optimizer.
        precision: Precision of F's forward pass.
    """

    def __init__(
        self, task: TurboEditTask, batch: Batch, optimizer: torch.optim.Optimizer, precision: Precision
    ) -> None:
        self.task, self.batch, self.optimizer, self.precision = task, batch, optimizer, precision

    def __call__(self, steps: range) -> None:
        """Take these steps."""
        latent, rows = self.batch["latent"], torch.arange(len(self.batch["latent"]))
        for step in steps:
            rng = StepRandom(0, step, len(rows), rows, latent.device)
            with autocast(latent.device.type, self.precision):
                found = self.task.loss(self.task.trainable, self.batch, rng)
            torch.stack(list(found.terms.values())).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def measure_terms(
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["no", "bf16"],
    frozen: GeneratorDtype,
    size: Literal["miniature", "sdxl"],
    batch: int,
    steps: int,
    block: int,
    cached_prompts: bool,
    gradient_checkpointing: bool,
) -> list[dict[str, Any]]:
    """Measure steps with each term and without, in turns, on random weights and random shards.

    The generator itself stands in for the score's teacher. A ratio is the median of the blocks' own ratios.
    """
    place = choose_device(device)
    dtype = generator_dtype(frozen, precision, place.type)
    generator = (miniature_generator if size == "miniature" else sdxl_generator)(place, dtype_of(dtype))
    if gradient_checkpointing:
        generator.backbone.unet.enable_gradient_checkpointing()
    objectives = {"plain": TurboEditObjective(), **OBJECTIVES}
    if size == "sdxl":
        objectives = {name: value for name, value in objectives.items() if name not in NEEDS_ALL_PARTS}
        print(f"without {', '.join(NEEDS_ALL_PARTS)}: sdxl has no text encoders and a small VAE here")
    with tempfile.TemporaryDirectory() as folder:
        config = TurboEditConfig(
            run=RunConfig(folder, 0, steps, batch, batch, device=device, mixed_precision=precision),
            data=DataConfig(f"{folder}/shards"),
            generator=GeneratorConfig(dtype=dtype, cached_prompts=cached_prompts),
            encoder=EncoderConfig(gradient_checkpointing=gradient_checkpointing),
        )
        write_random_shards(Path(config.data.shards), generator, num_samples=batch)
        runs = _steps(objectives, config, generator, place)
        for run in runs.values():
            run(range(block))
        timings = {name: Timing([]) for name in runs}
        for first in range(0, steps, block):
            for name, run in runs.items():
                timings[name].measure(partial(run, range(first, first + block)), place)
    print(f"{size}, {place.type}, precision {precision}, frozen models in {dtype}, batch {batch}")
    return [_result(name, timings[name], timings["plain"], block) for name in runs if name != "plain"]


def _steps(
    objectives: Mapping[str, TurboEditObjective],
    config: TurboEditConfig,
    generator: FewStepGenerator,
    device: torch.device,
) -> dict[str, TermStep]:
    vgg = {f"features.{name}": weight for name, weight in classifier_features("vgg").state_dict().items()}
    networks = TermNetworks(generator.backbone, Lpips("vgg", vgg).to(device))
    none = TermNetworks()
    dataset, found = None, {}
    for name, objective in objectives.items():
        task = TurboEditTask(
            replace(config, objective=objective), device, generator, networks if name in NEEDS_ALL_PARTS else none
        )
        if dataset is None:
            dataset = ShardDataset(config.data.shards, task.fields)
            batch = dataset.read_batch(range(config.run.global_batch))
            batch = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
            trainable = task.trainable.to(device).train()
            optimizer = torch.optim.AdamW(trainable.parameters(), lr=1e-6, fused=True)
        task.trainable = trainable
        found[name] = TermStep(task, batch, optimizer, config.run.mixed_precision)
    return found


def _result(name: str, timing: Timing, plain: Timing, block: int) -> dict[str, Any]:
    ratios = [mine / reference for mine, reference in zip(timing.seconds, plain.seconds, strict=True)]
    seconds = statistics.median(plain.seconds) / block
    return result(f"train_step_with_{name}", statistics.median(ratios) * seconds, "s", seconds)
