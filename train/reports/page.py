"""The page of a run: one HTML file with its curves, its previews and its config, which loads nothing from elsewhere."""

import base64
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from data.jobs.kept import changed_settings
from data.pages.page import write_html
from train.reports.figures import COLOURS, NOISE_BAND, ChartGroup, best, chart_groups, compared
from train.reports.records import RunRecords

PAGE_FOLDER = "report"
"""Name of the page's folder in a run's."""

ABOUT = "about"
"""Name of the text in a preview's PNG that says what it shows, as JSON."""

_TEMPLATES = Path(__file__).with_name("templates")
_MOST_PREVIEWS = 10
_PREVIEW_WIDTH = 1024


@dataclass(frozen=True)
class Preview:
    """A preview picture on the page.

    Args:
        step: step of the run.
        uri: the picture as a data URI.
        columns: names of its columns, which stand above it; empty where the picture itself has them.
        words: what stands below each of its rows, if anything does.
    """

    step: int
    uri: str
    columns: tuple[str, ...]
    words: tuple[str, ...]


def write_run_page(run: RunRecords, out: Path) -> Path:
    """Write OUT/index.html of a run, finished or not; returns its path."""
    drawn = chart_groups(run)
    return write_html(
        _TEMPLATES,
        "run.html.j2",
        out,
        {},
        title=run.name,
        run=run,
        headline=_tiles(run),
        best=best(run),
        chart_groups=drawn,
        previews=previews(run),
        last_figures=_last_figures(drawn),
        config=yaml.safe_dump(run.config, sort_keys=False),
    )


def write_comparison(runs: Sequence[RunRecords], out: Path) -> Path:
    """Write OUT/index.html of several runs, their curves on top of each other; returns its path."""
    names = _names([run.folder for run in runs])
    named = dict(zip(names, runs, strict=True))
    return write_html(
        _TEMPLATES,
        "comparison.html.j2",
        out,
        {},
        title=", ".join(names),
        runs=[(name, run, COLOURS[n % len(COLOURS)], best(run)) for n, (name, run) in enumerate(named.items())],
        changes=[(name, changed_settings(runs[0].config, run.config)) for name, run in named.items()][1:],
        chart_groups=compared(named),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of different folders, with as many of those above them as tell them apart."""
    deepest = max(len(folder.resolve().parts) for folder in folders)
    tried = (["/".join(f.resolve().parts[-depth:]) for f in folders] for depth in range(1, deepest + 1))
    return next(names for names in tried if len(set(names)) == len(names))


def previews(run: RunRecords) -> list[Preview]:
    """The previews, the first and the last among them, at most ten and evenly spaced."""
    steps = sorted(run.previews)
    places = min(len(steps), _MOST_PREVIEWS)
    chosen = dict.fromkeys(steps[round(n * (len(steps) - 1) / max(places - 1, 1))] for n in range(places))
    return [_preview(step, run.previews[step], run.previews[step].stat().st_mtime_ns) for step in chosen]


@functools.lru_cache(maxsize=4 * _MOST_PREVIEWS)
def _preview(step: int, path: Path, _changed: int) -> Preview:
    """A preview, made small once for all pages of a training."""
    with Image.open(path) as picture:
        about = json.loads(picture.info.get(ABOUT, "{}"))
        shown = picture.convert("RGB")
    columns = tuple(about.get("columns", ()))
    if columns:
        shown = shown.crop((0, about["top"], shown.width, shown.height))
    if shown.width > _PREVIEW_WIDTH:
        shown = shown.resize((_PREVIEW_WIDTH, round(shown.height * _PREVIEW_WIDTH / shown.width)), Image.Resampling.BOX)
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=88, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Preview(step, uri, columns, tuple(about.get("words", ())))


def _tiles(run: RunRecords) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the first things to know."""
    tiles = [(f"{run.step:,}", f"of {run.steps:,}", f"steps of {run.config['run']['global_batch']:,} samples")]
    if run.minutes is not None:
        rate = run.curves["samples_per_sec"][-1][1]
        tiles.append((f"{run.minutes:.1f}", "min", f"of training, {rate:.1f} samples a second"))
    if "loss" in run.curves:
        first, last = run.curves["loss"][0][1], run.curves["loss"][-1][1]
        tiles.append((f"{last:.3g}", "", f"loss at the last line, {first:.3g} at the first"))
    found = best(run)
    if found is not None:
        tiles.append((f"{found.value:.4g}", "", f"best at step {found.step:,}: {found.title}"))
    by_timestep = [curve[-1][1] for name, curve in run.curves.items() if name.startswith("noise_std/")]
    if by_timestep:
        low, high = NOISE_BAND
        words = f"deviation of the noise over the timesteps; {low:g} to {high:g} is good"
        tiles.append((f"{min(by_timestep):.2f} – {max(by_timestep):.2f}", "", words))
    return tiles


def _last_figures(drawn: Sequence[ChartGroup]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The value of every line of every chart at its last step, by group."""
    return [
        (
            group.title,
            [
                (figure.title if len(figure.lines) == 1 else f"{figure.title}, {line.name}", f"{line.curve[-1][1]:.4g}")
                for figure in group.figures
                for line in figure.lines
            ],
        )
        for group in drawn
    ]
