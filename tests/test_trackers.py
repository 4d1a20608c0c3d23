"""What the trackers hold of a run that was killed and went on: each logged step once, with the run's own numbers."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import processes, wandb_files
from tests.processes import Process, kill_when
from tests.tiny_training import SIZES, tiny_config, train, write_latents

STEPS, EVERY = 40, 2
OPTIONS = (
    *SIZES,
    f"--run.steps={STEPS}",
    f"--log.log_every={EVERY}",
    "--log.checkpoint_every=7",
    "--log.preview_every=10",
    "--log.trackers=[tensorboard, wandb]",
    "--log.project=scenes",
    "--log.run_name=third try",
    "--log.tags=[tiny, killed]",
    "--time_per_step_sec=0.05",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


def start(shards: Path, run: Path) -> Process:
    words = (*OPTIONS, f"--data.shards={shards}", f"--run.folder={run}")
    return processes.start("-m", "tests.tiny_training", *words, WANDB_SILENT="true")


def rows(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


@pytest.fixture(scope="module")
def resumed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed twice, each time with steps logged after its newest checkpoint."""
    run = tmp_path_factory.mktemp("runs") / "run"
    for step in (12, 26):
        kill_when(lambda step=step: bool(rows(run)) and rows(run)[-1]["step"] >= step, start(shards, run))
        assert rows(run)[-1]["step"] < STEPS, "finished before it could be killed"
    start(shards, run).finished()
    assert [row["step"] for row in rows(run)] == list(range(EVERY, STEPS + 1, EVERY))
    return run


def test_wandb_holds_every_step_once(resumed: Path):
    files = wandb_files.files(resumed)
    assert len({path.name for path in files}) == 1, "a resumed run is the same run"
    held = [row for path in files for row in wandb_files.history(path)]
    logged = [row for row in held if "loss" in row]
    assert [row["_step"] for row in logged] == [row["step"] for row in rows(resumed)]
    for found, expected in zip(logged, rows(resumed), strict=True):
        assert {name: found[name] for name in expected if name != "step"} == {
            name: value for name, value in expected.items() if name != "step"
        }
        assert found["samples_per_sec"] > 0
    assert [row["_step"] for row in held if "preview" in row] == [0, 10, 20, 30, 40]
    pictures = list((files[-1].parent / "files" / "media" / "images").glob("preview*"))
    assert len(pictures) == 5


def test_wandb_knows_project_name_and_tags(resumed: Path):
    found = wandb_files.settings(wandb_files.files(resumed)[-1])
    assert (found.project, found.display_name, list(found.tags)) == ("scenes", "third try", ["tiny", "killed"])
    assert "run-" in found.run_id


def test_tensorboard_holds_every_step_once(resumed: Path):
    events = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    found = events.Scalars("loss")
    assert [event.step for event in found] == [row["step"] for row in rows(resumed)]
    assert [event.value for event in found] == pytest.approx([row["loss"] for row in rows(resumed)])
    assert [event.step for event in events.Images("preview")] == [0, 10, 20, 30, 40]


def test_a_tracker_that_is_not_installed_is_an_error_that_teaches(shards: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"log\.trackers names clearml, which is not installed here"):
        train(tiny_config(shards, tmp_path / "run", "--log.trackers=[clearml]"))
