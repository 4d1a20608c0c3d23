"""Trainings that start from the weights of others: a run or an export, with a fresh optimizer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from data.jobs.command import parse
from tests.exported_runs import NEWEST, STEPS
from tests.tiny_backbones import save_tiny_backbone
from train.export import export
from train.methods.initial_weights import initial_weights
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.run.weights import trained_state
from train.turboedit import main as train

STILL = ("--run.steps=1", "--optim.lr=1e-30", "--optim.weight_decay=0", "--log.preview_every=0")
"""One step that moves no weight of float32."""

FIRST = "step-000001"


@pytest.fixture(scope="module")
def source(turboedit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(turboedit_run, tmp_path_factory.mktemp("machine_of_somebody") / "source")


@pytest.fixture(scope="module")
def run(source: Path, turboedit_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with the weights of `source`."""
    folder = tmp_path_factory.mktemp("machine_of_somebody") / "run"
    train(["--run.folder", str(folder), *turboedit_words, *STILL, f"--encoder.init_from={source}"])
    return folder


@pytest.fixture(scope="module")
def half(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of it in float16."""
    out = tmp_path_factory.mktemp("machine_of_somebody") / "half"
    export(run, out, dtype="float16")
    return out


@pytest.fixture(scope="module")
def adapters(turboedit_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters."""
    folder = tmp_path_factory.mktemp("machine_of_somebody") / "adapters"
    train(["--run.folder", str(folder), *turboedit_words, "--encoder.lora.rank=2", STILL[0], STILL[-1]])
    return folder


def config_of(words: list[str], folder: Path, *more: str) -> TurboEditConfig:
    return parse(TurboEditConfig, ["--run.folder", str(folder), *words, *more])


def beginning(config: TurboEditConfig) -> dict[str, Tensor]:
    """The weights with which a training begins."""
    initial = initial_weights(METHOD, config)
    task, _ = METHOD.load(config, torch.device("cpu"))
    assert initial is not None
    initial.give(task.trainable)
    return trained_state(task.trainable)


def stored(run: Path, step: str = NEWEST, part: str = "ema") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / step / f"{part}.safetensors")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_begins_with_the_averages_of_another_and_a_fresh_optimizer(run: Path, source: Path):
    expected = stored(source)
    assert same(stored(run, FIRST, "model"), expected) and same(stored(run, FIRST, "ema"), expected)
    assert not same(stored(source, part="model"), expected)
    optimizer = torch.load(run / "checkpoints" / FIRST / "optimizer.pt", weights_only=True)
    assert {int(state["step"]) for state in optimizer["state"].values()} == {1}


def test_config_environment_and_card_name_it(run: Path, source: Path, half: Path):
    assert yaml.safe_load((run / "config.yaml").read_text())["encoder"]["init_from"] == str(source)
    checksums = json.loads((source / "checkpoints" / NEWEST / "checksums.json").read_text())
    digest = checksums["ema.safetensors"]
    [start] = json.loads((run / "environment.json").read_text())
    about = {"init_from": str(source), "kind": "run", "step": STEPS, "averaged": True, "sha256": digest}
    assert start["initial_weights"] == about
    card = (half / "README.md").read_text()
    assert f"from the averaged weights of step {STEPS} of the run source (sha256 {digest[:16]})" in card
    assert str(source.parent) not in card


def test_a_resume_does_not_ask_for_it_again(run: Path, source: Path, turboedit_words: list[str], tmp_path: Path):
    again, gone = shutil.copytree(run, tmp_path / "run"), tmp_path / "gone"
    path = again / "config.yaml"
    path.write_text(path.read_text().replace(str(source), str(gone)))
    words = (*STILL, "--run.steps=2", f"--encoder.init_from={gone}")
    train(["--run.folder", str(again), *turboedit_words, *words])
    assert same(stored(again, "step-000002"), stored(source))
    starts = json.loads((again / "environment.json").read_text())
    assert ["initial_weights" in start for start in starts] == [True, False]


def test_a_run_begins_with_the_weights_of_an_export(half: Path, turboedit_words: list[str], tmp_path: Path):
    found = beginning(config_of(turboedit_words, tmp_path / "run", f"--encoder.init_from={half}"))
    weights = load_file(half / "encoder" / "diffusion_pytorch_model.safetensors")
    assert weights["conv_in.weight"].dtype == torch.float16
    assert same(found, {f"unet.{name}": weight.float() for name, weight in weights.items()})


def test_adapters_begin_with_those_of_another(adapters: Path, turboedit_words: list[str], tmp_path: Path):
    words = (f"--encoder.init_from={adapters}", "--encoder.lora.rank=2")
    assert same(beginning(config_of(turboedit_words, tmp_path / "run", *words)), stored(adapters, FIRST))


@pytest.mark.parametrize(
    ("named", "options", "words"),
    [
        ("gone", (), "encoder.init_from gone: there is no such run folder, nor an export"),
        ("{empty}", (), "is neither a run of turboedit nor its export"),
        ("{new}", (), "new has no checkpoint yet"),
        ("{other_method}", (), "is a run of stylediffusion, expected one of turboedit"),
        ("{adapters}", (), "is a run of adapters, and this one trains all weights: merge them by train.export"),
        (
            "{adapters}",
            ("--encoder.lora.rank=3",),
            "has encoder.lora.rank 2, and this run 3: set encoder.lora.rank as there",
        ),
        ("{run}", ("--encoder.lora.rank=2",), "holds full weights, and this run trains adapters"),
        ("{half}", ("--encoder.lora.rank=2",), "holds full weights, and this run trains adapters"),
        ("{run}", ("--generator.path={backbone}",), "was trained on another backbone"),
        ("{half}", ("--generator.path={backbone}",), "was trained on another backbone"),
    ],
)
def test_what_does_not_fit_is_refused_before_models_load(
    run: Path,
    half: Path,
    adapters: Path,
    turboedit_words: list[str],
    tmp_path: Path,
    named: str,
    options: tuple[str, ...],
    words: str,
):
    places = {name: tmp_path / name for name in ("empty", "new", "other_method", "backbone")}
    for folder in places.values():
        folder.mkdir()
    shutil.copy(run / "config.yaml", places["new"])
    shutil.copytree(run / "checkpoints", places["other_method"] / "checkpoints")
    (places["other_method"] / "config.yaml").write_text("method: stylediffusion\ndata: {shards: x}\nrun: {folder: y}\n")
    if "{backbone}" in "".join(options):
        torch.manual_seed(5)
        save_tiny_backbone(places["backbone"])
    places |= {"adapters": adapters, "run": run, "half": half}
    given = [option.format(**places) for option in (f"--encoder.init_from={named}", *options)]
    with pytest.raises(ValueError, match=r"init_from|checkpoint") as error:
        initial_weights(METHOD, config_of(turboedit_words, tmp_path / "begun", *given))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_same_backbone_in_another_folder_is_the_same(
    run: Path, turboedit_words: list[str], tiny_backbone: str, tmp_path: Path
):
    copy = shutil.copytree(tiny_backbone, tmp_path / "copy")
    words = (f"--generator.path={copy}", f"--encoder.init_from={run}")
    assert initial_weights(METHOD, config_of(turboedit_words, tmp_path / "begun", *words)) is not None


def test_a_plan_reads_no_weights(turboedit_words: list[str], tmp_path: Path):
    config = config_of(turboedit_words, tmp_path / "run", "--encoder.init_from=gone")
    assert METHOD.plan().task(config).trained > 0


def test_a_changed_rate_on_a_used_folder_names_the_way(run: Path, source: Path, turboedit_words: list[str]):
    words = (*STILL, f"--encoder.init_from={source}", "--optim.lr=0.5")
    with pytest.raises(SystemExit) as stop:
        train(["--run.folder", str(run), *turboedit_words, *words])
    assert "optim.lr: 1e-30 -> 0.5" in str(stop.value)
    assert f"choose another run.folder (with encoder.init_from {run} it starts from these weights)" in str(stop.value)
