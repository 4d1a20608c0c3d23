"""A second trained part in the engine: exact on resume, on several processes, and never a step ahead of the first."""

import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.shards.dataset import ShardDataset
from tests.processes import finish, start_ranks
from tests.tiny_training import TinyTask, tiny_config, train, write_latents
from train.critic.heads import hinge_loss, mean_logit, seeded_heads
from train.engine import fit_steps
from train.run.checkpoint import CRITIC, CRITIC_OPTIMIZER, EMA, MODEL, OPTIMIZER
from train.run.launch import Launch

CRITICISED = ("--critic_weight=0.1", "--optim.lr=1e-2", "--log.log_every=1", "--log.preview_every=0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def files(run: Path, step: int, *names: str) -> list[bytes]:
    return [(run / "checkpoints" / f"step-{step:06d}" / name).read_bytes() for name in names]


def test_hinge_loss_is_that_of_a_loop_over_places():
    torch.manual_seed(0)
    real, fake = ([2 * torch.randn(3, 1, 4, 6), 2 * torch.randn(3, 1, 2, 3)] for _ in range(2))
    for sample, loss in enumerate(hinge_loss(real, fake)):
        expected = 0.0
        for true, false in zip(real, fake, strict=True):
            places = zip(true[sample].flatten().tolist(), false[sample].flatten().tolist(), strict=True)
            expected += sum(max(0.0, 1 - r) + max(0.0, 1 + f) for r, f in places) / true[sample].numel() / len(real)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert mean_logit(real)[1].item() == pytest.approx(sum(m[1].mean().item() for m in real) / 2, rel=1e-5)


def test_first_weights_follow_from_the_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (seeded_heads((4, 8), 2, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_constant_heads_pass_the_gradient_on_and_take_none():
    heads = seeded_heads((4,), 2, seed=0)
    feature = torch.randn(2, 4, 5, 5, requires_grad=True)
    mean_logit(heads.as_constant([feature])).sum().backward()
    passed = feature.grad
    assert all(weight.grad is None for weight in heads.parameters())
    [expected] = torch.autograd.grad(mean_logit(heads([feature])).sum(), feature)
    assert passed is not None and torch.equal(passed, expected)


def test_a_stopped_run_goes_on_exactly(shards: Path, tmp_path: Path):
    """Under fp16, whose scale is a state too, with dropout, accumulation and steps that are left out."""
    options = ["--run.steps=18", "--run.micro_batch=4", "--log.checkpoint_every=7", "--dropout=0.1", *CRITICISED]
    options += ["--broken_key=sample0003", "--critic_broken_key=sample0007", "--run.mixed_precision=fp16"]
    for name, counts in {
        "whole": [30],
        "resumed": [12, 30],
    }.items():  # as by a crash at step 11, four after a checkpoint
        for count in counts:
            config = tiny_config(shards, tmp_path / name, *options)
            launch = Launch(config.run)
            task = TinyTask(config, launch.device)
            with closing(fit_steps(task, ShardDataset(shards, task.fields), config, launch)) as progress:
                for _ in islice(progress, count):
                    pass
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert (whole / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
    for name in (MODEL, EMA, OPTIMIZER, CRITIC, CRITIC_OPTIMIZER):
        assert files(whole, 18, name) == files(resumed, 18, name), name
    assert {"fooled", "critic_loss", "critic_grad_norm"} <= metrics(whole)[0].keys()


def test_two_processes_train_both_parts_as_one(shards: Path, tmp_path: Path):
    options = ("--run.steps=8", "--run.micro_batch=2", *CRITICISED)
    words = ("--run.global_batch=8", "--data.workers=0", f"--data.shards={shards}", f"--run.folder={tmp_path / 'two'}")
    finish(start_ranks(2, "-m", "tests.tiny_training", *options, *words))
    train(tiny_config(shards, tmp_path / "one", *options))
    for mine, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert {**mine, "latent_std": 0} == pytest.approx({**theirs, "latent_std": 0}, rel=1e-4)
    two, one = (load_file(tmp_path / name / "checkpoints/step-000008" / CRITIC) for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    start = seeded_heads((4,), 2, seed=0).state_dict()
    assert all((one[name] - value).abs().max() > 1e-3 for name, value in start.items())


@pytest.mark.parametrize("broken", ["broken_key", "critic_broken_key"])
def test_a_gradient_of_either_part_that_is_not_finite_leaves_the_step_out_for_both(
    shards: Path, tmp_path: Path, broken: str
):
    options = ("--run.steps=8", "--run.micro_batch=4", "--log.checkpoint_every=1", "--log.keep_checkpoints=9")
    train(tiny_config(shards, tmp_path / "run", f"--{broken}=sample0003", *options, *CRITICISED))
    lines = metrics(tmp_path / "run")
    bad = [line["step"] for line in lines if line["loss"] is None]
    assert bad and lines[-1]["bad_steps"] == len(bad) < 8
    for step in range(2, 9):
        for name in (MODEL, CRITIC):
            before, after = files(tmp_path / "run", step - 1, name), files(tmp_path / "run", step, name)
            assert (before == after) == (step in bad), f"step {step}, {name}"


def test_a_run_without_a_critic_has_the_files_of_before_and_goes_on_with_them(shards: Path, tmp_path: Path):
    for weight in (0.0, 0.1):
        train(tiny_config(shards, tmp_path / str(weight), "--run.steps=1", f"--critic_weight={weight}"))
    plain, with_critic = (
        {path.name for path in (tmp_path / name / "checkpoints/step-000001").iterdir()} for name in ("0.0", "0.1")
    )
    assert plain == {MODEL, EMA, OPTIMIZER, "progress.json", "checksums.json"}
    assert with_critic == plain | {CRITIC, CRITIC_OPTIMIZER}
    config = tmp_path / "0.0" / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "critic" not in line))
    with pytest.raises(ValueError, match=r"critic_weight: 0\.0 -> 0\.1"):
        train(tiny_config(shards, tmp_path / "0.0", "--run.steps=2", "--critic_weight=0.1"))
    assert train(tiny_config(shards, tmp_path / "0.0", "--run.steps=2")).step == 2
