"""fp16 mixed precision: the loss is scaled, overflows are left out, a resumed run is the undisturbed one."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from data.shards.dataset import ShardDataset
from tests.processes import start_ranks
from tests.tiny_training import TinyTask, tiny_config, train, write_latents
from train.engine import fit_steps
from train.run.bad_steps import BadSteps, NonFiniteGradient
from train.run.checkpoint import OPTIMIZER, RunProgress, read_part
from train.run.config import OptimConfig
from train.run.launch import Launch
from train.run.optim import LossScale, build_optimizer
from train.run.weights import LOSS_SCALE, ReplicatedWeights

FP16 = "--run.mixed_precision=fp16"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_fp16_trains_like_float32(shards: Path, tmp_path: Path):
    for precision in ("no", "fp16"):
        train(tiny_config(shards, tmp_path / precision, f"--run.mixed_precision={precision}", "--optim.lr=1e-2"))
    exact, half = (metrics(tmp_path / precision) for precision in ("no", "fp16"))
    assert [line["loss"] for line in half] == pytest.approx([line["loss"] for line in exact], rel=5e-3)
    assert [line["grad_norm"] for line in half] == pytest.approx([line["grad_norm"] for line in exact], rel=5e-2)
    assert any(one["loss"] != other["loss"] for one, other in zip(half, exact, strict=True))
    assert [line["loss_scale"] for line in half] == [65536.0] * len(half) and "loss_scale" not in exact[0]


def test_an_overflow_is_left_out_and_halves_the_scale(shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny_config(shards, run, FP16, "--broken_key=sample0003", "--log.log_every=1", "--optim.max_bad_steps=1"))
    lines = metrics(run)
    left_out = lines[-1]["bad_steps"]
    assert left_out == sum(line["loss"] is None for line in lines) in (3, 4)
    assert lines[-1]["loss_scale"] == 65536 / 2**left_out


def test_small_gradients_survive_by_the_scale():
    """A gradient below float16's smallest number moves the weight as it does in float32."""
    moved = {}
    for enabled in (True, False):
        module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(module.weight)
        launch = Launch(tiny_config(Path("unused"), Path("unused"), FP16).run)
        weights = ReplicatedWeights(module, build_optimizer(module, OptimConfig(lr=0.5)), LossScale(CPU, enabled))
        with launch.autocast():
            loss = 1e-3 * module(torch.full((1, 1), 1e-5)).float()
        weights.backward(launch, loss.sum())
        assert weights.step(launch, 0.0).item() == pytest.approx(1e-8 if enabled else 0.0, rel=0.02)
        moved[enabled] = module.weight.item() != pytest.approx(1.0 - 0.5 * 0.01)  # but for the weight's decay
    assert moved == {True: True, False: False}


def test_only_steps_that_the_scale_cannot_mend_stop_a_run():
    launch = Launch(tiny_config(Path("unused"), Path("unused"), FP16).run)
    bad, progress = BadSteps(limit=2), RunProgress()
    for step, scale in enumerate((8.0, 4.0, 2.0, 1.0)):
        bad.record(step, torch.tensor(False), torch.tensor(scale), ["key"])
    bad.check(progress, launch)
    assert (progress.bad_steps, progress.bad_in_row) == (4, 1)
    bad.record(4, torch.tensor(False), torch.tensor(0.5), ["key"])
    with pytest.raises(NonFiniteGradient, match=r"step 4.*2 in a row"):
        bad.check(progress, launch)


def steps(shards: Path, run: Path) -> Iterator[RunProgress]:
    options = (
        FP16,
        "--run.steps=18",
        "--broken_key=sample0003",
        "--log.log_every=1",
        "--log.checkpoint_every=7",
        "--dropout=0.1",
    )
    config = tiny_config(shards, run, *options)
    launch = Launch(config.run)
    task = TinyTask(config, launch.device)
    return fit_steps(task, ShardDataset(shards, task.fields), config, launch)


def test_a_stopped_run_goes_on_exactly(shards: Path, tmp_path: Path):
    for _ in steps(shards, tmp_path / "whole"):
        pass
    for count in (12, 30):  # stopped as by a crash at step 11, four steps after a checkpoint
        with closing(steps(shards, tmp_path / "resumed")) as progress:
            for _ in islice(progress, count):
                pass
    one, other = (tmp_path / name / "metrics.jsonl" for name in ("whole", "resumed"))
    assert one.read_bytes() == other.read_bytes()
    checkpoints = [tmp_path / name / "checkpoints" / "step-000018" for name in ("whole", "resumed")]
    for name in ("model.safetensors", "ema.safetensors", OPTIMIZER):
        assert (checkpoints[0] / name).read_bytes() == (checkpoints[1] / name).read_bytes()
    scale = read_part(checkpoints[0], OPTIMIZER)[LOSS_SCALE]
    assert scale["scale"] == metrics(tmp_path / "whole")[-1]["loss_scale"] < 65536
    assert 0 < scale["_growth_tracker"] < 20


def test_two_processes_keep_one_scale(shards: Path, tmp_path: Path):
    words = (f"--data.shards={shards}", "--run.steps=8", "--run.global_batch=8", "--run.micro_batch=4", FP16)
    more = ("--data.workers=0", "--broken_key=sample0003", "--log.log_every=1", f"--run.folder={tmp_path / 'two'}")
    for rank in start_ranks(2, "-m", "tests.tiny_training", *words, *more):
        rank.finished()
    train(tiny_config(shards, tmp_path / "one", *words[1:], *more[:-1]))
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["loss_scale"] for line in two] == [line["loss_scale"] for line in one]
    for mine, theirs in zip(two, one, strict=True):
        assert mine["loss"] == theirs["loss"] is None or mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(ValueError, match=r"mixed_precision is fp16.*not under DeepSpeed: launch with"):
        Launch(tiny_config(Path("unused"), Path("unused"), FP16).run)
