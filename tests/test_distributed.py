"""Two real processes (gloo, as torchrun and accelerate start them) give the losses of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import processes
from tests.processes import finish, start_ranks
from tests.tiny_training import SIZES, write_latents

OPTIONS = (*SIZES, "--run.micro_batch=2", "--optim.lr=1e-2", "--log.checkpoint_every=12", "--log.preview_every=20")
TORCHRUN = (*processes.TORCHRUN, "-m")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m"),
)
ALONE = ("-m",)


def run(launcher: tuple[str, ...], shards: Path, folder: Path, *options: str, status: int = 0) -> str:
    words = ["tests.tiny_training", *OPTIONS, f"--data.shards={shards}", f"--run.folder={folder}", *options]
    return processes.run(*launcher, *words, fresh=launcher != ALONE, status=status).stderr


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics without latent_std, which is a micro batch's own."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "latent_std"} for line in lines]


def assert_same_training(folder: Path, reference: Path) -> None:
    for line, expected in zip(metrics(folder), metrics(reference), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    for name, value in load_file(reference / "checkpoints/step-000020/ema.safetensors").items():
        ours = load_file(folder / "checkpoints/step-000020/ema.safetensors")[name]
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    run(ALONE, shards, folder)
    return folder


def test_two_processes_give_the_losses_of_one(shards: Path, alone: Path, tmp_path: Path):
    words = [*ALONE, "tests.tiny_training", *OPTIONS, f"--data.shards={shards}", f"--run.folder={tmp_path / 'two'}"]
    output = "".join(finish(start_ranks(2, *words)))
    assert "2 process(es) on cpu: global batch 8 = 2 x 2 accumulated x micro batch 2" in output
    assert_same_training(tmp_path / "two", alone)
    assert [path.name for path in sorted((tmp_path / "two/samples").iterdir())] == [
        "step-000000.png",
        "step-000020.png",
    ]


def test_another_number_of_processes_than_expected_stops_the_run(shards: Path, tmp_path: Path):
    output = run(ALONE, shards, tmp_path / "run", "--run.processes=2", status=1)
    assert "the launch has 1 process(es), the run expects run.processes 2" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_accelerate_launch_does_too(shards: Path, alone: Path, tmp_path: Path):
    assert "2 process(es) on cpu" in run(ACCELERATE, shards, tmp_path / "two")
    assert_same_training(tmp_path / "two", alone)


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), [(TORCHRUN, ALONE), (ALONE, TORCHRUN)], ids=["2 to 1", "1 to 2"])
def test_resume_on_another_number_of_processes(
    shards: Path, alone: Path, tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]
):
    folder = tmp_path / "run"
    run(first, shards, folder, "--run.steps=12")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))  # without the line that the earlier end gave
    assert "resuming from" in run(second, shards, folder)
    assert [line["step"] for line in metrics(folder)] == [5, 10, 15, 20]
    # the line of step 15 averages over steps 13 to 15: the earlier end closed its interval at step 12
    kept = [line for line in metrics(folder) if line["step"] != 15]
    for line, expected in zip(kept, [m for m in metrics(alone) if m["step"] != 15], strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_a_bad_sample_on_one_rank_stops_both(shards: Path, tmp_path: Path):
    output = run(TORCHRUN, shards, tmp_path / "run", "--broken_key=sample0003", "--optim.max_bad_steps=1", status=1)
    assert "NonFiniteGradient" in output and "sample0003" in output


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_built(shards: Path, tmp_path: Path):
    output = run(ALONE, shards, tmp_path / "run", "--run.micro_batch=3", status=1)
    assert "the nearest micro batches that do: 2 and 4" in output
    assert not (tmp_path / "run").exists()
