"""How well inversions give back captioned images, by number of steps, beside the VAE's ceiling.

    python -m eval.reconstruction --encoder EXPORT --data SHARDS_OR_IMAGE_FOLDER --out DIR

Leaves DIR/index.html, results.json and reconstructions.csv (a row for each image, editor and step).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from eval.captioned import CaptionedImage, captioned_images, stacked
from eval.command import run_command
from eval.editors.editor import ReconstructingEditor
from eval.editors.suite import reconstructing_editors
from eval.encoder import choose_device, load_encoder
from eval.fidelity import Row, by_step, reconstruction_rows, round_trip, vae_rows
from eval.metrics import Estimate, Metric, load_lpips, ssim
from eval.noise_figures import Noises, collect_noises, noise_figures
from eval.report import write_reconstruction_report
from eval.results import write_results, write_table
from eval.trial import pixels
from models.backbone import Backbone

logger = logging.getLogger(__name__)

_PICTURED = 8


def evaluate_reconstruction(
    encoder: Path,
    data: Path,
    out: Path,
    num: int | None = None,
    editors: tuple[str, ...] = ("turboedit", "ddim", "ddpm_residual"),
    batch: int = 16,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure how well an encoder and other inversions on its generator reconstruct captioned images.

    Args:
        encoder: folder of an exported encoder
        data: shards with images (made by data.caption), or a folder of pictures with captions (.txt, metadata.jsonl)
        out: folder of the report
        num: number of images; null for all
        editors: among turboedit, ddim, ddpm, ddpm_residual
        batch: images at a time
        dtype: of the UNets and text encoders
        device: auto, cpu, cuda ...
    """
    if batch < 1 or (num is not None and num < 1):
        raise ValueError(f"batch is {batch} and num is {num}; expected at least 1")
    place = choose_device(device)
    pipeline = load_encoder(encoder, place, getattr(torch, dtype))
    backbone = pipeline.backbone
    available = {editor.name: editor for editor in reconstructing_editors(pipeline)}
    if unknown := sorted(set(editors) - set(available)):
        raise ValueError(f"editors {', '.join(unknown)} are unknown; expected some of {', '.join(available)}")
    lpips, about_lpips = load_lpips(place)
    logger.info("%s", about_lpips)
    metrics: dict[str, Metric] = {"ssim": ssim} | ({"lpips": lpips} if lpips else {})

    samples = captioned_images(data, backbone.image_size, num)
    record = _Record()
    for start in tqdm(range(0, len(samples), batch), unit="batch", desc="reconstruction"):
        part = samples[start : start + batch]
        _measure(backbone, [available[name] for name in editors], part, metrics, record, place)
    results = _results(record, editors, ("psnr", *metrics))
    results["about"] = {
        "encoder": str(encoder),
        "timesteps": pipeline.timesteps,
        "device": place.type,
        "data": str(data),
        "lpips": about_lpips,
    }
    write_results(out / "results.json", results)
    write_table(out / "reconstructions.csv", record.rows)
    captions = [sample.caption for sample in samples[: len(record.pictures)]]
    page = write_reconstruction_report(out, results, record.pictures, captions)
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


@dataclass
class _Record:
    """What is gathered over the batches: rows of eval.fidelity, noises by editor and timestep, the first pictures."""

    rows: list[Row] = field(default_factory=list)
    noises: Noises = field(default_factory=dict)
    pictures: list[dict[str, list[np.ndarray]]] = field(default_factory=list)


@torch.no_grad()
def _measure(
    backbone: Backbone,
    editors: Sequence[ReconstructingEditor],
    part: Sequence[CaptionedImage],
    metrics: dict[str, Metric],
    record: _Record,
    device: torch.device,
) -> None:
    """One batch through the VAE and every editor."""
    keys = [sample.key for sample in part]
    trip = round_trip(backbone, stacked(part).to(device))
    record.rows += vae_rows(trip, metrics, keys)
    shown = [{"image": [a], "vae": [b]} for a, b in zip(pixels(trip.images), pixels(trip.decoded), strict=True)]
    for editor in editors:
        inversion = editor.invert(trip.images, [sample.caption for sample in part])
        found, steps = reconstruction_rows(backbone, editor, inversion, trip, metrics, keys)
        record.rows += found
        collect_noises(record.noises, editor.name, inversion)
        for row, of_image in zip(shown, zip(*map(pixels, steps), strict=True), strict=True):
            row[editor.name] = list(of_image)
    record.pictures += shown[: _PICTURED - len(record.pictures)]


def _results(record: _Record, editors: Sequence[str], of_images: Sequence[str]) -> dict[str, Any]:
    """Everything for results.json but `about`; `of_images` are measures against the image, which the VAE has too."""
    vae = {name: Estimate.of(by_step(record.rows, "vae", name)[0]).to_dict() for name in of_images}
    reconstruction: dict[str, Any] = {"vae": vae}
    for name in editors:
        reconstruction[name] = {
            f"{measure}_by_step": [Estimate.of(values).to_dict() for values in by_step(record.rows, name, measure)]
            for measure in (*of_images, "psnr_to_vae", "latent_mse")
        }
    return {"reconstruction": reconstruction, "noise": noise_figures(record.noises)}


def summary(results: dict[str, Any]) -> str:
    """PSNR by step as text."""
    vae = results["reconstruction"]["vae"]["psnr"]
    lines = [f"VAE round trip: {vae['mean']:.2f} dB over {vae['n']} images; PSNR to it after each step:"]
    for name, found in results["reconstruction"].items():
        if name != "vae":
            lines.append(f"{name:16}" + " ".join(f"{step['mean']:7.2f}" for step in found["psnr_to_vae_by_step"]))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(evaluate_reconstruction)
