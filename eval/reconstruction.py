"""How well inversions give back captioned images in 1, 2 and 4 steps, beside the VAE's ceiling (TurboEdit's table 2).

    python -m eval.reconstruction --encoder EXPORT --data SHARDS_OR_IMAGE_FOLDER --out DIR

Each number of steps is an inversion of its own. Leaves DIR/index.html, results.json and reconstructions.csv (a row for
each image, editor and number of steps, and for the most steps one after each). The same command goes on where it was:
finished batches lie in DIR/batches.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.jobs.command import run
from eval.editors.catalogue import Command, FewStepModel, available
from eval.editors.editor import ReconstructingEditor, counted_evaluations
from eval.harness.captioned import CaptionedImage, each_captioned_image, stacked
from eval.harness.exports import checked_steps, choose_device, load_encoder, with_steps
from eval.harness.fingerprints import backbone_settings
from eval.harness.results import write_results, write_table
from eval.metrics.distribution import PictureFeatures, load_features
from eval.metrics.lpips import load_lpips
from eval.metrics.pixels import Metric, ssim
from eval.reconstructions.batches import Batch, BatchArchive, Line
from eval.reconstructions.fidelity import Row, pixel_mse, reconstruction_rows, round_trip, vae_rows
from eval.reconstructions.figures import REAL, VAE, gather, reconstruction_results, summary
from eval.reconstructions.noise import collect_noises
from eval.reconstructions.page import write_reconstruction_page
from eval.scene_edits.trial import pixels
from models.backbone import Backbone, fingerprint
from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)

_PICTURED = 8
_NOISES = 512
"""Images whose noises are looked at."""


def evaluate_reconstruction(
    encoder: Path,
    data: Path,
    out: Path,
    num: int | None = None,
    steps: tuple[int, ...] | None = None,
    editors: tuple[str, ...] = ("turboedit", "ddim", "ddpm_residual"),
    lpips: Path | None = None,
    features: str | None = None,
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
        steps: numbers of steps, each an inversion of its own; null for those of 1, 2 and 4 that the encoder has
        editors: among turboedit, ddim, ddpm, ddpm_residual
        lpips: torchvision's weights of AlexNet (.pth or .safetensors); null takes torch hub's copy
        features: of FID and KID: Inception v3 as TorchScript (inception-2015-12-05.pt), or folder or hub id of a
            CLIPModel; null leaves both out
        batch: images at a time
        dtype: of the UNets and text encoders
        device: auto, cpu, cuda ...
    """
    if batch < 1 or (num is not None and num < 1):
        raise ValueError(f"batch is {batch} and num is {num}; expected at least 1")
    place = choose_device(device)
    pipeline = load_encoder(encoder, place, getattr(torch, dtype))
    lines = _lines(pipeline, checked_steps(pipeline, steps), editors)
    metrics: dict[str, Metric] = {"mse": pixel_mse, "ssim": ssim}
    network, about_lpips = load_lpips("alex", lpips, place)
    if network is not None:
        metrics["lpips"] = network
    extractor, about_features = None, "FID and KID are left out: give --features"
    if features is not None:
        extractor, about_features = load_features(features, place)
    logger.info("%s\n%s", about_lpips, about_features)

    decided = {
        "encoder": fingerprint(pipeline.encoder, {}),
        "generator": backbone_settings(pipeline.backbone),
        "dtype": dtype,
        "lines": [line.title for line in lines],
        "lpips": about_lpips,
        "features": about_features,
    }
    bench = _Bench(pipeline.backbone, lines, metrics, extractor)
    samples = each_captioned_image(data, pipeline.backbone.image_size, num)
    record = gather(bench.batches(samples, batch, BatchArchive(out / "batches", decided), num), extractor)
    results = reconstruction_results(record, lines, ("psnr", *metrics))
    results["about"] = {
        "encoder": str(encoder),
        "timesteps": pipeline.timesteps,
        "device": place.type,
        "data": str(data),
        "lpips": about_lpips,
        "features": about_features,
    }
    write_results(out / "results.json", results)
    write_table(out / "reconstructions.csv", record.rows)
    page = write_reconstruction_page(out, results, record.pictures, record.captions)
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


def _lines(pipeline: TurboEditPipeline, counts: Sequence[int], editors: Sequence[str]) -> list[Line]:
    """The `editors` on each of `counts` steps. Raises ValueError for an unknown one."""
    known = {
        count: available(Command.RECONSTRUCTION, FewStepModel(with_steps(pipeline, count))).choose(editors)
        for count in counts
    }
    lines = []
    for index, name in enumerate(editors):
        for count in counts:
            editor = known[count][index]
            assert isinstance(editor, ReconstructingEditor)
            lines.append(Line(name, count, editor))
    return lines


@dataclass(frozen=True)
class _Bench:
    """What measures every batch."""

    backbone: Backbone
    lines: Sequence[Line]
    metrics: Mapping[str, Metric]
    features: PictureFeatures | None

    def batches(
        self, samples: Iterator[CaptionedImage], size: int, archive: BatchArchive, num: int | None
    ) -> Iterator[Batch]:
        """What comes of `samples`, `size` at a time, or came of them before."""
        done = 0
        with tqdm(total=num, unit="image", desc="reconstruction") as bar:
            while part := list(islice(samples, size)):
                captions, images = [sample.caption for sample in part], stacked(part)
                made = archive.read(captions, images)
                if made is None:
                    made = self._measure(part, images, max(0, _PICTURED - done), done < _NOISES)
                    archive.write(made, captions, images)
                yield made
                done += len(part)
                bar.update(len(part))

    @torch.no_grad()
    def _measure(self, part: Sequence[CaptionedImage], images: Tensor, num_pictures: int, with_noises: bool) -> Batch:
        """One batch [B, 3, H, W] through the VAE and every editor in every number of steps."""
        keys, captions = [sample.key for sample in part], [sample.caption for sample in part]
        trip = round_trip(self.backbone, images.to(self.backbone.vae.device))
        rows: list[Row] = [{"steps": 0, **row} for row in vae_rows(trip, self.metrics, keys)]
        made = {REAL: _levels(trip.images), VAE: _levels(trip.decoded)}
        batch = Batch(captions[:num_pictures], rows, evaluations={}, pictures={})
        most = max(line.steps for line in self.lines)
        for line in self.lines:
            with counted_evaluations(line.editor.networks) as sizes:
                inversion = line.editor.invert(trip.images, captions)
                found, steps = reconstruction_rows(
                    self.backbone, line.editor, inversion, trip, self.metrics, keys, last_only=line.steps < most
                )
            batch.rows += [{"steps": line.steps, **row} for row in found]
            batch.evaluations[line.title] = sum(sizes) / len(images)
            made[line.title] = _levels(steps[-1])
            if with_noises and line.steps == most:
                collect_noises(batch.noises, line.name, inversion)
        if self.features is not None:
            batch.features.update({name: self.features(pictures).float().cpu() for name, pictures in made.items()})
        batch.pictures.update({name: pictures[:num_pictures].clone() for name, pictures in made.items()})
        return batch


def _levels(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] as uint8 on the CPU."""
    return torch.from_numpy(np.stack(pixels(images))).permute(0, 3, 1, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.reconstruction", evaluate_reconstruction, argv)


if __name__ == "__main__":
    main()
