"""Checkpoints on disk: whole or absent, exact, rotated, strict."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from train.checkpoint import Checkpoint, Checkpoints, Progress, load_checkpoint


def checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    meters = {"names": ["loss"], "extra": [], "total": [[1 / 3], [2.0]]}
    weights = module.state_dict()
    return Checkpoint(Progress(step, step * 8, 0.1, meters=meters), weights, dict(weights), optimizer.state_dict())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = checkpoint(5)
    loaded = load_checkpoint(Checkpoints(tmp_path / "checkpoints", keep=2).save(saved))
    assert loaded.progress == saved.progress
    assert loaded.model.keys() == saved.model.keys() and loaded.ema is not None
    assert all(torch.equal(loaded.model[name], value) for name, value in saved.model.items())
    for number, state in saved.optimizer["state"].items():
        assert all(torch.equal(loaded.optimizer["state"][number][name], value) for name, value in state.items())


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 999_999, 1_000_000):
        checkpoints.save(checkpoint(step))
    assert checkpoints.steps() == [999_999, 1_000_000]
    assert checkpoints.newest() == tmp_path / "step-1000000"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_a_killed_save_left_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(5))
    partial = tmp_path / ".partial-step-000010"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoints.steps() == [5]
    checkpoints.remove_partial()
    assert not partial.exists() and checkpoints.steps() == [5]


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing", keep=1).newest() is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, cut, turn_a_bit])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json", "checksums.json"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, name: str, harm, caplog) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (5, 10):
        checkpoints.save(checkpoint(step))
    harm(tmp_path / "step-000010" / name)
    if name == "checksums.json" and harm is cut:
        cut(tmp_path / "step-000010" / name)  # the last byte alone is a line's end
    assert checkpoints.newest() == tmp_path / "step-000005"
    assert "step-000010" in caplog.text and name in caplog.text
    checkpoints.save(checkpoint(10))
    assert checkpoints.newest() == tmp_path / "step-000010"


def test_where_all_are_damaged_nothing_starts_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (5, 10):
        turn_a_bit(checkpoints.save(checkpoint(step)) / "optimizer.pt")
    with pytest.raises(ValueError, match=r"step-000010: optimizer\.pt is not what was written; step-000005"):
        checkpoints.newest()


def test_every_so_many_steps_stay_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=10)
    for step in range(5, 40, 5):
        checkpoints.save(checkpoint(step))
    assert checkpoints.steps() == [10, 20, 30, 35]


def test_progress_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, keep=1).save(checkpoint(5))
    values = json.loads((folder / "progress.json").read_text())
    del values["bad_steps"]
    (folder / "progress.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"expected.*bad_steps"):
        load_checkpoint(folder)


def test_tied_weights_come_back_under_both_names(tmp_path: Path) -> None:
    module = tied_modules()
    weights = module.state_dict()
    optimizer = torch.optim.AdamW(module.parameters())
    folder = Checkpoints(tmp_path, keep=1).save(Checkpoint(Progress(1, 8, 0.1), weights, None, optimizer.state_dict()))
    other = tied_modules()
    other.load_state_dict(load_checkpoint(folder).model)
    assert torch.equal(other[0].weight, module[0].weight)
    assert other[1].weight is other[0].weight


def tied_modules() -> nn.Sequential:
    """An embedding and an output layer with one weight."""
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    return module
