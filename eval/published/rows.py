"""Published figures of editors: typed rows in the units of our own results, with the traps of each as footnotes.

The figures stand in published.yaml as the papers print them. What can be computed about them is computed here: a mean
PSNR that a mean MSE rules out, and a method of which two papers print two sets of figures.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from eval.metrics.pixels import MAX_PSNR

Protocol = Literal["pie_bench", "reconstruction", "ablation", "stylediffusion", "user_study", "timing"]
"""Protocol of a measurement: PIE-Bench's edits; reconstructions of whole images; PIE-Bench with parts of a method left
out; StyleDiffusion's own images and measures; which of four results people prefer; nothing but time."""

ROUNDING = 0.05
"""dB that rounding to the printed digits may take from a PSNR or give to an MSE's bound."""

_DATA = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class PublishedTiming:
    """Seconds an image on one machine, as a paper gives them; `total` where the two are not told apart."""

    device: str
    source: str
    invert: float | None = None
    edit: float | None = None
    total: float | None = None


@dataclass(frozen=True)
class PublishedRow:
    """A method's figures in a paper.

    Args:
        method: the same word wherever it is the same method.
        title: name as people read it.
        sources: tables that print the values; papers: what these tables stand in.
        protocol: protocol of the measurement.
        prompts: short, long or instructive.
        mask: none, automatic (predicted), given (the benchmark's) or unsaid.
        values: figures by measure, unscaled like ours.
        steps: number of the sampler's steps, where said.
        timings: one for each machine.
        notes: warnings before a comparison, in sentences.
    """

    method: str
    title: str
    sources: tuple[str, ...]
    papers: tuple[str, ...]
    protocol: Protocol
    prompts: str
    mask: str
    values: Mapping[str, float]
    steps: int | None = None
    timings: tuple[PublishedTiming, ...] = ()
    notes: tuple[str, ...] = field(default=(), repr=False)


def published_rows() -> tuple[PublishedRow, ...]:
    """Every row of every table, as printed."""
    return _read(_DATA)


def comparison_rows(instructive: bool) -> list[PublishedRow]:
    """PIE-Bench's rows with descriptive or with instructive prompts, a line for each method and set of figures.

    Tables that print the same figures for a method, or its time alone, become one line. To the notes come those that
    the figures themselves give: `contradiction` and a second set of figures elsewhere.
    """
    lines: list[PublishedRow] = []
    for row in published_rows():
        if row.protocol != "pie_bench" or (row.prompts == "instructive") != instructive:
            continue
        at = next((index for index, line in enumerate(lines) if _same(line, row)), None)
        if at is None:
            lines.append(row)
        else:
            lines[at] = _joined(lines[at], row)
    lines = [line for line in lines if line.values]
    return [replace(line, notes=tuple(_unique([*line.notes, *_computed(line, lines)]))) for line in lines]


def contradicts(psnr: float | None, mse: float | None) -> bool:
    """Whether a mean PSNR (dB, of images in [0, 1]) is less than the mean MSE allows.

    -10 log10(MSE) is convex, so its mean is at least that of the mean MSE (Jensen). A row below that has a wrong
    unit, or its two means are over different images. Missing figures contradict nothing.
    """
    if psnr is None or mse is None or math.isnan(psnr) or math.isnan(mse):
        return False
    return psnr < least_psnr(mse) - ROUNDING


def least_psnr(mse: float) -> float:
    """The least mean PSNR that images of this mean MSE can have, in dB, each counted with MAX_PSNR at the most."""
    return -10 * math.log10(mse + 10 ** (-MAX_PSNR / 10))


def contradiction(psnr: float | None, mse: float | None) -> str | None:
    """The footnote of figures that contradict each other, or None."""
    if not contradicts(psnr, mse) or mse is None:
        return None
    return (
        f"Contradiction: a mean MSE of {1e4 * mse:.2f}×10⁻⁴ implies a mean PSNR of at least {least_psnr(mse):.1f} dB, "
        f"and {psnr:.2f} dB is given. One of them has another unit or another average; do not compare it."
    )


@cache
def _read(path: Path) -> tuple[PublishedRow, ...]:
    file = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(_row(table, row, file["notes"]) for table in file["tables"] for row in table["rows"])


def _row(table: Mapping[str, Any], row: Mapping[str, Any], notes: Mapping[str, str]) -> PublishedRow:
    """A row of the file, with what its table says of all of them."""
    merged = {**table, **row}
    values = row.get("values") or [None] * len(table["columns"])
    divisors = table.get("printed_times", {})
    seconds = {part: row[f"seconds_{part}"] for part in ("invert", "edit", "total") if f"seconds_{part}" in row}
    return PublishedRow(
        method=row["method"],
        title=row["title"],
        sources=(table["source"],),
        papers=(table["paper"],),
        protocol=merged["protocol"],
        prompts=merged["prompts"],
        mask=merged["mask"],
        values={
            name: value / divisors.get(name, 1)
            for name, value in zip(table["columns"], values, strict=True)
            if value is not None
        },
        steps=merged.get("steps"),
        timings=(PublishedTiming(merged["device"], table["source"], **seconds),) if seconds else (),
        notes=tuple(notes[name].strip() for name in _unique([*table.get("notes", []), *row.get("notes", [])])),
    )


def _same(line: PublishedRow, row: PublishedRow) -> bool:
    """Whether two rows are of one method and no figure that both have differs."""
    shared = line.values.keys() & row.values.keys()
    return line.method == row.method and all(line.values[name] == row.values[name] for name in shared)


def _joined(line: PublishedRow, row: PublishedRow) -> PublishedRow:
    """Two rows of one method in one line; a table with its time alone is a source of the time alone."""
    return replace(
        line,
        sources=(*line.sources, *(row.sources if row.values else ())),
        papers=tuple(_unique([*line.papers, *row.papers])),
        mask=row.mask if line.mask == "unsaid" else line.mask,
        values={**line.values, **row.values},
        steps=line.steps if row.steps is None else row.steps,
        timings=(*line.timings, *row.timings),
        notes=tuple(_unique([*line.notes, *row.notes])),
    )


def _computed(line: PublishedRow, lines: Iterable[PublishedRow]) -> list[str]:
    """Notes that follow from the figures."""
    notes = []
    found = contradiction(line.values.get("psnr"), line.values.get("mse"))
    if found:
        notes.append(found)
    others = [other.sources[0] for other in lines if other is not line and other.method == line.method]
    if others:
        notes.append(f"Other figures of the same method are printed in {' and '.join(others)}.")
    return notes


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
