"""The training loop and its config, on a tiny real task."""

import gzip
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from data.jobs.command import parse, to_yaml
from tests.tiny_training import TinyConfig, TinyTask, tiny_config, train, write_latents
from train.rng import StepRandom
from train.run.bad_steps import NonFiniteGradient
from train.run.checkpoint import RunProgress
from train.run.clock import RunClock
from train.run.config import LogConfig, OptimConfig, RunConfig
from train.run.folder import may_change
from train.run.launch import Launch, accumulation_steps
from train.run.meters import Meters
from train.run.optim import build_optimizer, lr_at, step_if
from train.run.preview import preview_grid
from train.task import Batch, StepLoss


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / "checkpoints").iterdir())[-1] / f"{name}.safetensors")


def test_a_run_learns_and_records_itself(shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    options = ("--run.steps=60", "--optim.lr=1e-2", "--log.preview_every=30", "--log.trackers=[tensorboard]")
    summary = train(tiny_config(shards, run, *options))
    lines = metrics(run)
    assert (summary.step, summary.samples, summary.folder) == (60, 480, run) and summary.seconds > 0
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]
    first = lines[0]
    assert first["samples"] == 40 and first["epoch"] == pytest.approx(40 / 48) and first["lr"] == 0.01
    assert first["loss"] == pytest.approx(first["mse"] + first["size"])
    assert first["error"] == pytest.approx(first["mse"])
    assert first["error_ratio"] == pytest.approx(first["error/low"] / first["error/high"])
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        f"step-0000{n}.png" for n in ("00", "30", "60")
    ]
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    assert all(line["samples_per_sec"] > 0 for line in timing) and timing[-1]["step"] == 60
    assert all(0 < line["step_sec_p50"] <= line["step_sec_p90"] <= line["step_sec_p99"] < 10 for line in timing)
    assert all(0.1 < line["peak_memory_gb"] < 20 for line in timing)
    start = json.loads((run / "environment.json").read_text())[0]
    assert start["from_step"] == 0 and torch.__version__.startswith(start["versions"]["torch"])
    assert "global batch 8 = 1 x 1 accumulated x micro batch 8" in (run / "log.txt").read_text()
    assert list((run / "tensorboard").iterdir())
    assert parse(TinyConfig, [f"--config={run / 'config.yaml'}"]) == tiny_config(shards, run, *options)


def test_percentiles_are_those_of_single_steps():
    clock = RunClock(RunProgress(), torch.device("cpu"))
    for seconds in (0.01, 0.01, 1.0):
        time.sleep(seconds)
        clock.tick()
    timing = clock.interval(RunProgress(samples=30))
    assert 0.01 <= timing["step_sec_p50"] < 0.5 < timing["step_sec_p99"]
    clock.tick()
    assert clock.interval(RunProgress(samples=60))["step_sec_p99"] < 0.5


def test_chosen_steps_are_profiled(shards: Path, tmp_path: Path):
    train(tiny_config(shards, tmp_path / "run", "--log.profile=[3, 4]"))
    [trace] = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "steps-000003-000004.json.gz"
    names = [event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 2 and any("conv" in name for name in names)
    train(tiny_config(shards, tmp_path / "cut", "--log.profile=[19, 30]"))
    assert (tmp_path / "cut" / "profile" / "steps-000019-000030.json.gz").is_file()
    with pytest.raises(ValueError, match=r"log\.profile is \(5,\), expected a first and a last step"):
        LogConfig(profile=(5,))


def test_accumulation_gives_the_losses_of_one_large_batch(shards: Path, tmp_path: Path):
    for micro in (8, 2):
        train(tiny_config(shards, tmp_path / str(micro), f"--run.micro_batch={micro}", "--optim.lr=1e-2"))
    whole, parts = metrics(tmp_path / "8"), metrics(tmp_path / "2")
    for one, other in zip(whole, parts, strict=True):
        # the standard deviation of a micro batch's latents is not a mean over samples
        assert {n: v for n, v in one.items() if n != "latent_std"} == pytest.approx(
            {n: v for n, v in other.items() if n != "latent_std"}, rel=1e-4
        )
    for name, value in final_weights(tmp_path / "8").items():
        torch.testing.assert_close(value, final_weights(tmp_path / "2")[name], rtol=1e-4, atol=1e-5)


def test_bf16_trains_fp32_weights(shards: Path, tmp_path: Path):
    train(tiny_config(shards, tmp_path / "run", "--run.mixed_precision=bf16", "--run.steps=40", "--optim.lr=1e-2"))
    assert metrics(tmp_path / "run")[-1]["loss"] < 0.8 * metrics(tmp_path / "run")[0]["loss"]
    assert all(value.dtype == torch.float32 for value in final_weights(tmp_path / "run").values())


def test_ema_is_saved_moves_and_trails(shards: Path, tmp_path: Path):
    config = tiny_config(shards, tmp_path / "run", "--optim.lr=1e-3", "--ema.decay=0.99")
    start = {n: v.clone() for n, v in TinyTask(config, torch.device("cpu")).trainable.state_dict().items()}
    train(config)
    weights, averages = final_weights(tmp_path / "run"), final_weights(tmp_path / "run", "ema")
    assert weights.keys() == averages.keys()
    for name, value in start.items():
        assert 0 < (averages[name] - value).norm() < (weights[name] - value).norm()


def test_time_limit_saves_says_so_and_can_be_raised(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    options = ("--run.steps=100", "--time_per_step_sec=0.02", "--log.log_every=40")
    with caplog.at_level(logging.INFO):
        first = train(tiny_config(shards, tmp_path / "run", "--run.time_limit_min=0.004", *options))
        assert 1 <= first.step < 40 and first.seconds >= 0.24  # long before the first line of metrics was due
        assert f"ended at step {first.step} of 100" in caplog.text
        assert train(tiny_config(shards, tmp_path / "run", "--run.time_limit_min=0.004", *options)) == first
        assert "is finished" in caplog.text
    second = train(tiny_config(shards, tmp_path / "run", "--run.time_limit_min=0.008", *options))
    assert second.step > first.step and second.seconds >= 0.48
    assert [line["step"] for line in metrics(tmp_path / "run")] == [first.step, second.step]


def test_finished_run_says_so_and_more_steps_go_on(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = tiny_config(shards, tmp_path / "run")
    first = train(config)
    with caplog.at_level(logging.INFO):
        assert train(config) == first
    assert "is finished at step 20" in caplog.text
    assert train(replace(config, run=replace(config.run, steps=30))).step == 30
    assert [line["step"] for line in metrics(tmp_path / "run")] == [5, 10, 15, 20, 25, 30]
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [start["from_step"] for start in starts] == [0, 20]


def test_a_changed_config_is_refused_with_the_difference(shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny_config(shards, run))
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.0001 -> 0\.001") as error:
        train(tiny_config(shards, run, "--optim.lr=1e-3", "--log.log_every=7", "--dropout=0.1"))
    assert "dropout: 0.0 -> 0.1" in str(error.value) and "log.log_every:" not in str(error.value)
    allowed = ("--run.micro_batch=4", "--run.steps=22", "--data.workers=1", "--log.checkpoint_every=11")
    assert train(tiny_config(shards, run, *allowed)).step == 22


def test_what_changes_memory_alonemay_change_in_any_group():
    names = ("log.trackers", "run.processes", "ema.device", "encoder.compile", "backbone.gradient_checkpointing")
    assert all(may_change(name) for name in names)
    assert not any(may_change(name) for name in ("optim.lr", "ema.decay", "encoder.initial_logvar", "run.seed"))


def test_a_step_without_finite_gradient_is_left_out_counted_and_named(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    summary = train(tiny_config(shards, tmp_path / "run", "--broken_key=sample0003", "--log.log_every=1"))
    named = [record.message for record in caplog.records if "the gradient is not finite" in record.message]
    assert summary.step == 20 and len(named) in (3, 4) and all("sample0003" in message for message in named)
    lines = metrics(tmp_path / "run")
    assert lines[-1]["bad_steps"] == len(named) == sum(line["loss"] is None for line in lines)
    assert all(value.isfinite().all() for value in final_weights(tmp_path / "run", "ema").values())


def test_too_many_bad_steps_in_a_row_stop_the_run(shards: Path, tmp_path: Path):
    with pytest.raises(NonFiniteGradient, match=r"(?s)step \d+.*sample0003.*optim\.max_bad_steps"):
        train(tiny_config(shards, tmp_path / "run", "--broken_key=sample0003", "--optim.max_bad_steps=1"))


@pytest.mark.parametrize("fused", [True, False])
def test_a_left_out_step_changes_nothing(fused: bool):
    module = nn.Linear(3, 2)
    optimizer = build_optimizer(module, OptimConfig(fused=fused))
    reference = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in module.parameters()], lr=1e-4)
    for good in (True, False, True):
        for parameter, twin in zip(module.parameters(), reference.param_groups[0]["params"], strict=True):
            parameter.grad = torch.full_like(parameter, 0.5 if good else float("nan"))
            twin.grad = torch.full_like(twin, 0.5)
        step_if(torch.tensor(good), optimizer)
        if good:
            reference.step()
    for parameter, twin in zip(module.parameters(), reference.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(parameter, twin)


def test_trainable_weights_must_be_there_and_fp32():
    with pytest.raises(ValueError, match="nothing would be trained"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        build_optimizer(nn.Linear(2, 2).bfloat16(), OptimConfig())


def test_learning_rate_is_a_function_of_the_step():
    cosine = OptimConfig(lr=1.0, warmup_steps=4, decay="cosine", final_lr_share=0.1)
    assert [lr_at(step, cosine, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(4, cosine, 104) == 1.0
    assert lr_at(54, cosine, 104) == pytest.approx(0.55)
    assert lr_at(104, cosine, 104) == pytest.approx(0.1) == pytest.approx(lr_at(500, cosine, 104))
    assert lr_at(50, OptimConfig(lr=1.0, decay="linear"), 100) == pytest.approx(0.5)
    assert lr_at(10**6, OptimConfig(lr=1.0), 100) == 1.0


def test_batches_that_do_not_divide_name_what_would():
    assert accumulation_steps(80, 10, 8) == 1 and accumulation_steps(80, 10, 1) == 8
    with pytest.raises(ValueError, match=r"micro_batch 12 .*nearest micro batches that do: 10 and 16"):
        accumulation_steps(80, 12, 1)
    with pytest.raises(ValueError, match=r"micro_batch 128 .*do: 40"):
        accumulation_steps(80, 128, 2)
    with pytest.raises(ValueError, match=r"global_batch 80 does not divide by 3 processes.*78 and 81"):
        accumulation_steps(80, 10, 3)


def test_another_precision_of_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(
        ValueError, match=r"launcher asks for mixed_precision bf16, the run for run\.mixed_precision no"
    ):
        Launch(RunConfig("unused"))


def test_meters_average_by_sample_and_by_group():
    launch, meters = (
        Launch(RunConfig("unused", global_batch=8, micro_batch=4)),
        Meters(("a", "b", "c"), torch.device("cpu")),
    )
    values, groups = torch.arange(8.0), torch.tensor([0, 1, 1, 0, 1, 1, 1, 1])
    for part in (slice(0, 4), slice(4, 8)):
        loss = values[part].mean()
        meters.add(loss, StepLoss({"mse": loss}, {"x": values[part], "y": loss * 2}, groups[part]))
    meters.commit(torch.tensor(True), {"grad_norm": torch.tensor(3.0)})
    meters.add(loss, StepLoss({"mse": loss * float("nan")}, {"x": values[:4], "y": loss}, groups[:4]))
    meters.commit(torch.tensor(False), {"grad_norm": torch.tensor(float("nan"))})
    twin = Meters(("a", "b", "c"), torch.device("cpu"))
    twin.load(json.loads(json.dumps(meters.state(launch))), launch)
    expected = {"loss": 3.5, "mse": 3.5, "y": 7.0, "x": 3.5, "x/a": 1.5, "x/b": 25 / 6, "grad_norm": 3.0}
    assert meters.read(launch) == twin.read(launch) == pytest.approx(expected)
    assert meters.read(launch) == {}


def test_meters_refuse_other_names_and_shapes():
    meters, one = Meters((), torch.device("cpu")), torch.tensor(1.0)
    meters.add(one, StepLoss({"mse": one}))
    with pytest.raises(ValueError, match="same names in every step"):
        meters.add(one, StepLoss({"kl": one}))
    with pytest.raises(ValueError, match=r"'x' has shape \(2, 3\)"):
        meters.add(one, StepLoss({"mse": one}, {"x": torch.zeros(2, 3)}))


def test_meters_of_a_checkpoint_whose_task_reported_less_begin_anew(caplog: pytest.LogCaptureFixture):
    launch, one, two = Launch(RunConfig("unused", global_batch=8, micro_batch=4)), torch.tensor(1.0), torch.tensor(2.0)
    meters, twin = Meters((), torch.device("cpu")), Meters((), torch.device("cpu"))
    meters.add(one, StepLoss({"mse": one}))
    meters.commit(torch.tensor(True), {"grad_norm": one})
    twin.load(meters.state(launch), launch)
    for _ in range(2):
        twin.add(two, StepLoss({"mse": two}, {"moments": two}))
        twin.commit(torch.tensor(True), {"grad_norm": two})
    assert twin.read(launch) == {"loss": 2, "mse": 2, "moments": 2, "grad_norm": 2}
    assert caplog.text.count("its averages begin with this step") == 1


class NameTaker(TinyTask):
    """Logs under a name of the engine's."""

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        return {"step": 1.0}


def test_a_task_may_not_log_under_the_engines_names(shards: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"the task logs \['step'\]"):
        train(tiny_config(shards, tmp_path / "run"), NameTaker)


def test_preview_grid_has_a_labelled_column_for_each_name():
    columns = {"image": torch.ones(3, 3, 64, 64), "latent": torch.full((3, 3, 16, 16), -1.0)}
    grid = preview_grid(columns)
    assert grid.size == (2 * 130 + 2, 20 + 3 * 130 + 2)
    assert grid.getpixel((60, 100)) == (255, 255, 255) and grid.getpixel((200, 100)) == (0, 0, 0)
    header = grid.crop((0, 0, grid.width, 20)).convert("L")
    assert header.getextrema()[0] < 100
    with pytest.raises(ValueError, match="differ in their number"):
        preview_grid({"image": torch.ones(3, 3, 64, 64), "other": torch.ones(2, 3, 64, 64)})


def test_previews_show_the_same_samples_each_time(shards: Path, tmp_path: Path):
    train(tiny_config(shards, tmp_path / "run", "--log.preview_every=10", "--optim.lr=1e-2"))
    first, *_, last = [Image.open(path) for path in sorted((tmp_path / "run" / "samples").iterdir())]
    column = (0, 0, 130, first.height)
    assert first.crop(column).tobytes() == last.crop(column).tobytes()
    assert first.tobytes() != last.tobytes()


class Watched(TinyTask):
    """Makes any wait for the device an error, from the second step to the beginning of the last."""

    calls = 0

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        self.calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= self.calls < self.config.run.steps else "default")
        return super().loss(model, batch, rng)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: the CPU has no transfers to wait for")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_nothing_in_a_step_waits_for_the_device(shards: Path, tmp_path: Path, precision: str):
    options = ("--run.steps=8", "--log.log_every=8", f"--run.mixed_precision={precision}")
    assert train(tiny_config(shards, tmp_path / "run", *options), Watched).step == 8


def test_config_files_and_overrides_are_typed_and_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.yaml"
    path.write_text("run: {folder: runs/x, steps: 7}\ndata: {shards: s}\noptim: {lr: 1e-4}\n")
    config = parse(TinyConfig, [f"--config={path}", "--optim.betas=[0.9, 0.95]", "--run.time_limit_min=5"])
    # PyYAML alone reads 1e-4 as a string
    assert config.optim.lr == 0.0001 and isinstance(config.optim.lr, float)
    assert config.run == RunConfig("runs/x", steps=7, time_limit_min=5.0) and config.optim.betas == (0.9, 0.95)
    path.write_text(to_yaml(config))
    assert parse(TinyConfig, [f"--config={path}"]) == config
    for wrong in ("--optim.learning_rate=1", "--optim.lr=fast", "--run.steps=1.5", "--run.mixed_precision=fp8"):
        with pytest.raises(SystemExit):
            parse(TinyConfig, [f"--config={path}", wrong])
    path.write_text("run: {folder: runs/x, step: 7}\ndata: {shards: s}\n")
    with pytest.raises(SystemExit):
        parse(TinyConfig, [f"--config={path}"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(TinyConfig, ["--help"])
    assert "Learning rate after the warm-up" in capsys.readouterr().out
