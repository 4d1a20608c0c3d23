"""Batches of images through the VAE and through every inversion that is compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from eval.editors.catalogue import Command, available
from eval.editors.editor import Cost, ReconstructingEditor, counted_evaluations, metered
from eval.editors.models import FewStepModel, ManyStepModel
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


def chosen_lines(
    pipeline: TurboEditPipeline, counts: Sequence[int], editors: Sequence[str] | None
) -> list[InversionLine]:
    """The `editors`, or all that are compared by default, on each of `counts` steps.

    Raises:
        ValueError: An unknown one.
    """
    known = {
        count: available(Command.RECONSTRUCTION, FewStepModel(with_steps(pipeline, count))).choose(editors)
        for count in counts
    }
    lines = []
    for same in zip(*known.values(), strict=True):
        for count, editor in zip(known, same, strict=True):
            assert isinstance(editor, ReconstructingEditor)
            lines.append(InversionLine(editor.name, count, editor))
    return lines


def guided_lines(model: ManyStepModel, editors: Sequence[str] | None) -> list[InversionLine]:
    """The `editors` of a guided model that reconstruct, or all that are compared by default.

    Raises:
        ValueError: An unknown one, or one that cannot run.
    """
    lines = []
    for editor in available(Command.RECONSTRUCTION, model).choose(editors):
        assert isinstance(editor, ReconstructingEditor), f"{editor.name} gives its input back"
        lines.append(InversionLine(editor.name, len(model.ddim), editor))
    return lines


@dataclass(frozen=True)
class ReconstructionBench:
    """Everything that measures a batch.

    Args:
        backbone: The model, whose VAE is the ceiling.
        lines: The inversions.
        metrics: Metrics against the image, by name.
        features: Features of FID and KID, or None.
        every_step: Whether the longest inversions are looked at after each of their steps; else they are timed, as
            in StyleDiffusion's table 3.
    """

    backbone: Backbone
    lines: Sequence[InversionLine]
    metrics: Mapping[str, Metric]
    features: PictureFeatures | None
    every_step: bool = True

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
            costs: list[Cost] = []
            with metered(line.editor.networks, len(images), costs, trip.images.device):
                inversion = line.editor.invert(trip.images, captions)
            with counted_evaluations(line.editor.networks) as sizes:
                found, steps = reconstruction_rows(
                    self.backbone,
                    line.editor,
                    inversion,
                    trip,
                    self.metrics,
                    keys,
                    last_only=line.steps < most or not self.every_step,
                )
            timed = {} if self.every_step else {"seconds_invert": costs[0].seconds}
            batch.rows += [{"steps": line.steps, **timed, **row} for row in found]
            batch.evaluations[line.title] = costs[0].nfe + sum(sizes) / len(images)
            made[line.title] = to_uint8(steps[-1]).cpu()
            if with_noises and line.steps == most:
                collect_noises(batch.noises, line.name, inversion)
        if self.features is not None:
            batch.features.update({name: self.features(pictures).float().cpu() for name, pictures in made.items()})
        batch.pictures.update({name: pictures[:num_pictures].clone() for name, pictures in made.items()})
        return batch
