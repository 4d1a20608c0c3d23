"""The page of a comparison of objectives: one table of figures, one of differences, and what each row sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.pages.charts import Point, Series, line_chart, scatter_chart
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
        chart=_chart(results),
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


def _chart(results: Figures) -> Any:
    """Gain at equal success over the last reconstruction, a point a row."""
    points = []
    for name, row in results["rows"].items():
        figures = row["figures"]
        last = figures[max(key for key in figures if key.startswith("step_"))]
        gain = figures[GAIN]
        if any(value is None or value != value for value in (last["value"], last["low"], gain["value"], gain["low"])):
            continue
        points.append(
            Point(
                name,
                last["value"],
                gain["value"],
                f"{name}: {last['value']:.1f} dB, {gain['value']:+.1f} dB",
                _LABELLED[name == results["baseline"]],
                mark="ring",
                label=name,
                errors=((last["high"] - last["low"]) / 2, (gain["high"] - gain["low"]) / 2),
            )
        )
    return scatter_chart(points, "PSNR to the VAE's round trip after the last step (dB)", "gain at equal success (dB)")


def _time_charts(results: Figures) -> list[Any]:
    """What longer training buys: figures over its minutes, with what bounds them; none for trainings of like length."""
    rows = sorted((row["figures"] for row in results["rows"].values()), key=lambda figures: figures["minutes"]["value"])
    minutes = [figures["minutes"]["value"] for figures in rows]
    if minutes[-1] < 3 * minutes[0]:
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
