"""Shards of random pairs of latents with orders, and short real InstructPix2Pix trainings on them."""

import json
from pathlib import Path

import numpy as np

from data.shards.sample import SampleInfo
from data.shards.shard import Origin, Sample, npy_bytes, write_manifest, write_shard
from models.backbone import Backbone
from models.fingerprints import vae_fingerprint

STEPS = 3
SAMPLES = 12


def write_pairs(folder: Path, backbone: str) -> Path:
    """One shard of latents as `backbone`'s VAE might give them; returns `folder`."""
    folder.mkdir(parents=True)
    loaded, draw = Backbone.load(backbone), np.random.default_rng(0)
    side, unet = loaded.image_size, loaded.unet.config
    samples = []
    for number in range(SAMPLES):
        key, order = f"pair{number:04d}", f"make it number {number}"
        info = SampleInfo(key, order, order, (side, side), (0, 0, side, side), "0" * 64, f"{key}.png")
        drawn = draw.standard_normal((2, unet.in_channels, unet.sample_size, unet.sample_size)).astype(np.float16)
        arrays = {f"{name}.npy": npy_bytes(array) for name, array in zip(("latent", "source"), drawn, strict=True)}
        samples.append(Sample(key, {"json": info.to_json(), **arrays}))
    properties = {
        "resolution": side,
        "latent_fingerprint": "random",
        "vae_fingerprint": vae_fingerprint(loaded),
    }
    sidecar = write_shard(folder, "unit-000000", samples, Origin("test", {}, {}, properties), inputs="random")
    write_manifest(folder, {"unit-000000": sidecar})
    return folder


def words(folder: Path, shards: Path, backbone: str, *options: str) -> list[str]:
    """The command's options; later ones win."""
    chosen = {
        "run.folder": folder,
        "run.steps": STEPS,
        "run.global_batch": 4,
        "run.micro_batch": 2,
        "data.shards": shards,
        "data.workers": 0,
        "backbone.path": backbone,
        "backbone.dtype": "float32",
        "optim.lr": 1e-3,
        "ema.decay": 0.9,
        "log.log_every": 1,
        "log.checkpoint_every": 2,
        "log.preview_every": 0,
    }
    return [*(f"--{name}={value}" for name, value in chosen.items()), *options]


def metrics(folder: Path) -> list[dict[str, float]]:
    """Each line of a run's figures."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
