"""`python -m scripts.bench_stylediffusion` as a user runs it: both sides, equal losses. No time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_both_sides_end_at_the_same_losses() -> None:
    command = [sys.executable, "-m", "scripts.bench_stylediffusion", "--images=2", "--steps=2", "--iterations=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--rounds=1"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert results["difference_of_losses"]["value"] < 1e-3 and results["difference_of_mean_losses"]["value"] < 0.03
    for name in (
        "stylediffusion_fit_vs_official",
        "stylediffusion_fit_one_by_one_vs_official",
        "stylediffusion_clip_once_vs_every_layer",
        "stylediffusion_fit_peak_memory",
    ):
        assert results[name]["ratio"] == pytest.approx(results[name]["reference"] / results[name]["value"], rel=1e-2)
