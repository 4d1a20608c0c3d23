"""eval.tables: means of evaluations as LaTeX, Markdown and CSV, and PIE-Bench's own layout of values."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from eval.metrics.measures import Measure
from eval.tables import tabulate_means
from eval.typeset.files import write_pie_tables
from eval.typeset.layout import PaperLine, PaperTable, as_latex, as_markdown
from eval.typeset.official import OFFICIAL
from tests.pie_evaluation import write_evaluation
from tests.processes import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(folder)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    for row in results["rows"]:
        row["by_origin"] = {"natural": row["by_type"]["1"]}
    path.write_text(json.dumps(results))
    return folder


def estimate(mean: float | None, se: float = 0.1) -> dict[str, Any]:
    return {"mean": mean, "se": None if mean is None else se, "n": 9 if mean is not None else 0}


def test_best_and_second_are_marked_as_printed_and_by_group():
    columns = (Measure("psnr", "PSNR", "dB", 1, 2, "higher"), Measure("mse", "MSE", "×10⁻⁴", 1e4, 2, "lower"))
    values = {"a_1": (25.004, 3e-4), "b": (25.001, 2e-4), "c & d": (24.0, 1e-4), "e": (None, None), "f": (22.0, 9e-4)}
    lines = [
        PaperLine(name, name, ("none",), {"psnr": estimate(psnr), "mse": estimate(mse, 2e-5)})
        for name, (psnr, mse) in values.items()
    ]
    lines.append(PaperLine("mask", "mask", ("given",), {"psnr": estimate(40.0), "mse": estimate(1e-5)}, "given"))
    lines.append(PaperLine("identity", "identity", ("none",), {"psnr": estimate(100.0), "mse": estimate(0.0)}, None))
    table = PaperTable(("mask",), columns, lines, ("n = 9.",))
    latex = as_latex(table, errors=True).splitlines()
    assert r" & mask & PSNR $\uparrow$ (dB) & MSE $\downarrow$ ($\times 10^{-4}$) \\" in latex
    assert r"a\_1 & none & \textbf{25.00} {\scriptsize $\pm$ 0.10} & 3.00 {\scriptsize $\pm$ 0.20} \\" in latex
    markdown = as_markdown(table, errors=False)
    assert "| | mask | PSNR dB ↑ | MSE ×10⁻⁴ ↓ |".replace("| |", "|  |") in markdown and markdown.endswith("\nn = 9.\n")
    assert "| b | none | **25.00** | <u>2.00</u> |" in markdown  # equal as printed is equally good
    assert "| c & d | none | <u>24.00</u> | **1.00** |" in markdown and r"c \& d & none" in "\n".join(latex)
    assert "| e | none | – | – |" in markdown
    assert "| mask | given | 40.00 | 0.10 |" in markdown  # it competes with nobody here
    assert "| identity | none | 100.00 | 0.00 |" in markdown


def test_tables_of_pie_bench_hold_the_means(folder: Path, tmp_path: Path):
    done = run(
        "-m", "eval.tables", folder, "--measures", "[clip_whole, psnr]", "--out", tmp_path, "--references", "true"
    )
    assert "SDEdit" in done.stdout and "means.tex" in done.stdout
    with (tmp_path / "means.csv").open(newline="") as file:
        found = {line["row"]: line for line in csv.DictReader(file)}
    rows = {row["row"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    assert list(found) == list(rows)
    for name, line in found.items():
        expected = rows[name]["forms"]["published"]
        assert float(line["psnr"]) == pytest.approx(expected["psnr"]["mean"], rel=1e-5)
        assert float(line["clip_whole_se"] or 0) == pytest.approx(expected["clip_whole"]["se"], rel=1e-5)
        assert int(line["psnr_n"]) == expected["psnr"]["n"]
    text = (tmp_path / "means.md").read_text()
    assert "n from" in text and "Not comparable with published figures: " in text and "lpips" not in text.lower()


def test_parts_rows_and_wrong_names(folder: Path, tmp_path: Path):
    paths = tabulate_means(folder, tmp_path, form="corrected", part="natural", rows=["sdedit", "turboedit"])
    assert [path.name for path in paths] == [f"means_corrected_natural{end}" for end in (".tex", ".md", ".csv")]
    with paths[2].open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = {row["row"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    assert [line["row"] for line in lines] == ["sdedit", "turboedit"]
    expected = rows["sdedit"]["by_type"]["1"]["corrected"]["psnr"]["mean"]
    assert float(lines[0]["psnr"]) == pytest.approx(expected, rel=1e-5)
    for options, message in (
        ({"rows": ["ddim"]}, "--rows: .* has no ddim, but turboedit"),
        ({"measures": ["lpips"]}, "--measures: .* has no lpips, but structure, psnr"),
        ({"part": "rural"}, "--part is 'rural'; expected one of change object"),
        ({"form": "mine"}, "--form is 'mine'; expected one of published, corrected"),
    ):
        with pytest.raises(ValueError, match=message):
            tabulate_means(folder, tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no results\.json"):
        tabulate_means(tmp_path, tmp_path)


def test_the_official_layout_holds_every_value(folder: Path, tmp_path: Path):
    write_pie_tables(folder, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"means", "means_natural", "evaluation_result"}
    with (folder / "cases.csv").open(newline="") as file:
        cases = {(line["row"], line["key"]): line for line in csv.DictReader(file) if line["form"] == "published"}
    with (tmp_path / "evaluation_result.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line.pop("file_id") for line in lines] == sorted({key for _, key in cases})
    assert list(lines[0])[:2] == ["turboedit|structure_distance", "turboedit|psnr_unedit_part"]
    assert not any(column.startswith("identity") for column in lines[0])
    ours = {name: measure for measure, name in OFFICIAL.items()}
    exact = 0
    for line, key in zip(lines, sorted({key for _, key in cases}), strict=True):
        for column, value in line.items():
            row, metric = column.split("|")
            cell = cases[row, key][ours[metric]]
            exact += value == "inf"
            assert math.isinf(float(value)) if value == "inf" else value == (cell or "nan")
            assert value != "inf" or float(cases[row, key]["mse"]) == 0
    assert exact  # a given mask protects the background


def test_scenes_and_reconstructions_have_tables_too(tmp_path: Path):
    figures = {"changed": estimate(0.5), "psnr_outside": estimate(30.0), "n": 9, "peak_gb": None}
    scenes = {
        "about": {},
        "edits": {"turboedit": {**figures, "by_type": {"pose": figures}}, "ddim": figures, "truth": figures},
    }
    table = [
        {"editor": "vae", "steps": None, "nfe": None, "psnr": estimate(40.0), "n": 9},
        {"editor": "turboedit", "steps": 4, "nfe": 8, "psnr": estimate(30.0), "fid": 5.0, "n": 9},
    ]
    for name, results in (("scenes", scenes), ("reconstruction", {"about": {}, "table": table})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        text = tabulate_means(tmp_path / name)[1].read_text()
        assert "TurboEdit" in text and "VAE" not in text and "truth" not in text
    assert "| TurboEdit | 4 | 30.00 | 5.00 | 8 |" in text
    assert "50.0" in tabulate_means(tmp_path / "scenes", part="pose", rows=["turboedit"])[1].read_text()
    with pytest.raises(ValueError, match="no table of means with parts such as pose"):
        tabulate_means(tmp_path / "reconstruction", part="pose")
