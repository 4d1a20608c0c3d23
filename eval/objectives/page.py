"""The page of a comparison of objectives: one table of figures, one of differences, and what each row sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data.pages.charts import Bar, Series, interval_chart, line_chart
from data.pages.page import Figures, number
from eval.editors.titles import render_page
from eval.harness.results import Columns
from eval.metrics.measures import MEASURES
from eval.objectives.encoders import BASELINE, CEILING
from eval.objectives.figures import EDITED, GAIN

_LABELLED = ("#0b5fa5", "#e07b1f")

_COLOURS = ("#9ec3e6", "#5a9bd4", "#0b5fa5", "#06305a")


def write_objectives_page(out: Path, results: Figures, texts: Mapping[str, str]) -> Path:
    """Write DIR/index.html.

    Args:
        out: Folder of the page.
        results: Content of results.json.
        texts: Config file of each row as it was written.
    """
    rows, columns = results["rows"].values(), columns_of(results)
    return render_page(
        "objectives.html.j2",
        out,
        title="Objectives of the encoder, side by side",
        results=results,
        head_of=column_head,
        columns=columns,
        paired=[name for name in columns if any(name in row["differences"] for row in rows)],
        texts=texts,
        cell=cell_words,
        charts=_difference_charts(results),
        time_charts=_time_charts(results),
    )


def columns_of(results: Figures) -> list[str]:
    """Columns of the table: reconstruction by step, edits, the gain, the noise by timestep, and the training's time."""
    named = dict.fromkeys(name for row in results["rows"].values() for name in row["figures"])
    steps = [name for name in named if name.startswith("step_")]
    noise = [name for name in named if name.startswith(("std_", "lag1_"))]
    return [*steps, *(name for name in (*EDITED, GAIN) if name in named), *noise, "minutes"]


def column_head(name: str) -> tuple[str, str]:
    """Title and unit of a column."""
    first, _, last = name.partition("_")
    if first == "step":
        return f"step {last}", "dB"
    if first in ("std", "lag1"):
        return f"{'deviation' if first == 'std' else 'neighbours'}, t {last}", ""
    if name == GAIN:
        return "gain over DDPM + residual", "dB"
    return MEASURES[name].head if name in MEASURES else ("training", "min")


def cell_words(name: str, found: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A figure with the half of its interval, as the table prints it; a dash for none."""
    if found is None or found["value"] is None or found["value"] != found["value"]:
        return "–"
    scale = MEASURES[name].scale if name in MEASURES else 1.0
    digits = 2 if name.startswith(("std_", "lag1_")) else 1
    half = max(found["high"] - found["value"], found["value"] - found["low"])
    value = f"{scale * found['value']:{'+' if signed else ''}.{digits}f}"
    return value if half != half else f"{value} ± {number(scale * half, digits)}"


def objectives_words(results: Figures) -> str:
    """The table as text."""
    names = columns_of(results)
    table = Columns("row", *(" ".join(filter(None, column_head(name))) for name in names))
    for name, row in results["rows"].items():
        table.add(name, *(cell_words(column, row["figures"].get(column)) for column in names))
    return str(table)


def _difference_charts(results: Figures) -> list[Markup]:
    """What each row changes: its differences from the baseline in the last reconstruction, edits and what stays."""
    differences = {name: row["differences"] for name, row in results["rows"].items() if row["differences"]}
    steps = [name for found in differences.values() for name in found if name.startswith("step_")]
    drawn = [(name, "dB") for name in sorted(set(steps))[-1:]]
    charts = []
    for column, unit in [*drawn, ("changed", "points"), ("kept", "points"), ("psnr_outside", "dB")]:
        scale = MEASURES[column].scale if column in MEASURES else 1.0
        known = {name: found[column] for name, found in differences.items() if column in found}
        bars = [
            Bar(name, scale * at["value"], scale * at["low"], scale * at["high"], cell_words(column, at, signed=True))
            for name, at in known.items()
            if at["low"] == at["low"]
        ]
        charts.append(interval_chart(bars, f"{column_head(column)[0]}, less {results['baseline']} ({unit})"))
    return charts


def _time_charts(results: Figures) -> list[Markup]:
    """What longer training buys: figures over its minutes, with what bounds them; none where all see alike."""
    rows = sorted((row["figures"] for row in results["rows"].values()), key=lambda figures: figures["minutes"]["value"])
    minutes = [figures["minutes"]["value"] for figures in rows]
    samples = results["about"]["samples"]
    if max(samples) < 3 * min(samples):
        return []
    ends = (minutes[0], minutes[-1])

    def line(name: str, column: str, colour: str, scale: float = 1.0) -> Series:
        points = [(x, scale * figures[column]["value"]) for x, figures in zip(minutes, rows, strict=True)]
        return Series(name, colour, [(x, y, f"{y:.1f} after {x:.1f} min") for x, y in points])

    def bound(name: str, value: float, colour: str) -> Series:
        return Series(name, colour, [(x, value, f"{value:.1f}") for x in ends], dots=False)

    steps = sorted(name for name in rows[0] if name.startswith("picture_"))
    generator, strongest = (results["references"][name] for name in (CEILING, BASELINE))
    vae = bound("VAE's round trip", results["vae"]["value"], "#888")
    shades = zip(steps, _COLOURS[-len(steps) :], strict=False)
    drawn = {
        "PSNR of reconstructions (dB)": [
            *(line(f"step {name.removeprefix('picture_')}", name, shade) for name, shade in shades),
            vae,
        ],
        "edits (%)": [
            line("changed", "changed", _COLOURS[2], 100),
            bound("changed by the generator from fresh noise", 100 * generator["changed"]["value"], "#b9b9b9"),
            line("kept", "kept", _LABELLED[1], 100),
            bound("kept by the generator from fresh noise", 100 * generator["kept"]["value"], "#e8c9a8"),
        ],
        "PSNR outside of edits (dB)": [
            line("encoder", "psnr_outside", _COLOURS[2]),
            bound("DDPM inversion with residual", strongest["psnr_outside"]["value"], "#e07b1f"),
            vae,
        ],
    }
    return [line_chart(series, "minutes of training", label, log_x=True) for label, series in drawn.items()]
