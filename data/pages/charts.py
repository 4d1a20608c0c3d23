"""Charts as inline SVG, for pages that load nothing from elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

WIDTH, HEIGHT = 620, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 46

_Box = tuple[float, float, float, float]


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
    return _figure(parts, legend)


@dataclass(frozen=True)
class Point:
    """A point of a scatter.

    Args:
        name: for the legend, and on hover.
        words: shown on hover.
        mark: disc or square, with a place in the legend; ring, which has its label beside it instead.
        errors: half lengths of its whiskers along x and y.
    """

    name: str
    x: float
    y: float
    words: str
    colour: str
    mark: Literal["disc", "square", "ring"] = "disc"
    label: str = ""
    errors: tuple[float, float] = (0.0, 0.0)


def scatter_chart(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """An SVG of all points, rings below the others, with grid, axes and a legend below the drawing."""
    if not points:
        return Markup("")
    x_ticks = _ticks([p.x + sign * p.errors[0] for p in points for sign in (-1, 1)], False)
    y_ticks = _ticks([p.y + sign * p.errors[1] for p in points for sign in (-1, 1)], False)
    scale = _Scale((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    rings = [point for point in points if point.mark == "ring"]
    marks = [point for point in points if point.mark != "ring"]
    parts = [*_axes(scale, x_ticks, y_ticks, x_label, y_label), *(_mark(point, scale) for point in (*rings, *marks))]
    parts += _labels(points, scale)
    legend = "".join(
        f'<span><i class="{point.mark}" style="background:{escape(point.colour)}"></i>{escape(point.name)}</span>'
        for point in marks
    )
    return _figure(parts, legend)


def _figure(parts: Sequence[str], legend: str) -> Markup:
    """The drawing with its legend."""
    return Markup(
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
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


def _mark(point: Point, scale: _Scale) -> str:
    """A point with its whiskers."""
    x, y = scale.x(point.x), scale.y(point.y)
    (x_error, y_error), colour = point.errors, escape(point.colour)
    whiskers = (
        (scale.x(point.x - x_error), y, scale.x(point.x + x_error), y),
        (x, scale.y(point.y - y_error), x, scale.y(point.y + y_error)),
    )
    parts = [
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.5"/>'
        for (x1, y1, x2, y2), error in zip(whiskers, point.errors, strict=True)
        if error > 0
    ]
    centre = f'cx="{x:.1f}" cy="{y:.1f}"'
    shape = {
        "disc": f'circle {centre} r="6" fill="{colour}" stroke="#fff" stroke-width="1.5"',
        "ring": f'circle {centre} r="3.5" fill="#fff" stroke="{colour}" stroke-width="1.5"',
        "square": f'rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}" stroke="#fff"',
    }[point.mark]
    title = f"<title>{escape(point.name)}: {escape(point.words)}</title>"
    parts.append(f"<{shape}>{title}</{shape.split()[0]}>")
    return "".join(parts)


def _labels(points: Sequence[Point], scale: _Scale) -> list[str]:
    """The labels, each at the first place around its point where it covers nothing, or to the right above it."""
    centres = [(scale.x(point.x), scale.y(point.y)) for point in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in centres]
    parts = []
    for point, (x, y) in zip(points, centres, strict=True):
        if not point.label:
            continue
        width, height = 5.5 * len(point.label), 8
        boxes = [
            (left, top, left + width, top + height)
            for reach in (5, 11)
            for left in (x + reach, x - reach - width, x - width / 2)
            for top in (y - reach - height / 2, y + reach - height / 2, y - height / 2)
        ]
        free = (box for box in boxes if not any(_overlap(box, other) for other in taken))
        box = next(free, boxes[0])
        taken.append(box)
        parts.append(f'<text class="small" x="{box[0]:.1f}" y="{box[3]:.1f}">{escape(point.label)}</text>')
    return parts


def _overlap(a: _Box, b: _Box) -> bool:
    """Whether two boxes (left, top, right, bottom) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
