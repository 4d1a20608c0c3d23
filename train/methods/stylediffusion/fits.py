"""Fits of single images by StyleDiffusion: a folder of pieces of a few images each, and how one is read back."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.jobs.device import choose_device, use_tf32
from data.jobs.files import write_json
from data.jobs.kept import KeptFolder
from data.jobs.sharing import Ranks
from data.shards.dataset import ShardDataset, UnreadableSample
from data.shards.origins import check_pivots
from eval.metrics.pixels import Estimate, psnr
from models.attention import checkpointed
from models.backbone import Backbone, dtype_of
from models.ddim import Ddim, matching
from models.stylediffusion import Fitted, GuidedStep, fit_modulations
from models.value_mapper import Modulation
from train.methods.stylediffusion.config import ImageFitsConfig

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


def fit_images(config: ImageFitsConfig, ranks: Ranks | None = None) -> dict[str, Any]:
    """Fit all images, together with the other ranks; returns the summary.

    Raises:
        ValueError: OUT holds fits of another config, or the shards lack pivots or image tokens.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in ("out", "num", "device")}
    kept = KeptFolder(Path(config.out), settings, record="config.json")
    dataset = ShardDataset(config.shards, ("pivots", "clip", "caption"))
    count = min(len(dataset), config.num or len(dataset))
    pieces = _pieces(dataset.bucket_of[:count], config.batch)
    fits = _Fits(config, dataset)
    for name in kept.missing({name: len(rows) for name, rows in pieces.items()}, "fits", ranks=ranks):
        fits.make(kept, name, pieces[name])
    return _summary(kept, list(pieces))


def _pieces(bucket_of: np.ndarray, batch: int) -> dict[str, list[int]]:
    """The rows of each piece by its name, which has the first row and the one behind the last; each has one shape."""
    pieces = {}
    for bucket in np.unique(bucket_of):
        of_bucket = np.flatnonzero(bucket_of == bucket).tolist()
        for start in range(0, len(of_bucket), batch):
            rows = of_bucket[start : start + batch]
            pieces[f"fit-{rows[0]:06d}-{rows[-1] + 1:06d}"] = rows
    return pieces


class _Fits:
    """Makes the pieces of a folder of fits, a few images each."""

    def __init__(self, config: ImageFitsConfig, dataset: ShardDataset) -> None:
        self.config = config
        self.dataset = dataset
        wanted = config.backbone
        device = choose_device(config.device)
        use_tf32(device)
        self.backbone = Backbone.load(wanted.path, device=device, dtype=dtype_of(wanted.dtype), variant=wanted.variant)
        self.device = device
        if wanted.gradient_checkpointing:
            self.backbone.unet.enable_gradient_checkpointing(checkpointed)
        self.ddim = Ddim(self.backbone.schedule, wanted.num_steps, wanted.steps_offset)
        check_pivots(dataset, self.backbone, self.ddim)

    def make(self, kept: KeptFolder, name: str, rows: Sequence[int]) -> None:
        """Fit the images `rows`, which have one shape, and keep the piece."""
        samples, unreadable = self._read(rows)
        if not samples:
            kept.keep(name, {"unreadable": unreadable, "keys": []})
            return
        keys = [sample["key"] for sample in samples]
        pivots = torch.stack([sample["pivots"] for sample in samples], dim=1).to(self.device)
        tokens = torch.stack([sample["clip"] for sample in samples]).to(self.device)
        step = GuidedStep(self.backbone, self.ddim, self.config.objective)
        prompt = self.backbone.encode_text([sample["caption"] for sample in samples], self.backbone.size_of(pivots))
        null = matching(self.backbone.encode_text([""]), prompt)
        started = time.perf_counter()
        torch.manual_seed(self.config.seed)
        fitted = fit_modulations(step, tokens, pivots, prompt, null, self.config.schedule)
        seconds = (time.perf_counter() - started) / len(keys)
        tensors: dict[str, torch.Tensor] = {}
        for row, key in enumerate(keys):
            for part in ("scale", "shift"):
                steps = [getattr(modulation, part)[row] for modulation in fitted.modulations]
                tensors[f"{key}.{part}"] = torch.stack(steps).half().cpu().contiguous()
        record = {"unreadable": unreadable, **self._figures(keys, pivots, fitted, seconds)}
        kept.keep(name, record, {SUFFIX: lambda path: save_file(tensors, path)})

    def _read(self, rows: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The samples that can be read, and for the keys of the others the reason."""
        samples, unreadable = [], {}
        for row in rows:
            try:
                samples.append(self.dataset[row])
            except UnreadableSample as error:
                unreadable[self.dataset.key(row)] = str(error)
                logger.warning("%s cannot be read and is left out: %s", self.dataset.key(row), error)
        return samples, unreadable

    @torch.no_grad()
    def _figures(self, keys: Sequence[str], pivots: torch.Tensor, fitted: Fitted, seconds: float) -> dict[str, Any]:
        ceiling, found = (self.backbone.decode(latent).clamp(-1, 1) for latent in (pivots[-1], fitted.latents[-1]))
        return {
            "keys": list(keys),
            "psnr_to_vae": psnr(found, ceiling).tolist(),
            "losses": fitted.losses.T.tolist(),
            "iterations": fitted.iterations.T.tolist(),
            "seconds": seconds,
        }


def _summary(kept: KeptFolder, names: Sequence[str]) -> dict[str, Any]:
    """Means over all images with their standard errors, written as summary.json."""
    every = [kept.read(name) for name in names]
    pieces = [piece for piece in every if piece["keys"]]
    figures = {
        "psnr_to_vae": [value for piece in pieces for value in piece["psnr_to_vae"]],
        "iterations": [sum(counts) for piece in pieces for counts in piece["iterations"]],
        "seconds": [piece["seconds"] for piece in pieces for _ in piece["keys"]],
    }
    summary: dict[str, Any] = {name: Estimate.of(values).to_dict() for name, values in figures.items()}
    summary["unreadable"] = {key: reason for piece in every for key, reason in piece["unreadable"].items()}
    write_json(kept.folder / "summary.json", summary)
    return summary


def read_fit(out: str | Path, key: str) -> tuple[Modulation, ...]:
    """The modulations of every step that were found for the image `key`, [1, L, D] each.

    Raises:
        ValueError: no finished fit of that image lies in `out`.
    """
    for path in sorted(Path(out).glob("fit-*.safetensors")):
        with safe_open(path, "pt") as file:
            if f"{key}.scale" in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                scale, shift = (file.get_tensor(f"{key}.{part}").float()[:, None] for part in ("scale", "shift"))
                return tuple(Modulation(a, b) for a, b in zip(scale, shift, strict=True))
    raise ValueError(f"{out} holds no fit of {key!r}")
