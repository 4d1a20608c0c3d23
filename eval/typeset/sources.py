"""Tables of means from the results.json of eval.pie_bench, of evaluations on scenes, and of eval.reconstruction."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.editors.titles import title_of
from eval.metrics.measures import MEASURES, PIE_COLUMNS, PIE_FURTHER, SECOND_CLIP, Measure
from eval.typeset.layout import PaperLine, PaperTable

_PIE = (*PIE_COLUMNS, *PIE_FURTHER, *SECOND_CLIP)
_FIDELITY = (
    Measure("mse", "MSE", "×10⁻³", 1e3, 2, "lower"),
    Measure("psnr", "PSNR", "dB", 1.0, 2, "higher"),
    Measure("psnr_to_vae", "PSNR to the VAE's round trip", "dB", 1.0, 2, "higher"),
    Measure("ssim", "SSIM", "", 1.0, 3, "higher"),
    Measure("lpips", "LPIPS", "", 1.0, 3, "lower"),
    Measure("fid", "FID", "", 1.0, 2, "lower"),
    Measure("kid", "KID", "×10⁻⁴", 1e4, 2, "lower"),
    Measure("nfe", "NFE", "", 1.0, 0),
)
_NOT_METHODS = ("identity", "truth", "ceiling", "vae", "noise")


def read_means(
    folder: Path,
    form: str = "published",
    part: str | None = None,
    rows: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    references: bool = False,
) -> PaperTable:
    """The table of an evaluation's means.

    Args:
        folder: folder of the evaluation.
        form: form of PIE-Bench's measures, "published" or "corrected".
        part: only edits of one type (its number or name) or of "natural" or "artificial" pictures.
        rows: names of the rows, in their order; all by default.
        measures: names of the measures, in their order; by default all that have figures.
        references: keep what is no method, where `rows` does not choose.

    Raises:
        ValueError: the folder holds no results that are known here, or not what is asked for.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no results.json; give the folder of a finished evaluation")
    results = json.loads(path.read_text(encoding="utf-8"))
    heads: tuple[str, ...]
    known: tuple[Measure, ...]
    if "rows" in results and "types" in results:
        heads, lines, known = ("prompts", "mask", "steps"), _pie_lines(results, form, part), _PIE
    elif "edits" in results:
        heads, lines, known = (), _scene_lines(results, part), tuple(MEASURES.values())
    elif "table" in results and part is None:
        heads, lines, known = ("steps",), _reconstruction_lines(results), _FIDELITY
    else:
        asked = "" if part is None else f" with parts such as {part}"
        raise ValueError(
            f"{path} has no table of means{asked}; expected eval.pie_bench's, of scenes or reconstructions"
        )
    wanted = [line for line in lines if references or line.group is not None]
    lines = wanted if rows is None else _chosen(rows, {line.name: line for line in lines}, "--rows", path)
    there = {m.name: m for m in known if any(_there(line.figures.get(m.name)) for line in lines)}
    columns = list(there.values()) if measures is None else _chosen(measures, there, "--measures", path)
    return PaperTable(heads, columns, lines, _notes(results, lines, columns, part))


def _there(estimate: Mapping[str, Any] | None) -> bool:
    return bool(estimate) and estimate["mean"] is not None  # type: ignore[index]


def _chosen(names: Sequence[str], known: Mapping[str, Any], option: str, path: Path) -> list[Any]:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option}: {path} has no {', '.join(unknown)}, but {', '.join(known)}")
    return [known[name] for name in names]


def _pie_lines(results: Mapping[str, Any], form: str, part: str | None) -> list[PaperLine]:
    if form not in (forms := list(results["rows"][0]["forms"])):
        raise ValueError(f"--form is {form!r}; expected one of {', '.join(forms)}")
    numbers = {name: number for number, name in results["types"].items()}

    def figures(row: Mapping[str, Any]) -> Mapping[str, Any]:
        if part is None:
            return row["forms"][form]
        parts = {**row["by_type"], **row.get("by_origin", {})}
        return parts.get(numbers.get(part, part), {}).get(form, {})

    _require_part(part, [*numbers, *results["types"], *_keys(row.get("by_origin", {}) for row in results["rows"])])
    return [
        PaperLine(
            row["row"],
            row["title"],
            (row["prompts"], row["mask"], "–" if row["steps"] is None else str(row["steps"])),
            figures(row),
            None if row["reference"] else ("given" if row["mask"] == "given" else ""),
        )
        for row in results["rows"]
    ]


def _scene_lines(results: Mapping[str, Any], part: str | None) -> list[PaperLine]:
    _require_part(part, _keys(figures.get("by_type", {}) for figures in results["edits"].values()))

    def measured(figures: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = figures if part is None else figures.get("by_type", {}).get(part, {})
        return {name: value for name, value in chosen.items() if isinstance(value, Mapping) and "mean" in value}

    return [
        PaperLine(name, title_of(name), (), measured(figures), _group(name))
        for name, figures in results["edits"].items()
    ]


def _reconstruction_lines(results: Mapping[str, Any]) -> list[PaperLine]:
    lines = []
    for row in results["table"]:
        figures = {
            measure.name: value if isinstance(value, Mapping) else {"mean": value, "se": None, "n": row["n"]}
            for measure in _FIDELITY
            if (value := row.get(measure.name)) is not None
        }
        steps = row["steps"]
        name = row["editor"] if steps is None else f"{row['editor']}_{steps}"
        words = ("–" if steps is None else str(steps),)
        lines.append(PaperLine(name, title_of(row["editor"]), words, figures, _group(row["editor"])))
    return lines


def _group(name: str) -> str | None:
    """Methods that are given the true mask compete with each other."""
    if name in _NOT_METHODS:
        return None
    return "given" if "given" in name or name in ("blended", "inpaint") else ""


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _require_part(part: str | None, known: Sequence[str]) -> None:
    if part is not None and part not in known:
        raise ValueError(f"--part is {part!r}; expected one of {', '.join(known)}")


def _notes(
    results: Mapping[str, Any], lines: Sequence[PaperLine], columns: Sequence[Measure], part: str | None
) -> list[str]:
    """Sentences to know beside the table."""
    counts = sorted({line.figures[c.name]["n"] for line in lines for c in columns if _there(line.figures.get(c.name))})
    which = "" if part is None else f" ({part})"
    number = f"n = {counts[0]}" if len(counts) == 1 else f"n from {counts[0]} to {counts[-1]}, see the CSV"
    notes = [f"{number}{which}. ± one standard error." if counts else f"No figures{which}."]
    if any(line.group == "given" for line in lines):
        notes.append("Rows that are given the mask of the figures have their own best and second.")
    if differs := results["about"].get("differs"):
        notes.append(f"Not comparable with published figures: {'; '.join(differs)}.")
    return [" ".join(note.split()) for note in notes]
