"""A method is its folder and a line in METHODS: one that lies in the tests is trained, planned and exported.

Nothing outside of tests/toy_method knows it, so no file of the packages had to change for it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from tests.instruct_runs import metrics, write_pairs
from tests.toy_method import METHOD
from tests.toy_method.__main__ import main as train
from train.export import main as export
from train.methods import METHODS, method_of
from train.plan import main as plan

STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The one line that a new method needs."""
    METHODS.append(METHOD)
    yield
    METHODS.remove(METHOD)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_sd_backbone: str) -> list[str]:
    shards = write_pairs(tmp_path_factory.mktemp("toy") / "shards", tiny_sd_backbone)
    sizes = ("--run.global_batch=4", "--run.micro_batch=2", "--data.workers=0", "--log.log_every=1", "--ema.decay=0.9")
    return [*sizes, f"--data.shards={shards}", f"--denoiser.path={tiny_sd_backbone}", f"--run.steps={STEPS}"]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train([*words, f"--run.folder={folder}"])
    return folder


def test_it_trains(run: Path, words: list[str]):
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and all(row["mse"] > 0 for row in rows)
    weights = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "model.safetensors")
    assert set(weights) == {"conv_out.weight", "conv_out.bias"}
    assert yaml.safe_load((run / "config.yaml").read_text())["method"] == "toy"


def test_it_is_planned(run: Path, tiny_sd_backbone: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    plan([f"--config={run / 'config.yaml'}", "--gpus=1", "--measure=1", f"--json={tmp_path / 'plan.json'}"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("yes")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd_backbone, subfolder="unet")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["trained"] == sum(weight.numel() for weight in unet.conv_out.parameters())
    assert found["measured"]["counted"] == found["measured"]["real"]


def test_it_is_exported_with_its_code(run: Path, tmp_path: Path):
    export([str(run), str(tmp_path / "out"), "--dtype=float32"])
    names = sorted(path.stem.rpartition("_") for path in (tmp_path / "out").glob("*.py"))
    assert [name for name, *_ in names] == ["pipeline", "words"] and len({ending for *_, ending in names}) == 1
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert pipeline.greet() == "hello" and isinstance(pipeline, StableDiffusionPipeline)
    averages = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "ema.safetensors")
    assert torch.equal(pipeline.unet.conv_out.weight, averages["conv_out.weight"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- toy\n" in card and "# A toy on" in card and "| loss |" in card


def test_a_run_from_before_configs_named_their_method_goes_on(words: list[str], tmp_path: Path):
    options = [*words, f"--run.folder={tmp_path / 'run'}"]
    train([*options, "--run.steps=1"])
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("method: toy\n", ""))
    assert "method" not in yaml.safe_load(path.read_text())
    export([str(tmp_path / "run"), str(tmp_path / "out")])
    train(options)
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_another_methods_config_is_refused(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        train([*words, f"--run.folder={run}", "--method=turboedit"])
    assert ended.value.code == 2 and "method" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"x\.yaml is the config of no method .* method is 'none', expected one of"):
        method_of({"method": "none"}, "x.yaml")
    with pytest.raises(ValueError, match=r"it has none of \['generator', 'mapper', 'unet', 'denoiser'\]"):
        method_of({}, "x.yaml")


def test_every_folder_of_a_method_is_in_the_list():
    folders = {path.parent.name for path in Path("train/methods").glob("*/__init__.py")}
    assert folders == {method.name for method in METHODS} - {METHOD.name}
