"""`python -m scripts.bench_vs_plain_loop` as a user runs it: both loops have the same losses. No time is asserted."""

import json

import pytest

from scripts.bench.timing import loss_difference
from tests.processes import run


@pytest.mark.long
def test_both_loops_have_the_same_losses():
    options = ("--device=cpu", "--batch=2", "--steps=2", "--warmup=1", "--rounds=1")
    done = run("-m", "scripts.bench_vs_plain_loop", *options)
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert results["difference_of_losses"]["value"] < 1e-4
    ours = results["train_vs_plain_loop"]
    assert ours["ratio"] == pytest.approx(ours["value"] / ours["reference"], rel=1e-2)


def test_the_largest_difference_counts():
    assert loss_difference([1.0, 2.2, 3.0], [1.0, 2.0, 3.0]) == pytest.approx(0.1)
