"""The page of eval.reconstruction: TurboEdit's table 2 with the encoder's rows in it, curves and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from markupsafe import Markup
from torch import Tensor

from data.pages.charts import Series, line_chart
from data.pages.page import EXACT, Figures, Picture, number, picture_uri
from eval.editors.titles import COLOURS, GREY, render_page, title_of
from eval.published.rows import PublishedRow, published_rows


def write_reconstruction_page(
    out: Path, results: Figures, pictures: Mapping[str, Sequence[Tensor]], captions: Sequence[str]
) -> Path:
    """DIR/index.html.

    Args:
        pictures: "image", "vae" and the last reconstructions of every row of the table (EDITOR-STEPS) of the first
            images, uint8 [3, H, W].
        captions: captions of these.
    """
    shown = {"image": "image", "vae": "VAE"}
    shown |= {f"{row['editor']}-{row['steps']}": _row_title(row) for row in results["table"] if row["steps"]}
    gallery = [
        {
            "text": shorten(caption, 160, placeholder=" ..."),
            "pictures": [Picture(picture_uri(pictures[name][index].permute(1, 2, 0).numpy())) for name in shown],
        }
        for index, caption in enumerate(captions)
    ]
    return render_page(
        "reconstruction.html.j2",
        out,
        title="Reconstruction by inversion",
        results=results,
        tiles=_tiles(results),
        row_title=_row_title,
        published=published(),
        remarks=_remarks(results),
        reconstruction_chart=reconstruction_chart(results),
        reconstruction_columns=list(shown.values()),
        reconstruction_gallery=gallery,
    )


def published() -> list[PublishedRow]:
    """Table 2 of TurboEdit's paper, the only one of reconstructions with FID."""
    return [row for row in published_rows() if row.protocol == "reconstruction" and "fid" in row.values]


def reconstruction_chart(results: Figures) -> Markup:
    """PSNR to the VAE's round trip after each step of the longest inversions."""
    series = []
    for name, found in results["reconstruction"].items():
        if name == "vae":
            continue
        steps = [entry["mean"] for entry in found["psnr_to_vae_by_step"]]
        points = [(step, value, f"step {step}, {value:.1f} dB") for step, value in enumerate(steps, start=1)]
        # An exact reconstruction has no meaningful place on a scale of decibels.
        series.append(Series(title_of(name), COLOURS.get(name, GREY), [p for p in points if p[1] < EXACT]))
    return line_chart(series, "steps", "PSNR to the VAE's round trip (dB)", whole_x=True)


def _row_title(row: Mapping[str, Any]) -> str:
    """Editor and number of steps."""
    if not row["steps"]:
        return title_of(row["editor"])
    return f"{title_of(row['editor'])}, {row['steps']} step{'s' if row['steps'] > 1 else ''}"


def _remarks(results: Figures) -> list[str]:
    """Warnings before FID and KID are compared."""
    remarks = dict.fromkeys(row["remark"] for row in results["table"] if row.get("remark"))
    if any(row.get("kid", 0) < 0 for row in results["table"]):
        words = (
            "KID falls below 0: every picture has its own original among the real ones, which counts while they are few"
        )
        remarks[words] = None
    return list(remarks)


def _tiles(results: Figures) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the encoder by number of steps, the strongest other beside it, and the ceiling."""
    tiles = []
    for row in (row for row in results["table"] if row["editor"] == "turboedit"):
        others = [other for other in results["table"] if other["editor"] not in ("turboedit", "vae")]
        others = [other for other in others if other["steps"] == row["steps"] and other["psnr"]["mean"] is not None]
        words = f"{_row_title(row)}: PSNR to the image"
        if others:
            best = max(others, key=lambda other: other["psnr"]["mean"])
            words += f"; the strongest baseline, {_row_title(best)}: {number(best['psnr']['mean'], 1)} dB"
        tiles.append((number(row["psnr"]["mean"], 1), "dB", words))
    ceiling = next(row for row in results["table"] if row["editor"] == "vae")
    return [*tiles, (number(ceiling["psnr"]["mean"], 1), "dB", "VAE round trip, the ceiling")]
