"""Frame, axes and legend that all charts share: inline SVG, for pages that load nothing from elsewhere."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 46


@dataclass(frozen=True)
class Frame:
    """Transform from data to SVG coordinates, in a drawing of `width` and `height`.

    Args:
        x_range: Values at the left and the right edge.
        y_range: Values at the lower and the upper edge.
        height: Height of the whole drawing.
        width: Width of the whole drawing.
        log_x: Whether x is drawn by its logarithm.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    height: int
    width: int = WIDTH
    log_x: bool = False

    @property
    def left(self) -> int:
        """The x of the left edge."""
        return _LEFT

    @property
    def right(self) -> int:
        """The x of the right edge."""
        return self.width - _RIGHT

    @property
    def top(self) -> int:
        """The y of the upper edge."""
        return _TOP

    @property
    def bottom(self) -> int:
        """The y of the lower edge."""
        return self.height - _BOTTOM

    def x(self, value: float) -> float:
        """Give the x of a value."""
        low, high = self.x_range
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return _LEFT + (value - low) / (high - low) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        """Give the y of a value."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - _TOP)

    def axes(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str, upright: bool = True
    ) -> list[str]:
        """Draw grid lines and numbers at the ticks, and the names of both axes.

        Args:
            x_ticks: Values on the horizontal axis.
            y_ticks: Values on the vertical axis.
            x_label: Name of the horizontal axis.
            y_label: Name of the vertical axis.
            upright: Whether the ticks of the horizontal axis have grid lines.
        """
        right = self.right
        parts = []
        for tick in y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in x_ticks:
            x = self.x(tick)
            if upright:
                parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{self.bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 18}" text-anchor="middle">{tick:.10g}</text>')
        middle_x, middle_y = (_LEFT + right) / 2, (_TOP + self.bottom) / 2
        place = f'x="{middle_x}" y="{self.height - 6}"'
        parts.append(f'<text class="label" {place} text-anchor="middle">{escape(x_label)}</text>')
        turned = f'transform="rotate(-90 14 {middle_y})"'
        parts.append(
            f'<text class="label" x="14" y="{middle_y}" text-anchor="middle" {turned}>{escape(y_label)}</text>'
        )
        return parts


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


def drawing(
    parts: Iterable[str], legend: Iterable[tuple[str, str, str]], height: int, words: str, width: int = WIDTH
) -> Markup:
    """Put together a chart: the SVG of `parts` and below it the legend, (name, CSS colour, class of its mark) each.

    Args:
        words: What the drawing shows, for readers who do not see it.
    """
    entries = "".join(
        f'<span><i class="{mark}" style="background:{escape(colour)}"></i>{escape(name)}</span>'
        for name, colour, mark in legend
    )
    frame = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}"'
    return Markup(
        f'<figure class="chart"><svg {frame}>{"".join(parts)}</svg>'
        f'<figcaption class="legend">{entries}</figcaption></figure>'
    )
