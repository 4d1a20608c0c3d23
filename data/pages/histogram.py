"""Histograms of whole numbers as inline SVG, for a page that loads nothing from elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 620, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 18, 44
_MOST_BINS = 40
_NUM_LABELS = 8


@dataclass(frozen=True)
class Bars:
    """What one colour shows.

    Args:
        name: for the legend.
        colour: CSS colour.
        values: whole numbers of 0 or more.
    """

    name: str
    colour: str
    values: Sequence[int]


def histogram(columns: Sequence[Bars], label: str, limit: int | None = None) -> Markup:
    """An SVG of the share of values in each bin, the colours side by side, with axes and a legend below.

    Args:
        label: of the horizontal axis.
        limit: the last value that is good; a line marks it.
    """
    drawn = [column for column in columns if len(column.values)]
    if not drawn:
        return Markup("")
    largest = max([limit or 0, *(max(column.values) for column in drawn)])
    width = _bin_width(largest)
    edges = np.arange(0, largest + 1 + width, width)
    shares = [100 * np.histogram(column.values, edges)[0] / len(column.values) for column in drawn]
    frame = _Frame(int(edges[-1]), max(float(share.max()) for share in shares))
    parts = [*_axes(frame, edges, label), *_rectangles(frame, drawn, shares, width), *_limit(frame, limit)]
    legend = "".join(
        f'<span><i style="background:{escape(column.colour)}"></i>{escape(column.name)}</span>' for column in drawn
    )
    return Markup(
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
        f'<figcaption class="legend">{legend}</figcaption></figure>'
    )


@dataclass(frozen=True)
class _Frame:
    """From values (0 to `end`) and shares (0 to `top` percent) to SVG coordinates."""

    end: int
    top: float

    def x(self, value: float) -> float:
        return _LEFT + value / self.end * (WIDTH - _LEFT - _RIGHT)

    def y(self, share: float) -> float:
        return HEIGHT - _BOTTOM - share / self.top * (HEIGHT - _TOP - _BOTTOM)


def _bin_width(largest: int) -> int:
    """The smallest round number that makes at most 40 bins."""
    return next(
        factor * 10**power for power in range(20) for factor in (1, 2, 5) if largest < _MOST_BINS * factor * 10**power
    )


def _rectangles(frame: _Frame, columns: Sequence[Bars], shares: Sequence[np.ndarray], width: int) -> Iterator[str]:
    room = 0.9 * width / len(columns)
    for number, (column, share) in enumerate(zip(columns, shares, strict=True)):
        for bin_number in np.flatnonzero(share):
            start, value = int(bin_number) * width, float(share[bin_number])
            left, top = frame.x(start + 0.05 * width + number * room), frame.y(value)
            size = f'width="{frame.x(room) - frame.x(0):.1f}" height="{frame.y(0) - top:.1f}"'
            values = f"{start} to {start + width - 1}" if width > 1 else start
            yield (
                f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{escape(column.colour)}">'
                f"<title>{escape(column.name)}, {values}: {value:.1f} %</title></rect>"
            )


def _limit(frame: _Frame, limit: int | None) -> Iterator[str]:
    if limit is None:
        return
    at = frame.x(limit + 1)
    anchor, words_at = ("end", at - 6) if at > WIDTH / 2 else ("start", at + 6)
    yield f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{frame.y(0):.1f}"/>'
    yield f'<text class="limit" x="{words_at:.1f}" y="{_TOP + 4}" text-anchor="{anchor}">{limit} are read</text>'


def _axes(frame: _Frame, edges: np.ndarray, label: str) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for share in np.linspace(0, frame.top, 4):
        y = frame.y(share)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0f}</text>'
    for edge in edges[:: max(1, round(len(edges) / _NUM_LABELS))]:
        yield f'<text x="{frame.x(edge):.1f}" y="{bottom + 18}" text-anchor="middle">{edge}</text>'
    x, y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    yield f'<text class="label" x="{x}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
    turned = f'transform="rotate(-90 14 {y})"'
    yield f'<text class="label" x="14" y="{y}" text-anchor="middle" {turned}>% of captions</text>'
