"""Everything is imported and runs without the features of other systems, and on a device without float64."""

from pathlib import Path

import pytest

from tests.processes import run


@pytest.mark.parametrize(("fresh", "workers"), [(False, 0), pytest.param(True, 1, marks=pytest.mark.long)])
def test_a_machine_like_apples_is_enough(tiny_backbone: str, tmp_path: Path, fresh: bool, workers: int):
    """A fresh process also imports without the features, and has a worker that does."""
    words = ["-m", "tests.apple", tmp_path, tiny_backbone, workers]
    said = run(*words, fresh=fresh, ACCELERATE_USE_CPU=None).stderr
    assert "1 process(es) on cpu" in said and "1 process(es) on meta" in said
    assert (tmp_path / "second" / "checkpoints" / "step-000001").is_dir()
