"""The page of an inspection: one HTML file with everything in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data.inspection.captions import Lengths
from data.inspection.findings import Findings
from data.inspection.fit import IndexMemory
from data.inspection.folder import Contents
from data.inspection.samples import Sampled
from data.pages.histogram import Bars, histogram
from data.pages.page import counted, write_html
from data.shards.dataset import ARRAYS, OF_A_CAPTION
from data.shards.sample import IMAGES, SOURCE_IMAGES

RAW, FINAL = "#b9c2cf", "#0b5fa5"
"""Colours of captions as they came and as training uses them."""

_QUANTILE = 95


@dataclass(frozen=True)
class Inspection:
    """All that an inspection found out.

    Args:
        folder: the shards.
        findings: what is wrong, and what is worth knowing.
        contents: what the folder holds.
        sampled: what the random sample shows; None where no sample can be read.
        memory: bytes of the loader's index; empty where something is wrong.
        backbone: the one that the shards were compared with, or None.
        global_batch: samples of a step that they have to suffice for, or None.
        checksums: whether every byte was read.
    """

    folder: Path
    findings: Findings
    contents: Contents
    sampled: Sampled | None
    memory: Sequence[IndexMemory]
    backbone: str | None
    global_batch: int | None
    checksums: bool

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        problems, remarks = len(self.findings.problems), len(self.findings.remarks)
        if problems:
            return f"Not ready: {problems} problem{'s' * (problems > 1)}"
        return f"Ready, with {remarks} remark{'s' * (remarks > 1)}" if remarks else "Ready"


def write_page(inspection: Inspection, out: Path) -> Path:
    """Writes DIR/index.html; returns its path."""
    sampled = inspection.sampled
    lengths = sampled.captions.lengths() if sampled else []
    origin = inspection.contents.origin
    return write_html(
        Path(__file__).with_name("templates"),
        "inspection.html.j2",
        out,
        {"size": readable_size, "percent": percent, "grouped": grouped, "sentence": _sentence},
        title=f"Shards of data.{origin['stage']}" if origin else "Shards",
        inspection=inspection,
        findings=inspection.findings,
        contents=inspection.contents,
        origin=origin,
        sampled=sampled,
        headline=_tiles(inspection),
        charts=[_chart(measure) for measure in lengths],
        lengths=[_row(measure) for measure in lengths],
        members=_members(inspection.contents),
        sizes=_sizes(inspection.contents),
        several=several_captions(inspection.contents) if inspection.contents.num_several else "",
    )


def readable_size(num: float) -> str:
    """Bytes in the unit that makes a number of one to four digits."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if num < 1000:
            return f"{num:.0f} {unit}" if unit == "bytes" or num >= 100 else f"{num:.1f} {unit}"
        num /= 1000
    return f"{num:.1f} TB"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent, or a dash for none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def grouped(value: float | None, digits: int = 1) -> str:
    """A number with commas between its thousands, or a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tiles(inspection: Inspection) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the first things to know."""
    contents = inspection.contents
    noun = "sample" if contents.count == 1 else "samples"
    tiles = [(f"{contents.count:,}", "", f"{noun} in {counted(contents.num_shards, 'shard')}")]
    if contents.count:
        value, unit = readable_size(contents.bytes).split()
        tiles.append((value, unit, f"on disk, {readable_size(contents.bytes / contents.count)} a sample"))
    if contents.num_inputs:
        left_out = contents.num_inputs - contents.num_used
        damaged = contents.drops["damage"].total()
        words = f"of {contents.num_inputs:,} inputs were left out, {damaged:,} of them damaged"
        tiles.append((f"{100 * left_out / contents.num_inputs:.1f}", "%", words))
    cut = share_cut(inspection)
    if cut is not None:
        words = f"of the captions are not read to the end; as they came {percent(cut[0])}"
        tiles.append((f"{100 * cut[1]:.1f}", "%", words))
    if inspection.global_batch:
        batches, over = divmod(contents.count, inspection.global_batch)
        rest = f", {over:,} samples over" if over else ""
        tiles.append((f"{batches:,}", "", f"global batches of {inspection.global_batch:,} an epoch{rest}"))
    return tiles


def share_cut(inspection: Inspection) -> tuple[float, float] | None:
    """Give the shares of raw and of final captions that are not read to the end; None where nobody counted.

    The backbone's tokenizers count on the random sample; without a backbone data.caption has counted all samples.
    """
    if inspection.sampled and inspection.sampled.captions.share_cut:
        return inspection.sampled.captions.share_cut
    checks = inspection.contents.checks
    if "truncated" in checks and "truncated_raw" in checks:
        raw, final = (checks[name]["true"] / checks[name]["count"] for name in ("truncated_raw", "truncated"))
        return raw, final
    return None


def several_captions(contents: Contents) -> str:
    """The samples with several captions in words, and which captions training takes of them."""
    figures = contents.checks["captions"]
    words = (
        f"several captions: {contents.num_several:,} of {contents.count:,} samples, "
        f"{figures['sum'] / contents.num_several:.1f} on average, at most {figures['max']:.0f}"
    )
    made = [name for name in OF_A_CAPTION if ARRAYS[name] in contents.members]
    return f"{words}; the stored {' and '.join(made)} are of the first" if made else words


def _chart(measure: Lengths) -> Markup:
    columns = [Bars("as they came", RAW, measure.raw), Bars("as training uses them", FINAL, measure.final)]
    return histogram(columns, measure.name, measure.limit)


def _row(measure: Lengths) -> dict[str, Any]:
    """Figures of one way to measure captions."""
    rows = {}
    for name, lengths in (("raw", measure.raw), ("final", measure.final)):
        rows[name] = {
            "mean": float(np.mean(lengths)),
            "median": float(np.median(lengths)),
            "quantile": float(np.percentile(lengths, _QUANTILE)),
            "max": max(lengths),
            "cut": measure.share_cut(lengths),
        }
    return {"name": measure.name, "limit": measure.limit, **rows}


def _sizes(contents: Contents) -> list[dict[str, Any]]:
    """Samples by the shape of their picture, the most frequent first."""
    return [
        {"name": f"{size[0]} × {size[1]}", "aspect": size[0] / size[1], "num": num, "share": num / contents.count}
        for size, num in sorted(contents.sizes.items(), key=lambda item: -item[1])
    ]


def _members(contents: Contents) -> list[dict[str, Any]]:
    """Bytes by member, and what the tars need around them."""
    rows: list[dict[str, Any]] = []
    for suffix, (num, total) in sorted(contents.members.items()):
        layout = contents.origin.get("arrays", {}).get(suffix)
        kind = "picture" if suffix in (*IMAGES, *SOURCE_IMAGES) else "text"
        kind = f"{layout['dtype']} {layout.get('shape', 'by shape of the picture')}" if layout else kind
        rows.append({"name": f"KEY.{suffix}", "kind": kind, "num": num, "bytes": total})
    around = contents.bytes - sum(row["bytes"] for row in rows)
    return [*rows, {"name": "tar headers and padding", "kind": "", "num": contents.count, "bytes": around}]
