"""Histograms of whole numbers, as inline SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from data.pages.axes import Frame, drawing, own_colour, round_ticks

_HEIGHT = 250
_MOST_BINS = 40


@dataclass(frozen=True)
class Bars:
    """Values that one colour shows.

    Args:
        name: name in the legend.
        colour: CSS colour.
        values: whole numbers of 0 or more.
    """

    name: str
    colour: str
    values: Sequence[int]


def histogram(columns: Sequence[Bars], label: str, limit: int | None = None) -> Markup:
    """An SVG of the share of values in each bin, the colours side by side, with axes and a legend below.

    Args:
        label: label of the horizontal axis.
        limit: the last value that is good; a line marks it.
    """
    drawn = [column for column in columns if len(column.values)]
    if not drawn:
        return Markup("")
    largest = max([limit or 0, *(max(column.values) for column in drawn)])
    width = _bin_width(largest)
    edges = np.arange(0, largest + 1 + width, width)
    shares = [100 * np.histogram(column.values, edges)[0] / len(column.values) for column in drawn]
    y_ticks = round_ticks([0, max(float(share.max()) for share in shares)])
    x_range, y_range = (0, int(edges[-1])), (0, y_ticks[-1])

    def draw(at_width: int) -> tuple[int, list[str]]:
        frame = Frame(x_range, y_range, edges.tolist(), y_ticks, label, "% of captions", _HEIGHT, at_width)
        return _HEIGHT, [*frame.axes(upright=False), *_rectangles(frame, drawn, shares, width), *_limit(frame, limit)]

    return drawing(draw, [(column.name, column.colour, "box") for column in drawn], f"% of captions by {label}")


def _bin_width(largest: int) -> int:
    """The smallest round number that makes at most 40 bins."""
    return next(
        factor * 10**power for power in range(20) for factor in (1, 2, 5) if largest < _MOST_BINS * factor * 10**power
    )


def _rectangles(frame: Frame, columns: Sequence[Bars], shares: Sequence[np.ndarray], width: int) -> Iterator[str]:
    room = 0.9 * width / len(columns)
    for number, (column, share) in enumerate(zip(columns, shares, strict=True)):
        for bin_number in np.flatnonzero(share):
            start, value = int(bin_number) * width, float(share[bin_number])
            left, top = frame.x(start + 0.05 * width + number * room), frame.y(value)
            size = f'width="{frame.x(room) - frame.x(0):.1f}" height="{frame.y(0) - top:.1f}"'
            values = f"{start} to {start + width - 1}" if width > 1 else start
            yield (
                f'<rect x="{left:.1f}" y="{top:.1f}" {size} class="bar own" {own_colour(column.colour)}>'
                f"<title>{escape(column.name)}, {values}: {value:.1f} %</title></rect>"
            )


def _limit(frame: Frame, limit: int | None) -> Iterator[str]:
    if limit is None:
        return
    at = frame.x(limit + 1)
    anchor, words_at = ("end", at - 6) if at > frame.width / 2 else ("start", at + 6)
    yield f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top - 6}" y2="{frame.y(0):.1f}"/>'
    yield f'<text class="limit" x="{words_at:.1f}" y="{frame.top + 4}" text-anchor="{anchor}">{limit} are read</text>'
