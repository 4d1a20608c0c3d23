"""The page's parts: numbers with errors, charts, results without nan."""

import json
import math
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from data.pages.charts import Series, line_chart
from data.pages.page import decibels, figure, number
from eval.editors.options import NullTextSchedule
from eval.harness.results import Columns, about, at_least_one, decibel_words, finish, write_results, write_table
from eval.metrics.pixels import Estimate


def drawn(chart: str) -> ET.Element:
    """The SVG of a chart, which must be well-formed."""
    return ET.fromstring(chart).find("svg")


def test_figure_shows_mean_and_error():
    assert figure({"mean": 0.8123, "se": 0.0214, "n": 20}, 100) == "81.2 <small>± 2.1</small>"
    assert figure({"mean": 3.14159, "se": None, "n": 1}, digits=2) == "3.14"


def test_missing_and_exact_figures_have_their_own_signs():
    assert figure({"mean": None, "se": None, "n": 0}) == figure(None) == number(None) == number(math.nan) == "–"
    assert decibels({"mean": 100.0, "se": 0.0, "n": 20}) == "exact"
    assert decibels({"mean": 31.5, "se": 0.5, "n": 20}) == "31.5 <small>± 0.5</small>" and decibels(None) == "–"
    some = Estimate.of_measure("psnr", [100.0, 130.0, 25.0, 35.0]).to_dict()
    assert decibels(some) == "72.5 <small>± 25.4</small> <small>2 of 4 exact, others 30.0</small>"
    assert decibel_words(some) == "72.5 (2 exact, others 30.0)"
    assert figure({"mean": 80.4, "se": 0.4, "n": 20}) == "80.4 <small>± 0.4</small>"
    assert figure({"mean": 1.0, "se": 0.0, "n": 20}, 100) == "100.0 <small>± 0.0</small>"


def test_chart_draws_every_point_inside_its_frame():
    lines = [
        Series("one & only", "#123456", [(20.0, 30.0, "a < b"), (25.0, 60.0, "b")], chosen=1),
        Series("two", "#654321", [(22.0, 45.0, "c")]),
        Series("empty", "#000000", []),
    ]
    chart = line_chart(lines, "x", "y")
    svg = drawn(chart)
    circles = svg.findall("circle")
    assert len(circles) == 3
    assert all(0 < float(c.get("cx")) < 620 and 0 < float(c.get("cy")) < 380 for c in circles)
    assert max(float(c.get("r")) for c in circles) == float(circles[1].get("r"))
    assert "one &amp; only" in chart
    assert "empty" not in chart


def test_larger_values_lie_right_and_up():
    svg = drawn(line_chart([Series("a", "red", [(1.0, 1.0, ""), (2.0, 2.0, "")])], "x", "y"))
    first, second = svg.findall("circle")
    assert float(first.get("cx")) < float(second.get("cx"))
    assert float(first.get("cy")) > float(second.get("cy"))


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 1e-4], [-3.0, 900.0]])
def test_chart_survives_any_range(values):
    points = [(float(i), value, "") for i, value in enumerate(values, start=1)]
    assert drawn(line_chart([Series("a", "red", points)], "x", "y", whole_x=True)) is not None


def test_chart_without_points_is_nothing():
    assert line_chart([Series("a", "red", [])], "x", "y") == ""


def test_results_have_no_nan(tmp_path):
    path = tmp_path / "deep" / "results.json"
    write_results(path, {"a": math.nan, "b": [1.0, math.inf], "c": {999: (True, None, "x")}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.0, None], "c": {"999": [True, None, "x"]}}


def test_table_joins_columns_and_leaves_nan_empty(tmp_path):
    write_table(tmp_path / "t.csv", [{"a": 1, "b": math.nan}, {"a": "x, y", "c": 0.123456789}])
    assert (tmp_path / "t.csv").read_text().splitlines() == ["a,b,c", "1,,", '"x, y",,0.123457']


def test_numbers_below_one_are_named_together():
    at_least_one(num=1, batch=30, cases=None)
    with pytest.raises(ValueError, match=r"^num is 0, batch is -2; expected at least 1$"):
        at_least_one(num=0, steps=4, batch=-2)


def test_about_says_what_ran_where():
    found = about(torch.device("cpu"), encoder=Path("a/b"), schedule=NullTextSchedule(3), sizes=(1, 2), clip=None)
    assert json.loads(json.dumps(found)) == found
    assert (found["encoder"], found["sizes"], found["clip"], found["device"]) == ("a/b", [1, 2], None, "cpu")
    assert found["schedule"]["iterations"] == 3 and found["versions"]["torch"] == torch.__version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert (found["commit"] or "").removesuffix("+") == head


def test_columns_are_as_wide_as_their_widest_cell():
    table = Columns("editor", "dB", "n")
    table.add("a", "31.25", "180")
    table.add("a longer one", "-", "9")
    assert str(table).splitlines() == [
        "editor           dB    n",
        "a             31.25  180",
        "a longer one      -    9",
    ]
    with pytest.raises(AssertionError, match="2 cells for 3 columns"):
        table.add("b", "1")


def test_report_leaves_results_tables_and_page_and_says_where(tmp_path, caplog):
    def page() -> Path:
        assert (tmp_path / "results.json").is_file(), "results before the page"
        (tmp_path / "index.html").write_text("page")
        return tmp_path / "index.html"

    with caplog.at_level("INFO"):
        finish(tmp_path, {"a": 1}, "the summary", {"rows.csv": [{"a": 1}]}, page)
        finish(tmp_path / "b", {"a": 2}, "another", name="other.json")
    assert caplog.messages == [
        "the summary",
        f"report: {tmp_path / 'index.html'}",
        "another",
        f"report: {tmp_path / 'b' / 'other.json'}",
    ]
    assert (tmp_path / "rows.csv").read_bytes() == b"a\r\n1\r\n"
    assert json.loads((tmp_path / "b/other.json").read_text())
