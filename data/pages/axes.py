"""Frame, axes and legend that all charts share: inline SVG, for pages that load nothing from elsewhere."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from markupsafe import Markup, escape

WIDTHS = (620, 340)
"""Widths of the two drawings of a chart: the second is shown in its stead where there is no room (page.css)."""

LETTER = 7
"""Width of a letter, at the most, in the units of a drawing."""

_LINE = 16
_RIGHT = 16


@dataclass(frozen=True)
class Frame:
    """Transform from data to SVG coordinates, in a drawing of `width` and `height`.

    The name of the vertical axis stands above the axis, so that nothing lies over the numbers beside it, however long.

    Args:
        x_range: Values at the left and the right edge.
        y_range: Values at the lower and the upper edge.
        x_ticks: Values on the horizontal axis.
        y_ticks: Values on the vertical axis; numbers stand beside them.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        height: Height of the whole drawing.
        width: Width of the whole drawing.
        log_x: Whether x is drawn by its logarithm.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_label: str
    y_label: str
    height: int
    width: int
    log_x: bool = False

    @cached_property
    def left(self) -> int:
        """The x of the left edge."""
        return 12 + LETTER * max(2, *(len(f"{tick:g}") for tick in self.y_ticks))

    @property
    def right(self) -> int:
        """The x of the right edge."""
        return self.width - _RIGHT

    @property
    def top(self) -> int:
        """The y of the upper edge."""
        return 12 + _LINE * len(self._lines(self.y_label))

    @property
    def bottom(self) -> int:
        """The y of the lower edge."""
        return self.height - 30 - _LINE * len(self._lines(self.x_label))

    def x(self, value: float) -> float:
        """Give the x of a value."""
        low, high = self.x_range
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Give the y of a value."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(self, upright: bool = True) -> list[str]:
        """Draw grid lines and numbers at the ticks, and the names of both axes.

        Args:
            upright: Whether the ticks of the horizontal axis have grid lines.
        """
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        if upright:
            for x in map(self.x, self.x_ticks):
                parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.bottom}"/>')
        places = [(self.x(tick), f"{tick:.10g}") for tick in self.x_ticks]
        for x, words in spread(places):
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 18}" text-anchor="middle">{words}</text>')
        parts += label_lines(self._lines(self.y_label), 2, 12, "start")
        at = (self.left + self.right) / 2
        return parts + label_lines(self._lines(self.x_label), at, self.bottom + 38, "middle")

    def _lines(self, label: str) -> list[str]:
        return label_words(label, self.width)


def label_words(label: str, width: int) -> list[str]:
    """The lines of a label that has `width` for itself."""
    return textwrap.wrap(label, int(width / LETTER))


def label_lines(lines: Sequence[str], x: float, y: float, anchor: str) -> list[str]:
    """Lines of a label below each other, the first at `y`."""
    return [
        f'<text class="label" x="{x:.1f}" y="{y + _LINE * n:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        for n, words in enumerate(lines)
    ]


def spread(places: Sequence[tuple[float, str]]) -> Sequence[tuple[float, str]]:
    """Every label at its x, or every second and so on, so that none touches the next."""
    for step in range(1, len(places)):
        shown = places[::step]
        room = ((right[0] - left[0], (len(left[1]) + len(right[1])) / 2) for left, right in pairwise(shown))
        if all(distance >= LETTER * (letters + 1) for distance, letters in room):
            return shown
    return places[:1]


def round_ticks(values: Sequence[float], whole: bool = False) -> list[float]:
    """Choose about five round numbers, at least two, that enclose the values; whole numbers only if `whole`."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(low) > 1e-9 else (0.0, 1.0)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Choose numbers of 1, 2, 5, 10, 20 ... and their tenths, at least two, that enclose positive values."""
    powers = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 2)
    numbers = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(i for i, number in enumerate(numbers) if number <= min(values) * (1 + 1e-9))
    last = min(i for i, number in enumerate(numbers) if number >= max(values) * (1 - 1e-9))
    return numbers[first : max(last, first + 1) + 1]


def own_colour(colour: str) -> str:
    """The attribute by which a mark has a colour, which page.css makes lighter on dark paper."""
    return f'style="--own:{escape(colour)}"'


def drawing(
    draw: Callable[[int], tuple[int, Iterable[str]]],
    legend: Iterable[tuple[str, str, str]],
    words: str,
    widths: Sequence[int] = WIDTHS,
) -> Markup:
    """Put together a chart: an SVG for each width and below it the legend, (name, CSS colour, class of its mark) each.

    Args:
        draw: Function of the width that gives the height and the parts of the drawing.
        legend: Entries of the legend.
        words: What the drawing shows, for readers who do not see it.
        widths: One, or one for where there is room and one for where there is little.
    """
    entries = "".join(
        f'<span><i class="{mark} own" {own_colour(colour)}></i>{escape(name)}</span>' for name, colour, mark in legend
    )
    kinds = ("wide", "narrow") if len(widths) > 1 else ("only",)
    svgs = []
    for kind, width in zip(kinds, widths, strict=True):
        height, parts = draw(width)
        frame = f'class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}"'
        svgs.append(f"<svg {frame}>{''.join(parts)}</svg>")
    return Markup(
        f'<figure class="chart">{"".join(svgs)}<figcaption><div class="legend">{entries}</div></figcaption></figure>'
    )
