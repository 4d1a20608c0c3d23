"""Batches of images through the VAE and through every inversion that is compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from eval.editors.catalogue import Command, available
from eval.editors.editor import ReconstructingEditor, counted_evaluations
from eval.editors.models import FewStepModel
from eval.harness.captioned import CaptionedImage, batches_of_one_shape, stacked
from eval.harness.exports import with_steps
from eval.metrics.distribution import PictureFeatures
from eval.metrics.pixels import Metric
from eval.reconstructions.batches import BatchArchive, InversionLine, MeasuredBatch
from eval.reconstructions.fidelity import Row, reconstruction_rows, round_trip, vae_rows
from eval.reconstructions.figures import REAL, VAE
from eval.reconstructions.noise import collect_noises
from models.backbone import Backbone
from models.pictures import to_uint8
from models.turboedit_pipeline import TurboEditPipeline

_PICTURED = 8
_NOISES = 512
"""Images whose noises are looked at."""


def chosen_lines(pipeline: TurboEditPipeline, counts: Sequence[int], editors: Sequence[str]) -> list[InversionLine]:
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
            lines.append(InversionLine(name, count, editor))
    return lines


@dataclass(frozen=True)
class ReconstructionBench:
    """Everything that measures a batch: the model, the inversions, metrics by name, and the features of FID and KID."""

    backbone: Backbone
    lines: Sequence[InversionLine]
    metrics: Mapping[str, Metric]
    features: PictureFeatures | None

    def batches(
        self, samples: Iterator[CaptionedImage], size: int, archive: BatchArchive, num: int | None
    ) -> Iterator[MeasuredBatch]:
        """Measure `samples`, `size` at a time, or read what came of them before."""
        done = 0
        with tqdm(total=num, unit="image", desc="reconstruction") as bar:
            for part in batches_of_one_shape(samples, size):
                captions, images = [sample.caption for sample in part], stacked(part)
                made = archive.read(captions, images)
                if made is None:
                    made = self._measure(part, images, max(0, _PICTURED - done), done < _NOISES)
                    archive.write(made, captions, images)
                yield made
                done += len(part)
                bar.update(len(part))

    @torch.no_grad()
    def _measure(
        self, part: Sequence[CaptionedImage], images: Tensor, num_pictures: int, with_noises: bool
    ) -> MeasuredBatch:
        """Take one batch [B, 3, H, W] through the VAE and every editor in every number of steps."""
        keys, captions = [sample.key for sample in part], [sample.caption for sample in part]
        trip = round_trip(self.backbone, images.to(self.backbone.vae.device))
        rows: list[Row] = [{"steps": 0, **row} for row in vae_rows(trip, self.metrics, keys)]
        made = {REAL: to_uint8(trip.images).cpu(), VAE: to_uint8(trip.decoded).cpu()}
        batch = MeasuredBatch(captions[:num_pictures], rows, evaluations={}, pictures={})
        most = max(line.steps for line in self.lines)
        for line in self.lines:
            with counted_evaluations(line.editor.networks) as sizes:
                inversion = line.editor.invert(trip.images, captions)
                found, steps = reconstruction_rows(
                    self.backbone, line.editor, inversion, trip, self.metrics, keys, last_only=line.steps < most
                )
            batch.rows += [{"steps": line.steps, **row} for row in found]
            batch.evaluations[line.title] = sum(sizes) / len(images)
            made[line.title] = to_uint8(steps[-1]).cpu()
            if with_noises and line.steps == most:
                collect_noises(batch.noises, line.name, inversion)
        if self.features is not None:
            batch.features.update({name: self.features(pictures).float().cpu() for name, pictures in made.items()})
        batch.pictures.update({name: pictures[:num_pictures].clone() for name, pictures in made.items()})
        return batch
