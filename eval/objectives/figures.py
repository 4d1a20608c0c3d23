"""Figures of objectives over scenes and seeds, from the records of their encoders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.intervals import Interval
from eval.objectives.encoders import BASELINE, CEILING, OURS, result_of
from eval.reconstructions.fidelity import by_step
from eval.scene_edits.figures import changed_types, choose_strengths
from eval.scene_edits.result import EditorResult
from eval.scene_edits.sweeps import Sweep, equal_success

Floats = NDArray[np.float64]

EDITED = ("changed", "kept", "psnr_outside", "clip")
"""Measures of edits that the table has."""

GAIN = "gain"

_Z = 1.959964
"""Half width of a normal distribution's 95 % interval, in deviations."""


@dataclass(frozen=True)
class SeedFigure:
    """A figure of an objective, the mean over its seeds, with its 95 % interval.

    The interval is that over scenes, of which each has its mean over the seeds, widened by 1.96 standard errors between
    the seeds' means: both half widths as the sides of a right angle. With one seed it knows scenes alone.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @classmethod
    def of(cls, values: Floats) -> "SeedFigure":
        """The mean of `values` [seeds, scenes], nan where a scene does not count."""
        counted = values[:, ~np.isnan(values).all(0)]
        if counted.size == 0:
            return cls(math.nan, math.nan, math.nan, (math.nan,) * len(values))
        return cls.around(Interval.of(np.nanmean(counted, 0).tolist()), np.nanmean(counted, 1).tolist())

    @classmethod
    def around(cls, scenes: Interval, by_seed: Sequence[float]) -> "SeedFigure":
        """A figure with its interval over scenes and its value for each seed."""
        between = _Z * float(np.std(by_seed, ddof=1)) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
        low = scenes.mean - math.hypot(scenes.mean - scenes.low, between)
        return cls(scenes.mean, low, scenes.mean + math.hypot(scenes.high - scenes.mean, between), tuple(by_seed))

    def to_dict(self) -> dict[str, Any]:
        """JSON, but for nan."""
        return {"value": self.value, "low": self.low, "high": self.high, "by_seed": list(self.by_seed)}


@dataclass(frozen=True)
class TrainedObjective:
    """One row: an objective with the records of its encoders.

    Args:
        name: Name of the row.
        records: Records of `eval.objectives.encoders.measured_encoder` by seed, with `minutes` of training.
        editor: Editor that is looked at: the encoder, or what it is compared with.
    """

    name: str
    records: Mapping[int, Mapping[str, Any]]
    editor: str = OURS

    @cached_property
    def test(self) -> tuple[EditorResult, ...]:
        """Results on the test edits, one a seed."""
        return self._results("test", self.editor)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of edits that count for `changed`."""
        return changed_types(self._results("test", CEILING)[0])

    @cached_property
    def strength(self) -> float:
        """The strength that the validation edits of all seeds together choose."""
        pooled = {name: _pooled(self._results("validation", name)) for name in (self.editor, CEILING)}
        return choose_strengths(pooled)[self.editor]

    def values(self) -> dict[str, Floats]:
        """Values [seeds, scenes] by column that other rows have of the same scenes."""
        found: dict[str, Floats] = {}
        for column, measure in (("step", "psnr_to_vae"), ("picture", "psnr")):
            steps = [by_step(result.reconstruction_rows, self.editor, measure) for result in self.test]
            found |= {f"{column}_{i + 1}": np.array([of_seed[i] for of_seed in steps]) for i in range(len(steps[0]))}
        for measure in EDITED:
            rows = [[self._score(score, measure) for score in result.scores[self.strength]] for result in self.test]
            found[measure] = np.array(rows, dtype=float)
        return found

    def figures(self) -> dict[str, SeedFigure]:
        """The row's figures by column."""
        found = {name: SeedFigure.of(values) for name, values in self.values().items()}
        found |= dict(self._noise())
        if self.editor == OURS:
            found[GAIN] = self._gain()
            minutes = [record["minutes"] for record in self.records.values()]
            found["minutes"] = SeedFigure.of(np.array([minutes]).T)
        return found

    def differences(self, other: "TrainedObjective") -> dict[str, SeedFigure]:
        """This row less another, scene by scene, for the seeds that both have; {} where they share none."""
        seeds = [seed for seed in self.records if seed in other.records]
        if not seeds:
            return {}
        mine, theirs = (
            TrainedObjective(row.name, {seed: row.records[seed] for seed in seeds}).values() for row in (self, other)
        )
        return {name: SeedFigure.of(mine[name] - theirs[name]) for name in mine if name in theirs}

    def _results(self, split: str, editor: str) -> tuple[EditorResult, ...]:
        return tuple(result_of(record[split][editor]) for record in self.records.values())

    def _score(self, score: Any, measure: str) -> float:
        counts = measure != "changed" or score.kind in self.kinds
        return float(getattr(score, measure)) if counts else math.nan

    def _noise(self) -> Iterator[tuple[str, SeedFigure]]:
        """Deviation and correlation of neighbours of the noise that is inverted with, by timestep."""
        name = f"{OURS}_mean" if self.editor == OURS else self.editor
        for figure in ("std", "lag1"):
            for t in self.test[0].noises.get(name, {}):
                found = [result.noises[name][t][figure] for result in self.test]
                by_seed = [_known(estimate["mean"]) for estimate in found]
                error = _Z * float(np.mean([_known(estimate["se"]) for estimate in found]))
                mean = float(np.mean(by_seed))
                yield (
                    f"{figure}_{t}",
                    SeedFigure.around(Interval(mean, mean - error, mean + error, len(found)), by_seed),
                )

    def _gain(self) -> SeedFigure:
        """PSNR outside over BASELINE at equal success, dB; over scenes of the sweep that is the seeds' mean."""
        ours = [result.sweep(self.kinds) for result in self.test]
        theirs = [result.sweep(self.kinds) for result in self._results("test", BASELINE)]
        at = self.test[0].strengths.index(self.strength)
        found = equal_success(_mean_sweep(ours), _mean_sweep(theirs), at)
        single = [equal_success(mine, other, at) for mine, other in zip(ours, theirs, strict=True)]
        if found is None:
            return SeedFigure(math.nan, math.nan, math.nan, (math.nan,) * len(ours))
        return SeedFigure.around(found.interval, [math.nan if one is None else one.gain.mean for one in single])


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _pooled(results: Sequence[EditorResult]) -> EditorResult:
    """The edits of several seeds as those of one."""
    first = results[0]
    scores = {s: [score for result in results for score in result.scores[s]] for s in first.strengths}
    return EditorResult(first.name, first.strengths, scores=scores)


def _mean_sweep(sweeps: Sequence[Sweep]) -> Sweep:
    """Each edit's success and PSNR as the mean over seeds."""
    return Sweep(np.mean([one.changed for one in sweeps], 0), np.mean([one.psnr for one in sweeps], 0))


def objective_figures(rows: Sequence[TrainedObjective], baseline: str) -> dict[str, Any]:
    """The entries of results.json: `rows` by name, and `references`, what all of them are read against.

    Args:
        rows: The objectives that have been measured with a seed at least.
        baseline: Name of the row that the others' differences are from.
    """
    named = {row.name: row for row in rows}
    record = next(iter(rows[0].records.values()))
    found: dict[str, Any] = {}
    for row in rows:
        differences = row.differences(named[baseline]) if baseline in named and row.name != baseline else {}
        found[row.name] = {
            "seeds": list(row.records),
            "strength": row.strength,
            "figures": {name: figure.to_dict() for name, figure in row.figures().items()},
            "differences": {name: figure.to_dict() for name, figure in differences.items()},
        }
    references = {
        name: {key: figure.to_dict() for key, figure in TrainedObjective(name, {0: record}, name).figures().items()}
        for name in (BASELINE, CEILING)
    }
    vae = SeedFigure.of(np.array([record["vae"]])).to_dict()
    return {"baseline": baseline, "rows": found, "references": references, "vae": vae}


def figure_rows(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `objective_figures` as a table: one for each objective and column, and one for each of its seeds."""
    rows = []
    for name, row in figures["rows"].items():
        for column, found in row["figures"].items():
            other = row["differences"].get(column, {})
            difference = {f"difference{end}": other.get(key) for end, key in _DIFFERENCE}
            shown = {key: found[key] for key in ("value", "low", "high")}
            rows.append({"row": name, "column": column, "seed": "all", **shown, **difference})
            for seed, value in zip(row["seeds"], found["by_seed"], strict=True):
                rows.append({"row": name, "column": column, "seed": seed, "value": value})
    return rows


_DIFFERENCE = (("", "value"), ("_low", "low"), ("_high", "high"))
