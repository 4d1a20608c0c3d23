"""Checkpoints on disk: whole or absent, exact, rotated, strict."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from train.run.checkpoint import (
    CRITIC,
    CRITIC_OPTIMIZER,
    EMA,
    MODEL,
    OPTIMIZER,
    Checkpoints,
    Parts,
    RunProgress,
    read_part,
    read_progress,
)


def progress(step: int) -> RunProgress:
    return RunProgress(step, step * 8, 0.1, meters={"names": ["loss"], "extra": [], "total": [[1 / 3], [2.0]]})


def parts(step: int) -> Parts:
    torch.manual_seed(step)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    first = {MODEL: module.state_dict, EMA: module.state_dict, OPTIMIZER: optimizer.state_dict}
    return {**first, CRITIC: module.state_dict, CRITIC_OPTIMIZER: optimizer.state_dict}


def save(checkpoints: Checkpoints, step: int) -> Path:
    checkpoints.save(progress(step), parts(step))
    return checkpoints.path(step)


def test_round_trip_is_exact(tmp_path: Path):
    folder = save(Checkpoints(tmp_path / "checkpoints", keep=2), 5)
    saved = {name: make() for name, make in parts(5).items()}
    assert read_progress(folder) == progress(5)
    for name in (MODEL, EMA, CRITIC):
        loaded = read_part(folder, name)
        assert loaded.keys() == saved[name].keys()
        assert all(torch.equal(loaded[key], value) for key, value in saved[name].items())
    for name in (OPTIMIZER, CRITIC_OPTIMIZER):
        for number, state in saved[name]["state"].items():
            loaded = read_part(folder, name)["state"][number]
            assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_only_the_first_rank_writes_and_a_part_that_is_not_there_is_named(tmp_path: Path):
    checkpoints, made = Checkpoints(tmp_path / "checkpoints", keep=2), []
    checkpoints.save(progress(5), {MODEL: lambda: made.append(1) or {}}, first_rank=False)
    assert made and not checkpoints.folder.exists()
    checkpoints.save(progress(5), {MODEL: parts(5)[MODEL]})
    with pytest.raises(ValueError, match=r"step-000005 has no ema\.safetensors"):
        read_part(checkpoints.path(5), EMA)


def test_rotation_keeps_the_newest(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 999_999, 1_000_000):
        save(checkpoints, step)
    assert checkpoints.steps() == [999_999, 1_000_000]
    assert checkpoints.newest() == tmp_path / "step-1000000"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_a_killed_save_left_is_no_checkpoint_and_is_removed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 5)
    partial = tmp_path / ".partial-step-000010"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoints.steps() == [5]
    checkpoints.remove_partial()
    assert not partial.exists() and checkpoints.steps() == [5]


def test_no_folder_is_no_checkpoint(tmp_path: Path):
    assert Checkpoints(tmp_path / "nothing", keep=1).newest() is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, cut, turn_a_bit])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json", "checksums.json", CRITIC]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, name: str, harm, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (5, 10):
        save(checkpoints, step)
    harm(tmp_path / "step-000010" / name)
    if name == "checksums.json" and harm is cut:
        cut(tmp_path / "step-000010" / name)  # the last byte alone is a line's end
    assert checkpoints.newest() == tmp_path / "step-000005"
    assert "step-000010" in caplog.text and name in caplog.text
    save(checkpoints, 10)
    assert checkpoints.newest() == tmp_path / "step-000010"


def test_where_all_are_damaged_nothing_starts_anew(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (5, 10):
        turn_a_bit(save(checkpoints, step) / "optimizer.pt")
    with pytest.raises(ValueError, match=r"step-000010: optimizer\.pt is not what was written; step-000005"):
        checkpoints.newest()


@pytest.mark.parametrize("limit", [100, 1000], ids=["weights", "optimizer"])
def test_what_cannot_be_written_is_no_checkpoint(tmp_path: Path, limit: int):
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"step-000010 cannot be written \(.*\): free space"):
            save(checkpoints, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.steps() == [5] and checkpoints.newest() == tmp_path / "step-000005"


def test_every_so_many_steps_stay_for_good(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=10)
    for step in range(5, 40, 5):
        save(checkpoints, step)
    assert checkpoints.steps() == [10, 20, 30, 35]


def test_progress_of_another_version_is_refused(tmp_path: Path):
    folder = save(Checkpoints(tmp_path, keep=1), 5)
    values = json.loads((folder / "progress.json").read_text())
    del values["bad_steps"]
    (folder / "progress.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"expected.*bad_steps"):
        read_progress(folder)


def test_tied_weights_come_back_under_both_names(tmp_path: Path):
    module = tied_modules()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(progress(1), {MODEL: module.state_dict})
    other = tied_modules()
    other.load_state_dict(read_part(checkpoints.path(1), MODEL))
    assert torch.equal(other[0].weight, module[0].weight)
    assert other[1].weight is other[0].weight


def tied_modules() -> nn.Sequential:
    """An embedding and an output layer with one weight."""
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    return module


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every fsync and renaming of this process from now on, in order, each still done."""
    found: list[tuple[str, str]] = []

    def noted(kind: str, call, name_of):
        def do(*args, **kwargs):
            found.append((kind, name_of(*args)))
            return call(*args, **kwargs)

        return do

    monkeypatch.setattr(
        os, "fsync", noted("flushed", os.fsync, lambda handle: str(Path(f"/proc/self/fd/{handle}").readlink()))
    )
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noted("named", getattr(os, name), lambda source, target: str(target)))
    return found


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path: Path, events: list[tuple[str, str]]):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(progress(7), parts(7))
    named = events.index(("named", str(checkpoints.path(7))))
    flushed = {Path(path).name for _, path in events[:named]}
    assert flushed >= {path.name for path in checkpoints.path(7).iterdir()}
    assert ("flushed", str(tmp_path)) in events[named:]
