"""Results of a batch of images in eval.reconstruction, and the folder where finished batches are kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.jobs.files import whole
from eval.editors.editor import ReconstructingEditor
from eval.reconstructions.fidelity import Row
from eval.reconstructions.noise import Noises


@dataclass(frozen=True)
class InversionLine:
    """A line of the table: an editor on a number of steps."""

    name: str
    steps: int
    editor: ReconstructingEditor

    @property
    def title(self) -> str:
        """Name and steps in one word."""
        return f"{self.name}-{self.steps}"


@dataclass
class MeasuredBatch:
    """Results of one batch of images.

    Args:
        captions: captions of the first k images, which are shown.
        rows: rows of `reconstruction_rows`, with `steps`, the length of the inversion (0: the VAE's round trip).
        evaluations: network evaluations an image, by a line's title.
        pictures: "image", "vae" and the last reconstruction of every line, uint8 [k, 3, H, W] of those k.
        noises: noises of the longest inversions by editor and timestep; empty where they are not looked at.
        features: features of all images [B, D], by the names of `pictures`; empty without features.
    """

    captions: list[str]
    rows: list[Row]
    evaluations: dict[str, float]
    pictures: dict[str, Tensor]
    noises: Noises = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)


class BatchArchive:
    """Finished batches in a folder, each under a digest of its images and of all that decides its figures.

    Args:
        about: models, settings and metrics as JSON. Code is not part of it: after a change of a method, delete the
            folder.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = json.dumps(about, sort_keys=True)

    def read(self, captions: Sequence[str], images: Tensor) -> MeasuredBatch | None:
        """The batch of these images [B, 3, H, W], if it is finished."""
        path = self._path(captions, images)
        return MeasuredBatch(**torch.load(path, weights_only=True)) if path.is_file() else None

    def write(self, batch: MeasuredBatch, captions: Sequence[str], images: Tensor) -> None:
        """Keeps a finished batch."""
        path = self._path(captions, images)
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            torch.save(vars(batch), temporary)

    def _path(self, captions: Sequence[str], images: Tensor) -> Path:
        digest = hashlib.sha256("\n".join([self.about, *captions]).encode())
        digest.update(images.cpu().numpy().tobytes())
        return self.folder / f"{digest.hexdigest()[:16]}.pt"
