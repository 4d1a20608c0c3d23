"""The cases of a PIE-Bench evaluation for its page: what a browser needs of each, every picture once."""

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.metrics.measures import PIE_COLUMNS

LOSSLESS_SIDE = 128
"""Pictures up to this size stay PNG; larger ones become WebP."""

WEBP_QUALITY = 80

FORM = "published"
"""The form whose measures decide which edits failed most."""


@dataclass(frozen=True)
class PageEdit:
    """One row's edit of a case.

    Args:
        row: name of the row in results.json.
        image: file of the edit.
        reconstruction: file of the reconstructed source, where the editor has one.
        mask: file of the mask that the editor made, where it has one.
        values: measured values by form and measure, unscaled; nan where undefined.
    """

    row: str
    image: Path
    reconstruction: Path | None
    mask: Path | None
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PageCase:
    """A case with the edits of all rows.

    Args:
        blended: the words of source and target that the edit concerns, where they are annotated.
        source, mask, truth: files: the picture, the annotated mask (white where the edit may be), the true edit.
    """

    key: str
    type_id: str
    source_prompt: str
    target_prompt: str
    instruction: str
    blended: tuple[str, str] | None
    source: Path
    mask: Path | None
    truth: Path | None
    edits: tuple[PageEdit, ...]


def case_rows(cases: Iterable[PageCase]) -> list[dict[str, Any]]:
    """Lines of cases.csv: one for each edit and form."""
    return [
        {
            "row": edit.row,
            "key": case.key,
            "type": case.type_id,
            "target_prompt": case.target_prompt,
            "form": form,
            **measures,
        }
        for case in cases
        for edit in case.edits
        for form, measures in edit.values.items()
    ]


class Pictures:
    """Data URIs of picture files, each different one once.

    Args:
        side: pixels of the longer side at the most.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.uris: list[str] = []
        self._numbers: dict[bytes, int] = {}
        self._files: dict[Path, int] = {}

    def number(self, path: Path | None) -> int | None:
        """The picture's place in `uris`; None for no file. Raises OSError for a file that is no picture."""
        if path is None:
            return None
        if path not in self._files:
            data = path.read_bytes()
            digest = hashlib.sha256(data).digest()
            if digest not in self._numbers:
                self._numbers[digest] = len(self.uris)
                with Image.open(io.BytesIO(data)) as picture:
                    self.uris.append(small_uri(picture, self.side))
            self._files[path] = self._numbers[digest]
        return self._files[path]


def small_uri(picture: Image.Image, side: int) -> str:
    """A picture as a data URI, at most `side` pixels: PNG where it is small or black and white, else WebP."""
    binary = picture.mode in ("1", "L") and {colour for _, colour in picture.getcolors() or ()} <= {0, 255}
    image = picture.convert("L" if binary else "RGB")
    # Masks keep their sharp edges, photographs are averaged.
    image.thumbnail((side, side), Image.Resampling.NEAREST if binary else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if binary:
        image.convert("1").save(stream, "PNG", optimize=True)
    elif max(image.size) <= LOSSLESS_SIDE:
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "WEBP", quality=WEBP_QUALITY)
    kind = "webp" if stream.getvalue()[:4] == b"RIFF" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def gallery(cases: Sequence[PageCase], rows: Sequence[Mapping[str, Any]], pictures: Pictures) -> list[dict[str, Any]]:
    """The cases as JSON: texts, numbers of pictures, values in the order of the page's forms and columns.

    Args:
        rows: rows of results.json.
    """
    numbers = {row["row"]: number for number, row in enumerate(rows)}
    ranks = failure_ranks(cases)
    return [
        {
            "key": case.key,
            "type": case.type_id,
            "source_prompt": case.source_prompt,
            "target_prompt": case.target_prompt,
            "instruction": case.instruction,
            "blended": case.blended,
            "source": pictures.number(case.source),
            "mask": pictures.number(case.mask),
            "truth": pictures.number(case.truth),
            "edits": [
                {
                    "row": numbers[edit.row],
                    "image": pictures.number(edit.image),
                    "reconstruction": pictures.number(edit.reconstruction),
                    "mask": pictures.number(edit.mask),
                    "values": {
                        form: [_finite(measures.get(column.name)) for column in PIE_COLUMNS]
                        for form, measures in edit.values.items()
                    },
                    "rank": round(ranks[edit.row][case.key], 4),
                    "gain": _finite(clip_gain(case, edit)),
                }
                for edit in sorted(case.edits, key=lambda edit: numbers[edit.row])
            ],
        }
        for case in cases
    ]


def failure_ranks(cases: Sequence[PageCase]) -> dict[str, dict[str, float]]:
    """Rank of each edit among those of its row, by row and key: 0 is the worst failure, 1 the best.

    An edit fails where it destroys the background or where the text does not happen, so it has the worse of two ranks:
    that of the background's PSNR, and that of what CLIP's similarity to the target prompt gains over the untouched
    picture. An edit without one of them (a mask without background) has the other's, one without both is a failure.
    """
    edits: dict[str, list[tuple[str, float, float]]] = {}
    for case in cases:
        for edit in case.edits:
            found = (case.key, _value(edit, "psnr"), clip_gain(case, edit))
            edits.setdefault(edit.row, []).append(found)
    return {
        row: dict(
            zip(
                (key for key, _, _ in found),
                _worse(_shares([psnr for _, psnr, _ in found]), _shares([gain for _, _, gain in found])),
                strict=True,
            )
        )
        for row, found in edits.items()
    }


def clip_gain(case: PageCase, edit: PageEdit) -> float:
    """CLIP similarity that the edit has gained over the untouched picture (the row `identity`).

    Without that row the similarity itself, which says less: some prompts are hard for any picture.
    """
    identity = next((other for other in case.edits if other.row == "identity"), None)
    return _value(edit, "clip_whole") - (0.0 if identity is None else _value(identity, "clip_whole"))


def _value(edit: PageEdit, measure: str) -> float:
    value = edit.values.get(FORM, {}).get(measure)
    return math.nan if value is None else value


def _shares(values: Sequence[float]) -> np.ndarray:
    """The share of the other values that each is above, half for equal ones; nan for nan."""
    array = np.asarray(values, dtype=float)
    known = np.sort(array[~np.isnan(array)])
    if len(known) < 2:
        return np.where(np.isnan(array), np.nan, 1.0)
    below, up_to = np.searchsorted(known, array, "left"), np.searchsorted(known, array, "right")
    return np.where(np.isnan(array), np.nan, (below + up_to - 1) / 2 / (len(known) - 1))


def _worse(first: np.ndarray, second: np.ndarray) -> list[float]:
    """The smaller of two shares, that which is known, or 0."""
    return np.nan_to_num(np.fmin(first, second), nan=0.0).tolist()


def _finite(value: float | None) -> float | None:
    """JSON has no nan."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
