"""Two PIE-Bench evaluations case by case: what makes them comparable, and the differences with their intervals."""

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.claims.judging import verdict
from eval.metrics.intervals import Interval
from eval.metrics.measures import PIE_COLUMNS, PIE_FURTHER, SECOND_CLIP, Measure

RESAMPLES = 10_000

_COMPARED = tuple(measure for measure in (*PIE_COLUMNS, *PIE_FURTHER, *SECOND_CLIP) if measure.better)

_ON_REQUEST = ("further", "second_clip")
"""Words on metrics that change none of the others: where one evaluation lacks them, the rest is compared."""

Measures = Mapping[str, float]
Edits = Mapping[str, Mapping[str, Measures]]
"""form -> key -> measure -> value; what is undefined is missing."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Args:
        folder: folder of eval.pie_bench.
        about: conditions of the evaluation.
        titles: titles of rows by name.
        references: rows that are no methods.
        masks: bounds of the edits by row.
        rows: values by row.
        words: target prompts by key.
    """

    folder: Path
    about: Mapping[str, Any]
    titles: Mapping[str, str]
    references: tuple[str, ...]
    masks: Mapping[str, str]
    rows: Mapping[str, Edits]
    words: Mapping[str, str]

    @property
    def forms(self) -> list[str]:
        """Words on the metrics."""
        return sorted({form for edits in self.rows.values() for form in edits})

    def picture(self, row: str, key: str) -> Path | None:
        """The file of an edit, where it was kept."""
        path = self.folder / "edits" / row / f"{key}.png"
        return path if path.is_file() else None


@dataclass(frozen=True)
class Difference:
    """B less A in one measure, over the cases in which both are defined.

    Args:
        mask_a, mask_b: bounds of the edits.
        mean_a, mean_b: means over these cases.
        interval: interval of the mean difference, unscaled.
        better, worse: numbers of cases in which B is the better or the worse; in the others they are equal.
        by_key: differences of the cases.
        exact_a, exact_b: numbers of cases with an infinite PSNR, which counts with 100 dB.
    """

    row_a: str
    row_b: str
    mask_a: str
    mask_b: str
    form: str
    measure: Measure
    mean_a: float
    mean_b: float
    interval: Interval
    better: int
    worse: int
    by_key: Mapping[str, float]
    exact_a: int = 0
    exact_b: int = 0

    @property
    def mask(self) -> str:
        """Bounds of both rows' edits in words."""
        return self.mask_a if self.mask_a == self.mask_b else f"{self.mask_a} / {self.mask_b}"

    @property
    def verdict(self) -> str:
        """Word for B: "better" or "worse" where the interval lies on one side of zero, else "open"."""
        found = verdict([self.interval], self.sign)
        return {"confirmed": "better", "contradicted": "worse", "not confirmed": "open"}[found]

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.measure.higher else -1

    def to_row(self) -> dict[str, Any]:
        """Columns of a CSV, unscaled."""
        return {
            "row_a": self.row_a,
            "row_b": self.row_b,
            "mask_a": self.mask_a,
            "mask_b": self.mask_b,
            "form": self.form,
            "measure": self.measure.name,
            "mean_a": self.mean_a,
            "mean_b": self.mean_b,
            "difference": self.interval.mean,
            "low": self.interval.low,
            "high": self.interval.high,
            "n": self.interval.n,
            "better": self.better,
            "worse": self.worse,
            "verdict": self.verdict,
        }


def read_evaluation(folder: Path) -> Evaluation:
    """Read what eval.pie_bench left in a folder. Raises ValueError for another folder."""
    for name in ("results.json", "cases.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give a folder that eval.pie_bench has finished")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if not isinstance(results, dict) or not {"about", "rows"} <= results.keys():
        raise ValueError(f"{folder / 'results.json'} is not of eval.pie_bench: it has no `about` and `rows`")
    rows: dict[str, dict[str, dict[str, Measures]]] = {}
    words = {}
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            measures = {c.name: float(line[c.name]) for c in _COMPARED if line.get(c.name)}
            rows.setdefault(line["row"], {}).setdefault(line["form"], {})[line["key"]] = measures
            words[line["key"]] = line["target_prompt"]
    titles = {row["row"]: row["title"] for row in results["rows"]}
    references = tuple(row["row"] for row in results["rows"] if row["reference"])
    masks = {row["row"]: row["mask"] for row in results["rows"]}
    return Evaluation(folder, results["about"], titles, references, masks, rows, words)


def require_comparable(a: Evaluation, b: Evaluation) -> None:
    """Raises ValueError where data, metrics or their forms differ, with the difference."""
    pairs = {name: (a.about.get(name), b.about.get(name)) for name in ("data", "cases", "jpeg")}
    if _same_data(a.about, b.about):
        del pairs["data"], pairs["cases"]
    pairs["forms of the metrics"] = a.forms, b.forms
    first, second = (evaluation.about.get("metrics", {}) for evaluation in (a, b))
    names = [name for name in (*first, *second) if name not in _ON_REQUEST or (name in first and name in second)]
    pairs |= {f"metric {name}": (first.get(name), second.get(name)) for name in names}
    different = {name: pair for name, pair in pairs.items() if _without_place(pair[0]) != _without_place(pair[1])}
    if lines := [f"  {name}: {one} against {other}" for name, (one, other) in different.items()]:
        raise ValueError("\n".join([f"{a.folder} and {b.folder} cannot be compared, as they differ in", *lines]))


_NETWORK = re.compile(r"(LPIPS \([^)]*\), |\((?:keys of the (?:ViT|CLIP) )?).*, ([0-9a-f]{16})")
"""A metric's network in the words of `about.metrics`: its kind, its place, its fingerprint."""


def _without_place(words: Any) -> Any:
    """Words on a metric without the place of its network, which its fingerprint stands for."""
    return _NETWORK.sub(r"\1\2", words) if isinstance(words, str) else words


def _same_data(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two evaluations have the same cases, wherever they lie, or one has more cases of the same folder."""
    same_folder = a.get("data") == b.get("data")
    if "cases" not in a or "cases" not in b:
        return same_folder
    same_cases: bool = a["cases"]["digest"] == b["cases"]["digest"]
    return same_cases or (same_folder and a["cases"]["number"] != b["cases"]["number"])


def row_pairs(a: Evaluation, b: Evaluation, row_a: str | None, row_b: str | None) -> list[tuple[str, str]]:
    """Pairs of rows to compare. Raises ValueError for a row that is not there, or none."""
    if row_a is None and row_b is None:
        pairs = [(row, row) for row in a.rows if row in b.rows and row not in a.references]
        if not pairs:
            raise ValueError(
                f"no method's row is in both; A has {', '.join(a.rows)}, B has {', '.join(b.rows)}; "
                "choose with --row_a and --row_b"
            )
        return pairs
    pair = (row_a or row_b or "", row_b or row_a or "")
    for evaluation, row, option in ((a, pair[0], "row_a"), (b, pair[1], "row_b")):
        if row not in evaluation.rows:
            raise ValueError(f"--{option}: {evaluation.folder} has no row {row!r}, but {', '.join(evaluation.rows)}")
    return [pair]


def row_differences(a: Evaluation, b: Evaluation, pair: tuple[str, str], seed: int) -> list[Difference]:
    """Every form and measure of two rows that is defined in both. Raises ValueError where they share no case."""
    first, second = a.rows[pair[0]], b.rows[pair[1]]
    found = []
    for form in first:
        shared = [key for key in first[form] if key in second.get(form, {})]
        if not shared:
            raise ValueError(f"{pair[0]} of {a.folder} and {pair[1]} of {b.folder} share no case in the form {form}")
        for measure in _COMPARED:
            values = {
                key: (first[form][key][measure.name], second[form][key][measure.name])
                for key in shared
                if measure.name in first[form][key] and measure.name in second[form][key]
            }
            if values:
                masks = a.masks[pair[0]], b.masks[pair[1]]
                difference = _difference((*pair, *masks), form, measure, values, seed)
                if measure.name == "psnr":
                    exact = [sum(edits[form][key].get("mse") == 0 for key in values) for edits in (first, second)]
                    difference = replace(difference, exact_a=exact[0], exact_b=exact[1])
                found.append(difference)
    return found


def _difference(
    rows: tuple[str, str, str, str], form: str, measure: Measure, values: Mapping[str, tuple[float, float]], seed: int
) -> Difference:
    """Args: rows: both names and both mask modes."""
    by_key = {key: second - first for key, (first, second) in values.items()}
    gains = [difference if measure.higher else -difference for difference in by_key.values()]
    return Difference(
        *rows,
        form,
        measure,
        math.fsum(first for first, _ in values.values()) / len(values),
        math.fsum(second for _, second in values.values()) / len(values),
        Interval.of(list(by_key.values()), RESAMPLES, seed),
        sum(gain > 0 for gain in gains),
        sum(gain < 0 for gain in gains),
        by_key,
    )
