"""The charts of a run's page: which numbers are drawn together, under which title, and which values are good."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from data.pages.charts import Series, line_chart
from eval.metrics.measures import MEASURES, Measure
from train.reports.records import Curve, RunRecords

_HELD_OUT = "valid/"
"""Beginning of the names of figures of held-out samples."""

COLOURS = ("#3b8ed0", "#e08a2e", "#35a56a", "#d4604e", "#9a74c9", "#c2a52a", "#4fb0b5", "#7d8896")
_MOST_POINTS = 150
_SIZE = (380, 250)

NOISE_BAND = (0.85, 1.1)
"""Deviations of the noise that are good at every timestep."""

_TITLES = {
    "loss": "Loss",
    "latent_mse": "Latent MSE",
    "kl": "KL divergence, summed over the latent",
    "noise_std": "Deviation of the noise (good: 0.85 to 1.1)",
    "noise_mean": "Mean of the noise (good: 0)",
    "noise_kurtosis": "Kurtosis of the noise (good: 3)",
    "noise_over10": "Share of the noise beyond 10 (good: 0)",
    "noise_lag1": "Correlation of neighbours in the noise (good: 0)",
    "posterior_sigma": "Posterior's deviation (good: 0.2 to 0.8)",
    "mean_noise_std": "Deviation of the mean noise (good: 0.85 to 1.1)",
    "mean_noise_lag1": "Correlation of neighbours in the mean noise (good: 0)",
    "psnr": "PSNR to the VAE's round trip, dB",
    "moved": "How far an edit's prompt moves the picture",
    "psnr_outside": "PSNR outside of the edit, dB",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient, before clipping",
    "samples_per_sec": "Samples a second",
    "step_sec": "Seconds of a step, percentiles",
    "data_wait_share": "Share of the time that waits for data",
    "peak_memory_gb": "Peak of memory, GB",
    "mfu": "Model FLOP utilisation",
    "tflops_per_sec": "TFLOP a second",
}
_BANDS = {
    "noise_std": NOISE_BAND,
    "mean_noise_std": NOISE_BAND,
    "posterior_sigma": (0.2, 0.8),
}
_TRAINING = (
    *("lr", "grad_norm", "bad_steps", "loss_scale"),
    *("samples_per_sec", "step_sec", "data_wait_share", "peak_memory_gb", "tflops_per_sec", "mfu"),
)
_NOT_DRAWN = ("samples", "epoch", "seconds")


@dataclass(frozen=True)
class Line:
    """A line of a chart before it is drawn.

    Args:
        name: name in the legend.
        curve: points of it.
        colour: CSS colour.
        best: index of the best point, or None.
    """

    name: str
    curve: Curve
    colour: str
    best: int | None = None


@dataclass(frozen=True)
class Figure:
    """A chart: its title, its lines, and the values that are good."""

    title: str
    lines: tuple[Line, ...]
    band: tuple[float, float] | None = None

    def chart(self) -> Markup:
        """The chart as SVG; long curves are drawn by the means of neighbours."""
        series = [
            Series(line.name, line.colour, _words(thinned(line.curve)), _place(line), dots=False) for line in self.lines
        ]
        return line_chart(series, "step", "", whole_x=True, band=self.band, size=_SIZE, words=f"{self.title}, by step")


@dataclass(frozen=True)
class ChartGroup:
    """Charts under a heading."""

    title: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Best:
    """The best value of a figure of held-out samples, and the step that has it."""

    title: str
    step: int
    value: float


def chart_groups(run: RunRecords) -> list[ChartGroup]:
    """All charts of one run, in the order of the page; those of no numbers are left out."""
    figures = {base: _figure(run, base, names) for base, names in _grouped(run).items()}
    held_out = [base for base in figures if base.startswith(_HELD_OUT)]
    noise = [base for base in figures if base.startswith("noise_") or base == "posterior_sigma"]
    training = [base for base in _TRAINING if base in figures and not _is_zero(figures[base])]
    objective = [base for base in ("loss", "latent_mse", "kl") if base in figures]
    known = {*held_out, *noise, *_TRAINING, *objective, *run.terms}
    found = (
        ("Held-out pictures", held_out),
        ("Objective", objective),
        ("Noise health", noise),
        ("Training", training),
        ("Further figures", [base for base in figures if base not in known]),
    )
    return [ChartGroup(title, tuple(figures[base] for base in bases)) for title, bases in found if bases]


def compared(runs: Mapping[str, RunRecords]) -> list[ChartGroup]:
    """The charts of several runs, by their names in legends: a chart for each number, a line for each run that has it.

    Numbers by group, such as those of a timestep, are left out where there is one of all groups, and so are those that
    are zero throughout.
    """
    names = list(dict.fromkeys(name for run in runs.values() for name in run.curves))
    bases = list(dict.fromkeys(map(base_of, names)))
    names.sort(key=lambda name: bases.index(base_of(name)))
    drawn = [name for name in names if name not in _NOT_DRAWN and (name == _of_all(name) or _of_all(name) not in names)]
    figures = {name: _of_runs(runs, name) for name in drawn}
    found = {
        "Held-out pictures": [figure for name, figure in figures.items() if name.startswith(_HELD_OUT)],
        "Training": [figure for name, figure in figures.items() if not name.startswith(_HELD_OUT)],
    }
    shown = {title: tuple(figure for figure in chosen if not _is_zero(figure)) for title, chosen in found.items()}
    return [ChartGroup(title, chosen) for title, chosen in shown.items() if chosen]


def best(run: RunRecords) -> Best | None:
    """The best step by the figure that `log.best` names, else by the last one that has better values; None for none."""
    chosen = run.config.get("log", {}).get("best")
    able = [name for name in run.curves if name.startswith(_HELD_OUT) and "/" not in name.removeprefix(_HELD_OUT)]
    names = [chosen] if chosen in run.curves else [n for n in able if _higher(run, n) is not None]
    psnr = [name for name in names if base_of(name) == _HELD_OUT + "psnr"]
    name = (psnr or names)[-1] if names else None
    if name is None:
        return None
    index = _best_index(run, name)
    if index is None:
        return None
    step, value = run.curves[name][index]
    return Best(_title(name, named=True), step, value)


def thinned(curve: Curve, most: int = _MOST_POINTS) -> Curve:
    """A curve of at most `most` points: means over as many neighbours as it takes, the last step as it is."""
    width = -(-len(curve) // most)
    if width == 1:
        return curve
    parts = (curve[start : start + width] for start in range(0, len(curve), width))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def base_of(name: str) -> str:
    """The name of the chart to which a number belongs: latent_mse of latent_mse/t249, psnr of psnr_4."""
    return re.sub(r"(?<=psnr|_sec)_p?\d+$", "", _of_all(name))


def _grouped(run: RunRecords) -> Mapping[str, list[str]]:
    """The names of each chart by its own."""
    found: dict[str, list[str]] = {}
    for name in run.curves:
        if name not in (*_NOT_DRAWN, *run.terms):
            found.setdefault(base_of(name), []).append(name)
    return found


def _figure(run: RunRecords, base: str, names: Sequence[str]) -> Figure:
    chosen = [*names, *run.terms] if base == "loss" else sorted(names, key=lambda name: name != base)
    first = int(
        len(chosen) > 1 and chosen[0] != base
    )  # so that a timestep has one colour, whether or not `all` is there
    shown = [_line_name(name, base) if len(chosen) > 1 else name for name in chosen]
    lines = tuple(_line(run, *named, number) for number, named in enumerate(zip(chosen, shown, strict=True), first))
    return Figure(_title(base), lines, _BANDS.get(base.removeprefix(_HELD_OUT)))


def _of_runs(runs: Mapping[str, RunRecords], name: str) -> Figure:
    lines = [_line(run, name, shown, n) for n, (shown, run) in enumerate(runs.items()) if name in run.curves]
    return Figure(_title(name, named=True), tuple(lines), _BANDS.get(base_of(name).removeprefix(_HELD_OUT)))


def _line(run: RunRecords, name: str, shown: str, number: int) -> Line:
    best_index = _best_index(run, name) if name.startswith(_HELD_OUT) else None
    return Line(shown, run.curves[name], COLOURS[number % len(COLOURS)], best_index)


def _line_name(name: str, base: str) -> str:
    """The name of a line in the legend of a chart with several."""
    rest = name.removeprefix(base).lstrip("/_")
    if not rest:
        return "loss" if base == "loss" else "all"
    if base.endswith("psnr") and rest.isdigit():
        return f"after step {rest}"
    return re.sub(r"^t(?=\d+$)", "t = ", rest)


def _of_all(name: str) -> str:
    """The number of all groups to which one of a group belongs: valid/latent_mse of valid/latent_mse/t249."""
    prefix = _HELD_OUT if name.startswith(_HELD_OUT) else ""
    return prefix + name.removeprefix(_HELD_OUT).split("/")[0]


def _title(name: str, named: bool = False) -> str:
    """The title of a chart; of a single number with what tells it from others of its chart."""
    base = base_of(name) if named else name
    short = base.removeprefix(_HELD_OUT)
    title = _TITLES.get(short) or (MEASURES[short].title if short in MEASURES else short.replace("_", " "))
    title = title[:1].upper() + title[1:]
    return title if name == base else f"{title}: {_line_name(name, base)}"


def _higher(run: RunRecords, name: str) -> bool | None:
    """Whether more of a held-out figure is better; None where nobody has said so."""
    log = run.config.get("log", {})
    if name == log.get("best") and log.get("best_is"):
        return log["best_is"] == "highest"
    measure: Measure | None = MEASURES.get(base_of(name).removeprefix(_HELD_OUT))
    return None if measure is None or measure.better is None else measure.higher


def _best_index(run: RunRecords, name: str) -> int | None:
    higher, curve = _higher(run, name), run.curves[name]
    if higher is None:
        return None
    values = [value if higher else -value for _, value in curve]
    return values.index(max(values))


def _place(line: Line) -> int | None:
    """The index of the best point among those that are drawn."""
    if line.best is None or len(line.curve) > _MOST_POINTS:
        return None
    return line.best


def _words(curve: Curve) -> list[tuple[float, float, str]]:
    return [(step, value, f"{value:.4g} at step {step:,}") for step, value in curve]


def _is_zero(figure: Figure) -> bool:
    return all(value == 0 for line in figure.lines for _, value in line.curve)
