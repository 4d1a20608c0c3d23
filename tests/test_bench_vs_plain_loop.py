"""`python -m scripts.bench_vs_plain_loop` as a user runs it: both loops have the same losses. No time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench_vs_plain_loop import loss_difference

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_both_loops_have_the_same_losses() -> None:
    command = [sys.executable, "-m", "scripts.bench_vs_plain_loop", "--device=cpu", "--batch=2", "--steps=2"]
    command += ["--warmup=1", "--rounds=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert results["difference_of_losses"]["value"] < 1e-4
    ours = results["train_vs_plain_loop"]
    assert ours["ratio"] == pytest.approx(ours["value"] / ours["reference"], rel=1e-2)


def test_the_largest_difference_counts() -> None:
    assert loss_difference([1.0, 2.2, 3.0], [1.0, 2.0, 3.0]) == pytest.approx(0.1)
