"""Judging edits of scenes: did the edit happen, was the rest kept, how far are the pixels from the truth.

changed       1 if the reader finds every edited attribute as in the target. For an object that comes or goes that is
              the layout (how many objects, and where); what a new object looks like is not asked.
kept          share of the attributes that the edit must not touch which read as in the VAE's round trip of the source.
kept_all      1 if all of them do.
psnr_inside   within the true mask, against the VAE's round trip of the true edit.
psnr_outside  outside of it, against the VAE's round trip of the source; nan for an edit that may change every pixel.
clip          similarity of the picture to the target's caption; nan without a CLIP.
structure     distance of the picture's layout from that of the source's VAE round trip; nan without a CLIP.

Of pictures without a scene another judge says less and more (eval.case_edits.judge): `changed` and `kept` are not
known, and beside the others stand

lpips_outside LPIPS outside of the mask, against the source's round trip.
psnr_whole    of the whole picture, against the source's round trip; lpips_whole likewise.
direction     similarity of the picture to the target's description less that to the source's.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data.world.description import attribute_targets
from data.world.edits import Edit, changed_attributes, kept_attributes
from eval.editors.few_steps import decode_latents
from eval.harness.fingerprints import network_fingerprint
from eval.metrics.attributes import AttributeReader
from eval.metrics.clip import ClipSimilarity
from eval.metrics.pixels import masked_psnr
from eval.metrics.structure import Structure
from eval.scene_edits.edit_set import EditSet
from models.backbone import Backbone

MEASURES = ("changed", "kept", "kept_all", "psnr_inside", "psnr_outside", "clip", "structure")
"""What is measured of each edited picture of a scene."""

FURTHER = ("lpips_outside", "psnr_whole", "lpips_whole", "direction")
"""What is measured beside it of pictures without a scene."""

Reading = Mapping[str, int]
"""Value indices by attribute, -1 for what is not there."""


@dataclass(frozen=True)
class EditScores:
    """Measures of one edited picture; the fields are explained at the head of this file."""

    kind: str
    changed: float
    kept: float
    kept_all: float
    psnr_inside: float
    psnr_outside: float
    clip: float
    structure: float
    lpips_outside: float = math.nan
    psnr_whole: float = math.nan
    lpips_whole: float = math.nan
    direction: float = math.nan

    def to_row(self) -> dict[str, str | float]:
        """Return the columns of a CSV; FURTHER where they are known."""
        return {name: value for name, value in asdict(self).items() if name not in FURTHER or not math.isnan(value)}


@dataclass(frozen=True)
class References:
    """Pictures and features that edits are compared with.

    Args:
        sources: Round trips of the sources, [N, 3, 64, 64].
        truths: Round trips of the true edits, [N, 3, 64, 64].
        readings: The sources' round trips as read.
        captions: Embeddings of the targets' captions [N, P]; None without a CLIP.
        structures: Self-similarities of the sources' round trips [N, T, T]; None without a CLIP.
        source_captions: Embeddings of the sources' captions [N, P]; None where nothing is compared with them.
    """

    sources: Tensor
    truths: Tensor
    readings: tuple[Reading, ...]
    captions: Tensor | None
    structures: Tensor | None
    source_captions: Tensor | None = None

    def part(self, start: int, count: int) -> "References":
        """Return the references of `count` edits from `start`."""
        rows = slice(start, start + count)
        texts, structures, before = (
            x if x is None else x[rows] for x in (self.captions, self.structures, self.source_captions)
        )
        return References(self.sources[rows], self.truths[rows], self.readings[rows], texts, structures, before)


class Judge(Protocol):
    """What says of edited pictures how good they are.

    Attributes:
        keeping: Measures that say how much an edit keeps.
        going: Measures that say how far it goes, the decisive one first.
        clip: CLIP for similarities, or None.
    """

    keeping: tuple[str, ...]
    going: tuple[str, ...]
    clip: ClipSimilarity | None

    @property
    def settings(self) -> list[Any]:
        """What decides the scores, as JSON."""
        ...

    def references(self, edits: EditSet, backbone: Backbone) -> References:
        """What the edits are compared with."""
        ...

    def scores(self, edits: EditSet, references: References, images: Tensor) -> list[EditScores]:
        """The scores of each of the edited `images` [N, 3, H, W]."""
        ...


class EditJudge:
    """Reads and compares edited pictures of scenes.

    Args:
        reader: Reader of attributes.
        clip: CLIP for similarities and structure, or None.
    """

    keeping: tuple[str, ...] = ("psnr_outside", "kept")
    going: tuple[str, ...] = ("changed", "clip")

    def __init__(self, reader: AttributeReader, clip: ClipSimilarity | None) -> None:
        self.reader = reader
        self.clip = clip
        self.structure = None if clip is None else Structure(clip.model.vision_model, clip.pixels)

    @property
    def settings(self) -> list[Any]:
        """Fingerprints of the networks that judge, as JSON."""
        return [network_fingerprint(self.reader), None if self.clip is None else network_fingerprint(self.clip.model)]

    @torch.no_grad()
    def references(self, edits: EditSet, backbone: Backbone) -> References:
        """The VAE's round trips, which no editor on these latents can be better than."""
        sources = decode_latents(backbone, backbone.encode_image(edits.sources))
        truths = decode_latents(backbone, backbone.encode_image(edits.truths))
        captions = None if self.clip is None else self.clip.embed(edits.target_prompts)
        structures = None if self.structure is None else self.structure.similarity(sources)
        return References(sources, truths, scene_readings(self.reader, sources), captions, structures)

    @torch.no_grad()
    def scores(self, edits: EditSet, references: References, images: Tensor) -> list[EditScores]:
        """Return the scores of each of the edited `images` [N, 3, 64, 64]."""
        inside = masked_psnr(images, references.truths, edits.masks).tolist()
        outside = masked_psnr(images, references.sources, ~edits.masks).tolist()
        clip = structure = [math.nan] * len(edits)
        if self.clip is not None and references.captions is not None:
            clip = self.clip.compare(images, references.captions).tolist()
        if self.structure is not None and references.structures is not None:
            structure = self.structure.distance(images, references.structures).tolist()
        found = []
        for row, (edit, reading) in enumerate(zip(edits.scenes, scene_readings(self.reader, images), strict=True)):
            kept = kept_share(edit, reading, references.readings[row])
            changed = float(has_changed(edit, reading))
            judged = (changed, kept, float(kept == 1), inside[row], outside[row], clip[row], structure[row])
            found.append(EditScores(edit.kind, *judged))
        return found


def scene_readings(reader: AttributeReader, images: Tensor) -> tuple[Reading, ...]:
    """Read the attributes of each of the `images` [N, 3, H, W] in [-1, 1]."""
    columns = {name: values.tolist() for name, values in reader.read(images).items()}
    return tuple({name: values[row] for name, values in columns.items()} for row in range(len(images)))


def load_reader(attributes: Path, device: torch.device) -> AttributeReader:
    """Load the attribute reader of a folder.

    Raises:
        ValueError: There is none.
    """
    if not attributes.is_dir():
        raise ValueError(f"there is no attribute reader at {attributes}; say where it is with --attributes")
    return AttributeReader.load(attributes, device)


def load_judge(attributes: Path, clip: Path | None, device: torch.device) -> EditJudge:
    """Load the judge from the folders of an attribute reader and a CLIPModel (or None)."""
    return EditJudge(load_reader(attributes, device), None if clip is None else ClipSimilarity(str(clip), device))


def has_changed(edit: Edit, reading: Reading) -> bool:
    """Whether every edited attribute reads as in the target; for an object that comes or goes the layout alone."""
    target = attribute_targets(edit.target)
    names = changed_attributes(edit)
    if "layout" in names:
        names = ("layout",)
    return all(reading[name] == target[name] for name in names)


def kept_share(edit: Edit, reading: Reading, before: Reading) -> float:
    """Share of the attributes that the edit must keep which read as `before`, the reading of the source's round trip.

    An object's slot changes when another one comes or goes. Where none has, it is looked for where it was.
    """
    same_number = (reading["b_shape"] >= 0) == (before["b_shape"] >= 0)
    pairs = kept_attributes(edit).items()
    return sum(reading[old if same_number else new] == before[old] for new, old in pairs) / len(pairs)
