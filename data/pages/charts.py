"""Charts of lines, of points and of intervals, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from data.pages.axes import (
    LETTER,
    WIDTHS,
    Frame,
    drawing,
    label_lines,
    label_words,
    log_ticks,
    own_colour,
    round_ticks,
    spread,
)

_CLEAR, _UNCLEAR = "#0b5fa5", "#8a929c"

_HEIGHT = 380
_ROW = 24

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        name: name in the legend.
        colour: CSS colour.
        points: (x, y, words shown on hover), in drawing order.
        chosen: index of the point that is drawn large, or None.
        dots: whether the other points are drawn too; a curve of many has words on hover alone.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float, str]]
    chosen: int | None = None
    dots: bool = True


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    whole_x: bool = False,
    band: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    words: str = "",
    log_x: bool = False,
) -> Markup:
    """An SVG of all series that have points, with grid, axes and a legend below the drawing.

    Args:
        whole_x: ticks at whole numbers only (steps).
        band: values between which the lines should lie; their range is shaded.
        size: width and height of the only drawing, which is small enough for a phone; None for the usual two.
        words: what is drawn, for readers who do not see it; by default the names of the axes.
        log_x: whether x, which is positive, is drawn by its logarithm.
    """
    drawn = [line for line in series if line.points]
    if not drawn:
        return Markup("")
    places = [x for line in drawn for x, _, _ in line.points]
    x_ticks = log_ticks(places) if log_x else round_ticks(places, whole_x)
    y_ticks = round_ticks([*(y for line in drawn for _, y, _ in line.points), *(band or ())])
    x_range, y_range = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def draw(width: int) -> tuple[int, list[str]]:
        height = _height(width) if size is None else size[1]
        frame = Frame(x_range, y_range, x_ticks, y_ticks, x_label, y_label, height, width, log_x)
        return height, [*_band(band, frame), *frame.axes(), *(_line(line, frame) for line in drawn)]

    legend = [(line.name, line.colour, "box") for line in drawn]
    return drawing(draw, legend, words or f"{y_label} by {x_label}", WIDTHS if size is None else size[:1])


@dataclass(frozen=True)
class Point:
    """A point of a scatter.

    Args:
        name: name in the legend, and on hover.
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
    x_ticks = round_ticks([p.x + sign * p.errors[0] for p in points for sign in (-1, 1)])
    y_ticks = round_ticks([p.y + sign * p.errors[1] for p in points for sign in (-1, 1)])
    x_range, y_range = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    rings = [point for point in points if point.mark == "ring"]
    marks = [point for point in points if point.mark != "ring"]

    def draw(width: int) -> tuple[int, list[str]]:
        height = _height(width)
        frame = Frame(x_range, y_range, x_ticks, y_ticks, x_label, y_label, height, width)
        return height, [*frame.axes(), *(_mark(point, frame) for point in (*rings, *marks)), *_labels(points, frame)]

    legend = [(point.name, point.colour, point.mark) for point in marks]
    return drawing(draw, legend, f"{y_label} by {x_label}")


@dataclass(frozen=True)
class Bar:
    """A value with its interval.

    Args:
        name: what stands before it.
        value: the value.
        low: lower end of its interval.
        high: upper end of its interval.
        words: shown on hover.
    """

    name: str
    value: float
    low: float
    high: float
    words: str


def interval_chart(bars: Sequence[Bar], x_label: str) -> Markup:
    """An SVG of differences with their intervals below each other; grey are those whose interval has zero in it."""
    if not bars:
        return Markup("")
    ticks = round_ticks([0.0, *(end for bar in bars for end in (bar.low, bar.high))])
    return drawing(lambda width: _intervals(bars, ticks, x_label, width), (), x_label)


def _intervals(bars: Sequence[Bar], ticks: Sequence[float], x_label: str, width: int) -> tuple[int, list[str]]:
    """Height and parts of an interval chart; names stand before the bars, or above them where there is no room."""
    beside = 12 + (LETTER + 1) * max(len(bar.name) for bar in bars)
    above = beside > width / 3
    left, row = (20, 2 * _ROW - 6) if above else (beside, _ROW)
    lines = label_words(x_label, width)
    bottom = 8 + row * len(bars)
    height = bottom + 30 + 16 * len(lines)

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (width - 16 - left)

    parts = []
    for tick in ticks:
        strong = ' style="stroke-width:2"' if abs(tick) < 1e-9 else ""
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="8" y2="{bottom}"{strong}/>')
    for place, words in spread([(x(tick), f"{tick:.10g}") for tick in ticks]):
        parts.append(f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{words}</text>')
    for number, bar in enumerate(bars):
        y = 8 + row * (number + 1) - _ROW / 2
        colour = own_colour(_UNCLEAR if bar.low <= 0 <= bar.high else _CLEAR)
        name = f'x="2" y="{y - 14}"' if above else f'x="{left - 10}" y="{y + 4}" text-anchor="end"'
        ends = f'x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{y}" y2="{y}"'
        parts.append(f'<text {name}>{escape(bar.name)}</text><line class="line own" {ends} {colour}/>')
        title = f"<title>{escape(bar.name)}: {escape(bar.words)}</title>"
        parts.append(f'<circle class="mark own" cx="{x(bar.value):.1f}" cy="{y}" r="5" {colour}>{title}</circle>')
    return height, parts + label_lines(lines, width / 2, bottom + 38, "middle")


def _height(width: int) -> int:
    """Height of a drawing: the narrow one is nearly square."""
    return _HEIGHT if width == WIDTHS[0] else 320


def _line(line: Series, frame: Frame) -> str:
    colour = own_colour(line.colour)
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y, _ in line.points)
    parts = [f'<polyline class="line own" points="{path}" {colour}/>']
    for number, (x, y, words) in enumerate(line.points):
        radius = 6.5 if number == line.chosen else 3.5
        shown = line.dots or number == line.chosen or len(line.points) == 1
        look = f'class="mark own" {colour}' if shown else 'class="unseen"'
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}"'
        title = f"<title>{escape(line.name)}: {escape(words)}</title>"
        parts.append(f"<circle {place} {look}>{title}</circle>")
    return "".join(parts)


def _band(band: tuple[float, float] | None, frame: Frame) -> list[str]:
    """The shade behind values that are good."""
    if band is None:
        return []
    top, bottom = frame.y(band[1]), frame.y(band[0])
    size = f'width="{frame.right - frame.left}" height="{bottom - top:.1f}"'
    return [f'<rect class="band" x="{frame.left}" y="{top:.1f}" {size}/>']


def _mark(point: Point, frame: Frame) -> str:
    """A point with its whiskers."""
    x, y = frame.x(point.x), frame.y(point.y)
    (x_error, y_error), colour = point.errors, own_colour(point.colour)
    whiskers = (
        (frame.x(point.x - x_error), y, frame.x(point.x + x_error), y),
        (x, frame.y(point.y - y_error), x, frame.y(point.y + y_error)),
    )
    parts = [
        f'<line class="whisker own" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {colour}/>'
        for (x1, y1, x2, y2), error in zip(whiskers, point.errors, strict=True)
        if error > 0
    ]
    centre = f'cx="{x:.1f}" cy="{y:.1f}"'
    shape = {
        "disc": f'circle class="mark own" {centre} r="6"',
        "ring": f'circle class="ring own" {centre} r="3.5"',
        "square": f'rect class="mark own" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"',
    }[point.mark]
    title = f"<title>{escape(point.name)}: {escape(point.words)}</title>"
    parts.append(f"<{shape} {colour}>{title}</{shape.split()[0]}>")
    return "".join(parts)


def _labels(points: Sequence[Point], frame: Frame) -> list[str]:
    """The labels, each at the first place around its point where it covers nothing, or to the right above it."""
    centres = [(frame.x(point.x), frame.y(point.y)) for point in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in centres]
    parts = []
    for point, (x, y) in zip(points, centres, strict=True):
        if not point.label:
            continue
        width, height = 6.5 * len(point.label), 9
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
