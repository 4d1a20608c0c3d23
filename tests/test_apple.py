"""Everything is imported and runs without the features of other systems, and on a device without float64."""

from pathlib import Path

from tests.processes import run


def test_a_machine_like_apples_is_enough(tiny_backbone: str, tmp_path: Path):
    said = run("-m", "tests.apple", tmp_path, tiny_backbone, fresh=True, ACCELERATE_USE_CPU=None).stderr
    assert "1 process(es) on cpu" in said and "1 process(es) on meta" in said
    assert (tmp_path / "second" / "checkpoints" / "step-000001").is_dir()
