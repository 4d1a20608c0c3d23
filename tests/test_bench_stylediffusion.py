"""`python -m scripts.bench_stylediffusion` as a user runs it: both sides, equal losses. No time is asserted."""

import json
from typing import Any

import pytest

from tests.processes import run


def bench(*options: str) -> dict[str, dict[str, Any]]:
    small = ("--images=2", "--steps=2", "--iterations=2", "--rounds=1")
    done = run("-m", "scripts.bench_stylediffusion", *small, *options)
    return {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}


@pytest.mark.long
def test_both_sides_end_at_the_same_losses():
    results = bench()
    assert results["difference_of_losses"]["value"] < 1e-3 and results["difference_of_mean_losses"]["value"] < 0.03
    for name in (
        "stylediffusion_fit_vs_official",
        "stylediffusion_fit_one_by_one_vs_official",
        "stylediffusion_clip_once_vs_every_layer",
        "stylediffusion_fit_peak_memory",
    ):
        assert results[name]["ratio"] == pytest.approx(results[name]["reference"] / results[name]["value"], rel=1e-2)


def test_one_side_alone_gives_its_peak_of_memory():
    assert bench("--only=ours").keys() == {"peak_memory"}
