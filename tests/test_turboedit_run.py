"""TurboEdit's training as its users run it: killed and resumed, and on two processes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from data.jobs.command import parse
from data.jobs.inheritance import flattened
from data.shards.dataset import ShardDataset
from tests.processes import finish, kill_when, run, start, start_ranks
from tests.turboedit_runs import STEPS, command, losses, write_shards
from train.engine import fit
from train.methods.turboedit.config import TurboEditConfig, TurboEditObjective
from train.methods.turboedit.plan import PLAN
from train.methods.turboedit.task import TurboEditTask
from train.planning.flop import model_flop
from train.rng import StepRandom
from train.run.launch import Launch, accumulation_steps
from train.task import Batch, StepLoss

CONFIGS = sorted(Path("configs/turboedit").glob("*.yaml"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    return write_shards(tmp_path_factory.mktemp("turboedit"), tiny_backbone)


def weights(folder: Path) -> list[bytes]:
    return [
        (folder / "checkpoints" / f"step-{STEPS:06d}" / f"{name}.safetensors").read_bytes() for name in ("model", "ema")
    ]


def words(folder: Path, shards: Path, backbone: str) -> list[str]:
    """A training of two accumulated micro batches a step."""
    return ["-m", *command(folder, shards, backbone, "--run.global_batch=4")]


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    previews = ("--log.preview_every=4", "--log.preview_samples=3", "--log.peak_tflops=2")
    run(*words(folder, shards, tiny_backbone), *previews, fresh=True)
    return folder


def test_a_killed_training_ends_with_the_same_weights_and_log(
    undisturbed: Path, shards: Path, tiny_backbone: str, tmp_path: Path
):
    folder = tmp_path / "run"
    options = words(folder, shards, tiny_backbone)
    kill_when(lambda: list((folder / "checkpoints").glob("step-*")) != [], start(*options))
    assert not (folder / "checkpoints" / f"step-{STEPS:06d}").exists(), "finished before it could be killed"
    run(*options)
    assert weights(folder) == weights(undisturbed)
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_two_processes_give_the_losses_of_one(undisturbed: Path, shards: Path, tiny_backbone: str, tmp_path: Path):
    folder = tmp_path / "run"
    said = finish(start_ranks(2, *words(folder, shards, tiny_backbone)))
    assert "2 process(es)" in said[0]
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_the_rate_of_operations_is_the_planned_one(undisturbed: Path):
    config = parse(TurboEditConfig, ["--config", str(undisturbed / "config.yaml")])
    flop = model_flop(PLAN, config).total
    for line in map(json.loads, (undisturbed / "timing.jsonl").read_text().splitlines()):
        assert line["tflops_per_sec"] == pytest.approx(flop / 1e12 * line["samples_per_sec"], abs=1e-4)
        assert line["mfu"] == pytest.approx(line["tflops_per_sec"] / 2, abs=1e-4) and line["mfu"] > 0


class Watched(TurboEditTask):
    """On CUDA any wait for the device from the second loss to the last one is an error."""

    calls = 0

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        self.calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= self.calls < STEPS else "default")
        return super().loss(model, batch, rng)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: the CPU has no transfers to wait for")
@pytest.mark.parametrize("adversary", [(), ("--objective.adversary.weight=0.1", "--objective.adversary.start=4")])
def test_nothing_in_a_step_waits_for_the_device(
    shards: Path, tiny_backbone: str, tmp_path: Path, adversary: tuple[str, ...]
):
    options = command(tmp_path / "run", shards, tiny_backbone, "--run.micro_batch=8", "--log.log_every=8")[1:]
    options += adversary
    config = parse(TurboEditConfig, [*options, "--log.checkpoint_every=8", "--objective.own_share=0"])
    launch = Launch(config.run)
    task = Watched(config, launch.device)
    assert fit(task, ShardDataset(config.data.shards, task.fields), config, launch).step == STEPS


def test_previews_show_image_round_trip_and_steps(undisturbed: Path):
    pictures = sorted((undisturbed / "samples").glob("*.png"))
    assert [picture.stem for picture in pictures] == ["step-000000", "step-000004", "step-000008"]
    width, height = Image.open(pictures[-1]).size
    assert width > 6 * 128 and height > 3 * 128  # image, round trip and four steps; three samples


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse_and_divide(path: Path):
    config = parse(TurboEditConfig, ["--config", str(path)])
    assert config.optim.lr == float(yaml.safe_load(flattened(path))["optim"]["lr"])
    launches = {
        "sdxl_turbo": (8, 1),
        "sdxl_12gb": (1, 10),
        "sdxl_16gb": (1, 5),
        "sdxl_24gb": (1, 5),
        "sdxl_48gb": (1, 8),
        "sdxl_turbo_plus": (8, 1),
        "sd_turbo": (8, 1),
        **dict.fromkeys(("sdxl_lightning_4step", "hyper_sd_4step", "dmd2_4step", "lcm_lora_sdxl"), (8, 2)),
        "flux_schnell": (8, 2),
        "flux2_klein": (8, 2),
        "sd35_turbo": (8, 2),
        "sana_sprint": (1, 10),
        "z_image_turbo": (1, 20),
    }
    processes, accumulated = launches.get(path.stem, (1, 1))
    assert accumulation_steps(config.run.global_batch, config.run.micro_batch, processes) == accumulated


def test_head_of_the_miniatures_config_names_the_papers_objective():
    head = Path("configs/turboedit/miniature.yaml").read_text().split("run:")[0]
    typed = head.split("-m train.turboedit")[2].replace("\\\n#", " ").split("\n")[0].split()
    paper, ours = (
        parse(TurboEditConfig, typed),
        parse(TurboEditConfig, ["--config", "configs/turboedit/miniature.yaml"]),
    )
    assert paper.run.folder != ours.run.folder
    assert paper.objective == TurboEditObjective(own_share=0.0, kl_weight=paper.objective.kl_weight)
    assert paper.objective.kl_weight * 4 * 16 * 16 == pytest.approx(1e-6 * 4 * 64 * 64, rel=0.03)


def test_another_vae_is_refused_before_training(shards: Path, tmp_path: Path):
    options = command(tmp_path / "run", shards, "models/miniature/student")
    assert "made by another VAE" in run("-m", *options, status=1).stderr
