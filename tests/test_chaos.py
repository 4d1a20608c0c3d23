"""`python -m scripts.chaos` as a user runs it, and that it would see a difference."""

import re
import shutil
from pathlib import Path

import pytest

from scripts.faults.disturbances import OPTIONS, STEPS
from scripts.faults.disturbed_runs import differences
from tests.processes import run
from tests.tiny_training import tiny_config, train, write_latents


def chaos(runs: int, seed: int) -> str:
    done = run("-m", "scripts.chaos", f"--runs={runs}", f"--seed={seed}", fresh=True)
    assert f"{runs} of {runs} runs finished equal" in done.stdout
    return done.stdout


@pytest.mark.long
def test_a_disturbed_run_ends_as_the_undisturbed_one():
    assert re.search(r"\| a rank killed \| [1-3] \| [1-3] \| [1-3] \|", chaos(runs=1, seed=0))


@pytest.mark.long
def test_many_disturbed_runs_end_as_the_undisturbed_one():
    rows = re.findall(r"\| .* \| (\d+) \| (\d+) \| (\d+) \|", chaos(runs=24, seed=1))
    assert len(rows) == 7 and all(times == equal != "0" for times, _, equal in rows)


def test_a_difference_is_seen(tmp_path: Path):
    run, other = tmp_path / "run", tmp_path / "other"
    train(tiny_config(write_latents(tmp_path / "shards"), run, *OPTIONS, "--time_per_step_sec=0"))
    shutil.copytree(run, other)
    assert differences(other, run) == []
    for name in ("metrics.jsonl", f"checkpoints/step-{STEPS:06d}/ema.safetensors", "samples/step-000009.png"):
        content = (other / name).read_bytes()
        (other / name).write_bytes(content[:-2] + b"x" + content[-1:])
        assert differences(other, run) == [name]
        (other / name).write_bytes(content)
