"""A real training of a few seconds for the engine's tests: a small network learns the noise in noised random latents.

python -m tests.tiny_training --data.shards SHARDS --run.folder RUN [--run.steps 20 ...]

Shards that are not there are written first.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from data.shards.sample import SampleInfo
from data.shards.shard import Origin, Sample, npy_bytes, write_manifest, write_shard
from train.critic.heads import hinge_loss, mean_logit, seeded_heads
from train.engine import Summary, fit
from train.rng import StepRandom
from train.run.config import FitConfig
from train.run.launch import Launch
from train.task import Batch, Critic, StepLoss


@dataclass(frozen=True, kw_only=True)
class TinyConfig(FitConfig):
    """The engine's config and what this task adds.

    Args:
        dropout: Dropout inside the network.
        broken_key: Key of a sample that makes the loss infinite.
        time_per_step_sec: Seconds that each loss sleeps.
        critic_weight: Weight of a critic's term in the loss; 0 has no critic.
        critic_broken_key: Key of a sample that makes the critic's loss infinite.
    """

    dropout: float = 0.0
    broken_key: str = ""
    time_per_step_sec: float = 0.0
    critic_weight: float = 0.0
    critic_broken_key: str = ""


SIZES = ("--run.steps=20", "--run.global_batch=8", "--run.micro_batch=8", "--data.workers=0", "--log.log_every=5")


class TinyTask:
    """Noise prediction with two noise levels, reported apart."""

    fields = ("latent", "caption")
    groups = ("low", "high")

    def __init__(self, config: TinyConfig, device: torch.device) -> None:
        self.config = config
        torch.manual_seed(config.run.seed)
        self.trainable = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Dropout(config.dropout), nn.Conv2d(8, 4, 3, padding=1)
        ).to(device)
        self.critic = Critic(seeded_heads((4,), 2, config.run.seed), lr=1e-2) if config.critic_weight else None

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Mean squared error of the noise, and a little weight on the size of what was predicted."""
        time.sleep(self.config.time_per_step_sec)
        latent = batch["latent"]
        group = rng.integers("level", 2).to(latent.device, non_blocking=True)
        level = torch.where(group == 1, 0.9, 0.3)[:, None, None, None]
        noise = rng.normal("noise", latent.shape[1:])
        predicted = model((1 - level**2).sqrt() * latent + level * noise).float()
        error = (predicted - noise).square().mean((1, 2, 3))
        if self.config.broken_key in batch["key"]:
            error = error * float("inf")
        report = {"error": error.detach(), "latent_std": latent.std()}
        result = StepLoss({"mse": error.mean(), "size": 0.01 * predicted.square().mean()}, report, group)
        return self._criticised(result, noise, predicted, batch["key"]) if self.critic else result

    def _criticised(self, result: StepLoss, noise: Tensor, predicted: Tensor, keys: list[str]) -> StepLoss:
        """The loss with a critic that tells the noise from what was predicted."""
        heads = self.critic.module
        with torch.autocast(noise.device.type, enabled=False):
            result.critic = hinge_loss(heads([noise]), heads([predicted.detach()])).mean()
            fooled = -self.config.critic_weight * mean_logit(heads.as_constant([predicted])).mean()
        if self.config.critic_broken_key in keys:
            result.critic = result.critic * float("inf")
        result.terms["fooled"] = fooled
        result.report["critic_loss"] = result.critic.detach()
        return result

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """The first three channels of latents and of what the network makes of them."""
        latent = batch["latent"]
        return {"latent": latent[:, :3], "network": model(latent + rng.normal("noise", latent.shape[1:]))[:, :3]}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """The means and the ratio of the groups' errors."""
        if "error/low" in means and "error/high" in means:
            return {**means, "error_ratio": means["error/low"] / means["error/high"]}
        return means


def write_latents(folder: Path, num_samples: int = 48, samples_per_shard: int = 16) -> Path:
    """Write shards of random latents [4, 8, 8]."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    origin = Origin("test", {}, {}, {"resolution": 64, "latent_fingerprint": "random", "vae_fingerprint": "random"})
    sidecars = {}
    for first in range(0, num_samples, samples_per_shard):
        samples = [_sample(i, draw) for i in range(first, min(first + samples_per_shard, num_samples))]
        unit = f"unit-{first // samples_per_shard:06d}"
        sidecars[unit] = write_shard(folder, unit, samples, origin, inputs=unit)
    write_manifest(folder, sidecars)
    return folder


def _sample(number: int, draw: np.random.Generator) -> Sample:
    key = f"sample{number:04d}"
    info = SampleInfo(key, f"number {number}", f"number {number}", (64, 64), (0, 0, 64, 64), "0" * 64, f"{key}.png")
    latent = draw.standard_normal((4, 8, 8)).cumsum(axis=2).astype(np.float16)
    return Sample(key, {"json": info.to_json(), "latent.npy": npy_bytes(latent)})


def tiny_config(shards: Path, folder: Path, *options: str) -> TinyConfig:
    """A config for tests, changed by options of the command line."""
    return parse(TinyConfig, [*SIZES, f"--data.shards={shards}", f"--run.folder={folder}", *options])


def train(config: TinyConfig, task_class: type[TinyTask] = TinyTask) -> Summary:
    """Train as an entry point does."""
    launch = Launch(config.run, config.optim.grad_clip)
    task = task_class(config, launch.device)
    return fit(task, ShardDataset(config.data.shards, task.fields), config, launch)


if __name__ == "__main__":
    chosen = parse(TinyConfig)
    if not Path(chosen.data.shards).exists():
        write_latents(Path(chosen.data.shards))
    train(chosen)
