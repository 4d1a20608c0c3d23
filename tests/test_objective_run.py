"""A training with every term of the objective: resumed, on two processes, and from a folder of before the terms."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from tests.processes import finish, run, start_ranks
from tests.turboedit_runs import command, losses, write_shards
from train.engine import fit, fit_steps
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask
from train.run.launch import Launch

TERMS = (
    "--objective.own_share_ramp=0.5",
    "--objective.known_noise_weight=0.1",
    "--objective.known_noise_loss=nll",
    "--objective.moments_weight=0.1",
    "--objective.spectrum_weight=0.1",
    "--objective.timestep_weights=balanced",
    "--objective.perceptual_weight=0.1",
    "--objective.score_weight=0.1",
)
SIZE = ("--run.steps=4", "--run.global_batch=4", "--log.log_every=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    return write_shards(tmp_path_factory.mktemp("terms"), tiny_backbone)


def words(folder: Path, shards: Path, backbone: str, teacher: str) -> list[str]:
    return command(folder, shards, backbone, *TERMS, f"--objective.score_teacher={teacher}", *SIZE)


def trained(options: list[str], stop: int | None = None) -> Path:
    """The folder of a training in this process, left after a number of steps as a crash leaves it."""
    config = parse(TurboEditConfig, options[1:])
    launch = Launch(config.run)
    task = TurboEditTask(config, launch.device)
    dataset = ShardDataset(config.data.shards, task.fields)
    if stop is None:
        fit(task, dataset, config, launch)
    else:
        with closing(fit_steps(task, dataset, config, launch)) as steps:
            for _ in range(stop + 1):
                next(steps)
    return Path(config.run.folder)


@pytest.fixture(scope="module")
def undisturbed(
    shards: Path, tiny_backbone: str, tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return trained(words(tmp_path_factory.mktemp("whole") / "run", shards, tiny_backbone, tiny_sd_backbone))


def test_a_training_that_was_left_ends_with_the_same_weights_and_log(
    undisturbed: Path, shards: Path, tiny_backbone: str, tiny_sd_backbone: str, tmp_path: Path
):
    options = words(tmp_path / "run", shards, tiny_backbone, tiny_sd_backbone)
    trained(options, stop=3)  # its newest checkpoint is of step 2
    folder = trained(options)
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    weights = [load_file(x / "checkpoints/step-000004/model.safetensors") for x in (folder, undisturbed)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_two_processes_give_the_losses_of_one(
    undisturbed: Path, shards: Path, tiny_backbone: str, tiny_sd_backbone: str, tmp_path: Path
):
    finish(start_ranks(2, "-m", *words(tmp_path / "run", shards, tiny_backbone, tiny_sd_backbone)))
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=1e-5)


def test_a_folder_of_before_the_terms_goes_on(shards: Path, tiny_backbone: str, tmp_path: Path):
    plain = ["-m", *command(tmp_path / "run", shards, tiny_backbone, "--run.global_batch=2", "--run.steps=1")]
    run(*plain)
    path = tmp_path / "run/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["objective"] = {name: config["objective"][name] for name in ("kl_weight", "own_share", "space")}
    path.write_text(yaml.safe_dump(config))
    run(*plain, "--run.steps=2")
    assert (tmp_path / "run/checkpoints/step-000002").is_dir()
