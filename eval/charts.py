"""Line charts as inline SVG, for pages that load nothing from elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 620, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 46


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        name: for the legend.
        colour: CSS colour.
        points: (x, y, words shown on hover), in drawing order.
        chosen: index of the point that is drawn large, or None.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float, str]]
    chosen: int | None = None


def line_chart(series: Sequence[Series], x_label: str, y_label: str, whole_x: bool = False) -> Markup:
    """An SVG of all series that have points, with grid, axes and a legend below the drawing.

    Args:
        whole_x: ticks at whole numbers only (steps).
    """
    drawn = [line for line in series if line.points]
    if not drawn:
        return Markup("")
    x_ticks = _ticks([x for line in drawn for x, _, _ in line.points], whole_x)
    y_ticks = _ticks([y for line in drawn for _, y, _ in line.points], False)
    scale = _Scale((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [*_axes(scale, x_ticks, y_ticks, x_label, y_label), *(_line(line, scale) for line in drawn)]
    legend = "".join(
        f'<span><i style="background:{escape(line.colour)}"></i>{escape(line.name)}</span>' for line in drawn
    )
    body = "".join(parts)
    return Markup(
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{body}</svg>'
        f'<figcaption class="legend">{legend}</figcaption></figure>'
    )


@dataclass(frozen=True)
class _Scale:
    """From data to SVG coordinates."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def _ticks(values: Sequence[float], whole: bool) -> list[float]:
    """About five round numbers that enclose the values; at least two."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def _axes(scale: _Scale, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in y_ticks:
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = scale.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<text class="label" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 14 {middle_y})"'
    parts.append(f'<text class="label" x="14" y="{middle_y}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return parts


def _line(line: Series, scale: _Scale) -> str:
    colour = escape(line.colour)
    path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y, _ in line.points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>']
    for number, (x, y, words) in enumerate(line.points):
        radius = 6.5 if number == line.chosen else 3.5
        place = f'cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="{radius}"'
        title = f"<title>{escape(line.name)}: {escape(words)}</title>"
        parts.append(f'<circle {place} fill="{colour}" stroke="#fff" stroke-width="1.5">{title}</circle>')
    return "".join(parts)
