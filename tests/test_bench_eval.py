"""`python -m scripts.bench_eval` as a user runs it: both ways have the same values. No time is asserted."""

import json

import pytest

from scripts.bench.eval import LARGEST_DIFFERENCE, largest_metric_difference
from tests.processes import run


def test_batches_have_the_values_of_one_by_one():
    done = run("-m", "scripts.bench_eval", "--cases=3", "--editors=2", "--batch=2", "--device=cpu")
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert 0 < results["eval_difference"]["value"] <= LARGEST_DIFFERENCE
    ours = results["eval_vs_one_by_one"]
    assert ours["ratio"] == pytest.approx(ours["value"] / ours["reference"], rel=1e-2)


def test_the_largest_difference_counts():
    expected = [{"published": {"psnr": 10.0, "mse": 0.1}, "corrected": {"psnr": 20.0}}]
    found = [{"published": {"psnr": 10.1, "mse": 0.1}, "corrected": {"psnr": 20.1}}]
    share, worst = largest_metric_difference(found, expected)
    assert share == pytest.approx(0.01) and worst == "published psnr"
