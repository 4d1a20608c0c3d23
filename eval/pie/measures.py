"""The second half of a PIE-Bench evaluation: the saved pictures measured, in batches, by any number of processes.

MEASURES/ROW-UNIT-DIGEST.json holds the figures of one row on one batch of cases. The digest is that of the pictures and
of the metrics, so what has changed is measured again and nothing else is.
"""

import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.jobs.files import file_digest
from data.jobs.kept import KeptFolder
from eval.pie.cases import PieCase
from eval.pie.edits import read_pixels, read_record
from eval.pie.metrics import TRUTH_MEASURES, PieMetrics, SourceFeatures

TRUTH = "truth"
"""Form of what is measured against the true edit, beside PIE-Bench's own forms."""

JPEG_QUALITY = 75
"""Pillow's quality by default, with which the official runners saved their results."""

_FORM = "PSNRs are not cut"
"""Part of all digests: figures that were measured before are measured again."""

EditValues = dict[str, dict[str, float]]
"""form -> measure -> value; nan where it is not defined."""


@dataclass(frozen=True)
class _Piece:
    """One row on the cases of one unit that it has edits of; `to_compress`: keys that become a JPEG first."""

    name: str
    row: str
    unit: int
    cases: tuple[PieCase, ...]
    to_compress: frozenset[str]


@torch.no_grad()
def measure_edits(
    rows: Sequence[str],
    cases: Sequence[PieCase],
    edits: Path,
    folder: Path,
    metrics: PieMetrics,
    batch: int = 16,
    jpeg: bool = False,
    references: Collection[str] = (),
) -> dict[str, dict[str, EditValues]]:
    """Figures by row and key of all edits in `edits` (eval.pie.edits); those in `folder` are taken as they are.

    Args:
        batch: pictures at a time.
        jpeg: measure edits as the official runners did, after a JPEG of quality 75; what came as one stays as it is.
        references: rows that are no edits and are measured as they are.

    Raises:
        ValueError: an edit has another size than its source.
    """
    kept = KeptFolder(folder)
    compressed = frozenset(rows) - frozenset(references) if jpeg else frozenset()
    units = units_of(cases, batch)
    pieces = {piece.name: piece for piece in _pieces(rows, units, edits, metrics.about, compressed)}
    sources: tuple[int, SourceFeatures] | None = None
    for name in kept.missing({name: len(piece.cases) for name, piece in pieces.items()}, "measuring", "edit"):
        piece = pieces[name]
        unit = units[piece.unit]
        if sources is None or sources[0] != piece.unit:
            sources = (piece.unit, _source_features(metrics, unit))
        kept.keep(name, _measure(piece, unit, sources[1], edits, metrics))
    all_values: dict[str, dict[str, EditValues]] = {row: {} for row in rows}
    for piece in pieces.values():
        all_values[piece.row] |= {key: _with_nan(values) for key, values in kept.read(piece.name).items()}
    return all_values


def _pieces(
    rows: Sequence[str],
    units: Sequence[Sequence[PieCase]],
    edits: Path,
    about: Mapping[str, str],
    compressed: Collection[str],
) -> list[_Piece]:
    """All pieces of work, unit by unit, so that what the rows share is computed once."""
    found = []
    for unit, part in enumerate(units):
        shared = [_FORM, about, [[case.key, file_digest(case.image), _case_digest(case)] for case in part]]
        for row in rows:
            there = tuple(case for case in part if (edits / row / f"{case.key}.png").is_file())
            if there:
                pictures = [file_digest(edits / row / f"{case.key}.png") for case in there]
                to_compress = _to_compress(there, edits / row) if row in compressed else frozenset()
                partly = [sorted(to_compress)] if row in compressed and len(to_compress) < len(there) else []
                words = json.dumps([shared, pictures, row in compressed, *partly], sort_keys=True)
                digest = hashlib.sha256(words.encode()).hexdigest()[:16]
                found.append(_Piece(f"{row}-{unit:04d}-{digest}", row, unit, there, to_compress))
    return found


def units_of(cases: Sequence[PieCase], batch: int) -> list[tuple[PieCase, ...]]:
    """Units of at most `batch` cases, those of one unit with pictures of one size."""
    sizes: dict[tuple[int, ...], list[PieCase]] = {}
    for case in cases:
        sizes.setdefault(case.mask.shape, []).append(case)
    return [tuple(same[at : at + batch]) for same in sizes.values() for at in range(0, len(same), batch)]


def _to_compress(cases: Sequence[PieCase], folder: Path) -> frozenset[str]:
    """Keys of the edits that were no JPEG when they came."""
    return frozenset(case.key for case in cases if not read_record(folder, case.key).get("jpeg"))


def _case_digest(case: PieCase) -> str:
    texts = "\n".join((case.source_prompt, case.target_prompt)).encode()
    truth = b"" if case.truth is None else f"{file_digest(case.truth)} {TRUTH_MEASURES}".encode()
    return hashlib.sha256(case.mask.tobytes() + texts + truth).hexdigest()[:16]


def _source_features(metrics: PieMetrics, cases: Sequence[PieCase]) -> SourceFeatures:
    masks = torch.from_numpy(np.stack([case.mask for case in cases]))[:, None]
    prompts = [case.source_prompt for case in cases], [case.target_prompt for case in cases]
    return metrics.sources(_stacked([read_pixels(case.image) for case in cases]), masks, *prompts)


def _measure(
    piece: _Piece, unit: tuple[PieCase, ...], sources: SourceFeatures, edits: Path, metrics: PieMetrics
) -> dict[str, EditValues]:
    """Values by key. Nan becomes None, as JSON has none."""
    pictures = []
    for case in piece.cases:
        picture = read_pixels(edits / piece.row / f"{case.key}.png")
        if picture.shape[:2] != case.mask.shape:
            raise ValueError(
                f"{piece.row}/{case.key}.png has {picture.shape[1]}x{picture.shape[0]} px; its source has "
                f"{case.mask.shape[1]}x{case.mask.shape[0]}"
            )
        pictures.append(_as_jpeg(picture) if case.key in piece.to_compress else picture)
    keys = [case.key for case in piece.cases]
    positions = [position for position, case in enumerate(unit) if case.key in keys]
    found = metrics.measure(sources if len(positions) == len(unit) else sources[positions], _stacked(pictures))
    values: dict[str, EditValues] = {
        key: {form: {name: column[i].item() for name, column in columns.items()} for form, columns in found.items()}
        for i, key in enumerate(keys)
    }
    for case, picture in zip(piece.cases, pictures, strict=True):
        if case.truth is not None:
            mask = torch.from_numpy(case.mask)[None, None]
            near = metrics.to_truth(_stacked([picture]), _stacked([read_pixels(case.truth)]), mask)
            values[case.key][TRUTH] = {name: value.item() for name, value in near.items()}
    return {
        key: {
            form: {name: None if value != value else value for name, value in columns.items()}  # type: ignore[misc]
            for form, columns in forms.items()
        }
        for key, forms in values.items()
    }


def _with_nan(values: Mapping[str, Mapping[str, float | None]]) -> EditValues:
    nan = float("nan")
    return {
        form: {name: nan if value is None else value for name, value in columns.items()}
        for form, columns in values.items()
    }


def _stacked(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 [B, 3, H, W] of pictures [H, W, 3] of one size."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _as_jpeg(picture: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(stream).convert("RGB"))
