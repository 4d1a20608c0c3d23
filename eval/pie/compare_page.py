"""The page of eval.compare: every difference with its interval as a bar, and the cases that changed most."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data.pages.axes import own_colour
from eval.editors.titles import render_page
from eval.pie.comparison import Difference, Evaluation
from eval.pie.gallery import Pictures

_PICTURED = ("psnr", "clip_whole")
_CASES = 4
_SIDE = 192
_BAR = (260, 22)


def write_compare_page(
    out: Path, a: Evaluation, b: Evaluation, differences: Sequence[Difference], settings: Mapping[str, Any]
) -> Path:
    """OUT/index.html.

    Args:
        settings: both folders, the level of the intervals, the number of resamples and their seed.
    """
    pictures = Pictures(_SIDE)
    limit = max((abs(end) for d in differences for end in _in_deviations(d)[1:]), default=1.0)
    pairs = []
    for (row_a, row_b), group in groupby(differences, key=lambda d: (d.row_a, d.row_b)):
        lines = list(group)
        titles = a.titles.get(row_a, row_a), b.titles.get(row_b, row_b)
        pairs.append(
            {
                "title": titles[0] if row_a == row_b else f"{titles[0]} against {titles[1]}",
                "mask": lines[0].mask,
                "lines": [(line, bar(line, limit)) for line in lines],
                "changed": [
                    (line, [_case(key, line, a, b, pictures) for key in most_changed(line)])
                    for line in lines
                    if line.measure.name in _PICTURED and line.form == lines[0].form
                ],
            }
        )
    return render_page(
        "compare.html.j2",
        out,
        title="Two evaluations of PIE-Bench",
        settings=settings,
        pairs=pairs,
        pictures=[Markup(uri) for uri in pictures.uris],
    )


def most_changed(difference: Difference) -> list[str]:
    """Keys of the cases that lost most, worst first, and of those that gained most, best last."""
    gains = {key: difference.sign * value for key, value in difference.by_key.items() if value}
    ordered = sorted(gains, key=lambda key: (gains[key], key))
    lost = [key for key in ordered if gains[key] < 0][:_CASES]
    return lost + [key for key in ordered if gains[key] > 0][-_CASES:]


def bar(difference: Difference, limit: float) -> Markup:
    """The interval as inline SVG around zero, in standard deviations of the differences; right is better.

    Args:
        limit: end of the drawing on both sides.
    """
    width, height = _BAR
    mean, *ends = _in_deviations(difference)
    low, high = sorted(ends)
    x = [width / 2 + 0.47 * width * value / (limit or 1.0) for value in (low, mean, high)]
    colour = own_colour({"better": "#1d8a4a", "worse": "#b8402f", "open": "#777777"}[difference.verdict])
    words = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    level = f'y1="{height / 2}" y2="{height / 2}"'
    name = f"{words} standard deviations"
    return Markup(
        f'<svg class="bar" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{name}"><line class="zero" x1="{width / 2}" x2="{width / 2}" y1="0" y2="{height}"/>'
        f'<line class="own" x1="{x[0]:.1f}" x2="{x[2]:.1f}" {level} {colour} stroke-width="3"/>'
        f'<circle class="own" cx="{x[1]:.1f}" cy="{height / 2}" r="5" {colour}/></svg><small>{words}</small>'
    )


def _in_deviations(difference: Difference) -> tuple[float, float, float]:
    """Mean and ends of the interval over the differences' standard deviation, more being better; 0 where all agree."""
    values = np.array(list(difference.by_key.values()))
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    interval = difference.interval
    if deviation < 1e-12:
        return 0.0, 0.0, 0.0
    scale = difference.sign / deviation
    return scale * interval.mean, scale * interval.low, scale * interval.high


def _case(key: str, line: Difference, a: Evaluation, b: Evaluation, pictures: Pictures) -> dict[str, Any]:
    """A case in pictures: the untouched one where it was kept, A's and B's."""
    files = {
        "source": a.picture("identity", key),
        "A": a.picture(line.row_a, key),
        "B": b.picture(line.row_b, key),
    }
    measure = line.measure
    values = {"A": a.rows[line.row_a], "B": b.rows[line.row_b]}
    return {
        "key": key,
        "words": a.words.get(key, ""),
        "difference": f"{measure.scale * line.by_key[key]:+.{measure.digits}f}",
        "good": line.sign * line.by_key[key] > 0,
        "pictures": [
            (
                name,
                pictures.number(path),
                measure.printed(values[name][line.form][key][measure.name]) if name in values else "",
            )
            for name, path in files.items()
            if path is not None
        ],
    }
