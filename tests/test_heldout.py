"""What a run says of held-out samples while it trains, and the best checkpoint by it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from eval.metrics.pixels import psnr
from models.backbone import Backbone
from models.components import load_components
from models.turboedit_pipeline import TurboEditPipeline
from tests.processes import finish, kill_when, start, start_ranks
from tests.tiny_training import SIZES, tiny_config, train, write_latents
from tests.turboedit_runs import command, write_shards
from train.exports.weights import trained_weights
from train.heldout.figures import HeldOut
from train.heldout.probe import probe_of, read_pairs
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask
from train.rng import SampleRandom
from train.run.config import LogConfig
from train.run.launch import Launch

EVERY = (
    *("--log.validate_every=5", "--log.checkpoint_every=20", "--log.keep_checkpoints=1", "--log.preview_every=20"),
    "--time_per_step_sec=0.01",
)
READER = "--data.attributes=models/miniature/attributes"
FALLING = ("--log.best=valid/error", "--log.best_is=highest")  # an error that falls is at its highest early on


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An option, with shards of a number of samples that divides by nothing."""
    folder = write_latents(tmp_path_factory.mktemp("data") / "heldout", num_samples=11, samples_per_shard=4)
    return f"--data.validation={folder}"


@pytest.fixture(scope="module")
def undisturbed(shards: Path, heldout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(shards, folder, heldout, *EVERY, *FALLING, "--optim.lr=1e-2", "--log.trackers=[tensorboard]"))
    return folder


def rows(folder: Path, valid: bool = True) -> list[dict[str, Any]]:
    """Lines of metrics of held-out samples, or of the training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if any(name.startswith("valid/") for name in line) == valid]


def without_batches(row: dict[str, Any]) -> dict[str, Any]:
    """Figures without latent_std, which is a micro batch's own."""
    return {name: value for name, value in row.items() if name != "valid/latent_std"}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_looking_changes_no_training(shards: Path, undisturbed: Path, tmp_path: Path):
    train(tiny_config(shards, tmp_path / "run", "--optim.lr=1e-2", "--log.preview_every=0"))
    assert rows(tmp_path / "run", valid=False) == rows(undisturbed, valid=False)
    for name in ("model.safetensors", "ema.safetensors", "optimizer.pt"):
        one, other = (folder / "checkpoints/step-000020" / name for folder in (tmp_path / "run", undisturbed))
        assert one.read_bytes() == other.read_bytes()


def test_the_figures_are_those_of_the_averaged_weights(undisturbed: Path):
    assert [row["step"] for row in rows(undisturbed)] == [0, 5, 10, 15, 20]
    first, *_, last = rows(undisturbed)
    assert last["valid/loss"] == pytest.approx(last["valid/mse"] + last["valid/size"], rel=1e-5)
    assert last["valid/error_ratio"] == pytest.approx(last["valid/error/low"] / last["valid/error/high"])
    assert last["valid/loss"] < first["valid/loss"]
    assert "held-out samples: loss " in (undisturbed / "log.txt").read_text()
    events = EventAccumulator(str(undisturbed / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = [(event.step, event.value) for event in events.Scalars("valid/loss")]
    assert found == [(row["step"], pytest.approx(row["valid/loss"])) for row in rows(undisturbed)]


def test_previews_show_held_out_samples_with_their_captions(undisturbed: Path):
    with Image.open(undisturbed / "samples/step-000020.png") as picture:
        assert picture.size == (2 * 130 + 2, 20 + 8 * (130 + 15) + 2)
        below = picture.convert("L").crop((0, 20 + 130, 130, 20 + 145))
    assert below.getextrema()[0] < 100


def test_micro_batches_and_processes_change_no_figure(shards: Path, heldout: str, undisturbed: Path, tmp_path: Path):
    options = (*SIZES, heldout, *EVERY, "--optim.lr=1e-2", "--run.micro_batch=2", f"--data.shards={shards}")
    finish(start_ranks(2, "-m", "tests.tiny_training", *options, f"--run.folder={tmp_path / 'two'}"))
    for found, expected in zip(rows(tmp_path / "two"), rows(undisturbed), strict=True):
        assert without_batches(found) == pytest.approx(without_batches(expected), rel=1e-4)
    assert without_batches(rows(tmp_path / "two")[0]) == pytest.approx(without_batches(rows(undisturbed)[0]), rel=1e-6)


def test_the_best_checkpoint_stays_and_is_exported(undisturbed: Path, shards: Path, heldout: str):
    config = tiny_config(shards, undisturbed, heldout, *EVERY, *FALLING)
    best = max(rows(undisturbed)[1:], key=lambda row: row["valid/error"])
    assert checkpoints(undisturbed) == [f"step-{best['step']:06d}", "step-000020"] and best["step"] < 20
    found = trained_weights(undisturbed, config, checkpoint="best")
    assert found.step == best["step"] and found.weights.path.parent.name == f"step-{best['step']:06d}"
    judged = json.loads((undisturbed / "checkpoints" / f"step-{best['step']:06d}" / "heldout.json").read_text())
    assert judged["figures"]["valid/error"] == best["valid/error"]
    with pytest.raises(ValueError, match="the run names no figure to choose by"):
        trained_weights(undisturbed, tiny_config(shards, undisturbed), checkpoint="best")
    other = tiny_config(shards, undisturbed, heldout, *FALLING, "--log.validation_samples=3")
    with pytest.raises(ValueError, match="has the figure valid/error of the run's held-out samples yet"):
        trained_weights(undisturbed, other, checkpoint="best")


def test_a_resumed_run_looks_once_at_each_step(shards: Path, heldout: str, undisturbed: Path, tmp_path: Path):
    for steps in (10, 20):
        options = (heldout, *EVERY, *FALLING, "--optim.lr=1e-2", f"--run.steps={steps}")
        train(tiny_config(shards, tmp_path / "run", *options))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    assert checkpoints(tmp_path / "run") == checkpoints(undisturbed)


def test_a_killed_run_looks_once_at_each_step_and_keeps_the_same_best(
    shards: Path, heldout: str, undisturbed: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    options = (
        *SIZES,
        heldout,
        *EVERY,
        *FALLING,
        "--optim.lr=1e-2",
        f"--data.shards={shards}",
        f"--run.folder={folder}",
    )
    path = folder / "metrics.jsonl"
    training = start("-m", "tests.tiny_training", *options)
    kill_when(lambda: path.is_file() and path.read_text().count('"valid/loss"') == 4, training)
    train(tiny_config(shards, folder, *options))
    assert path.read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    assert checkpoints(folder) == checkpoints(undisturbed)


def test_a_name_that_is_no_figure_is_refused_before_the_first_step(shards: Path, heldout: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"valid/psnr_4, which is no figure of this run; those are: valid/loss, valid"):
        train(tiny_config(shards, tmp_path / "run", heldout, *EVERY, "--log.best=valid/psnr_4"))
    assert not (tmp_path / "run/checkpoints").exists()
    with pytest.raises(ValueError, match=r"expected a figure of held-out samples such as valid/psnr_4"):
        LogConfig(best="loss")
    with pytest.raises(ValueError, match=r"valid/kl/t999, which is no measure: say log\.best_is"):
        LogConfig(best="valid/kl/t999")
    assert LogConfig(best="valid/psnr_4").best_is_highest and not LogConfig(best="valid/latent_mse/t1").best_is_highest


def test_what_needs_held_out_samples_is_refused_without_them(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit):
        tiny_config(shards, tmp_path / "run", "--log.best=valid/psnr_4")
    assert "give their shards by data.validation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        turboedit(shards, "none", "--data.probe=pairs.jsonl", "--generator.cached_prompts=true")
    assert "with generator.cached_prompts the text encoders are not loaded" in capsys.readouterr().err
    path = tmp_path / "pairs.jsonl"
    path.write_text("")
    config = tiny_config(shards, tmp_path / "run", f"--data.validation={shards}", f"--data.probe={path}")
    with pytest.raises(ValueError, match="and this method tries no edits: leave it out"):
        train(config)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    return write_shards(tmp_path_factory.mktemp("scenes"), tiny_backbone)


def turboedit(shards: Path, backbone: str, *options: str) -> TurboEditConfig:
    words = command(Path("none"), shards, backbone, f"--data.validation={shards}", "--log.validation_samples=6")[1:]
    return parse(TurboEditConfig, [*words, *options])


def looked_at(config: TurboEditConfig) -> tuple[TurboEditTask, HeldOut, dict[str, float]]:
    launch = Launch(config.run)
    task = TurboEditTask(config, launch.device)
    heldout = HeldOut(config, task, ShardDataset(config.data.shards, task.fields))
    task.trainable.eval()
    return task, heldout, heldout.figures(task.trainable, launch)


def test_turboedit_is_looked_at_as_its_users_run_it(scenes: Path, tiny_backbone: str):
    config = turboedit(scenes, tiny_backbone, "--run.micro_batch=8", READER)
    task, heldout, figures = looked_at(config)
    backbone = Backbone.load(tiny_backbone)
    parts = load_components(tiny_backbone, torch.float32)
    pipeline = TurboEditPipeline(
        **{name: parts.get(name) for name in TurboEditPipeline._optional_components},
        encoder=task.trainable.unet,
        attention_resolution=8,
        size_conditioning="original",
    )
    pipeline.set_progress_bar_config(disable=True)
    batch = heldout.samples.pictured(6)
    inversion = pipeline.invert(batch["image"], batch["caption"])
    shown = backbone.decode(batch["latent"]).clamp(-1, 1)
    for number, reconstruction in enumerate(inversion.reconstructions, 1):
        expected = psnr(backbone.decode(reconstruction).clamp(-1, 1), shown).mean().item()
        assert figures[f"valid/psnr_{number}"] == pytest.approx(expected, abs=0.05)
    targets = [probe.target for probe in batch["probe"]]
    edits = 2 * pipeline.edit(inversion, targets, output_type="pt", outside="reconstruction").images - 1
    preview = task.preview(task.trainable, batch, SampleRandom(0, batch["key"]))
    torch.testing.assert_close(preview["edit"], edits, rtol=0, atol=0.05)
    assert all(probe.edit and probe.caption == caption for probe, caption in zip(batch["probe"], batch["caption"]))
    for name in ("changed", "kept", "mask_share"):
        assert 0 <= figures[f"valid/{name}"] <= 1
    assert figures["valid/moved"] > 0 and figures["valid/psnr_outside"] > 0
    deviation = inversion.noises[0].std(correction=0).item()
    assert figures["valid/mean_noise_std/t999"] == pytest.approx(deviation, rel=1e-2)
    assert figures["valid/noise_std/t999"] > figures["valid/mean_noise_std/t999"]

    *_, in_parts = looked_at(turboedit(scenes, tiny_backbone, "--run.micro_batch=4", READER))
    assert in_parts == pytest.approx(figures, rel=1e-4)


@pytest.mark.parametrize(
    "row",
    [
        {"key": ["a"], "target": "b"},
        {"key": "a", "target": 5},
        {"key": "a", "target": "b", "caption": None},
        {"key": "a"},
    ],
)
def test_a_probe_of_something_else_than_words_is_refused(row: dict, tmp_path: Path):
    (tmp_path / "probe.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"probe\.jsonl, line 1 is .*; expected"):
        read_pairs(tmp_path / "probe.jsonl")


def test_edits_of_a_file_come_first_and_have_its_words(scenes: Path, tiny_backbone: str, tmp_path: Path):
    dataset = ShardDataset(scenes, ("info",))
    rows = [{"key": dataset.key(17), "target": "a cat"}, {"key": dataset.key(5), "caption": "a dog", "target": "a fox"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = turboedit(scenes, tiny_backbone, f"--data.probe={path}")
    _, heldout, figures = looked_at(config)
    assert heldout.samples.numbers[:2] == [17, 5] and len(set(heldout.samples.numbers)) == 6
    first, second, third = heldout.samples.pictured(3)["probe"]
    assert (first.caption, first.target, first.edit) == (dataset[17]["info"]["caption"], "a cat", None)
    assert (second.caption, second.target) == ("a dog", "a fox") and third.edit is not None
    assert "valid/changed" not in figures and figures["valid/moved"] > 0
    path.write_text('{"key": "nobody", "target": "a cat"}\n')
    with pytest.raises(ValueError, match=r"data\.probe has the key nobody, which no sample of"):
        looked_at(config)
    path.write_text('{"key": "nobody"}\n')
    with pytest.raises(ValueError, match=r"line 1 is .*; expected key, target"):
        read_pairs(path)


def test_a_scene_that_was_scaled_has_no_true_edit_and_a_column_gives_a_target(scenes: Path):
    info = ShardDataset(scenes, ("info",))[0]["info"]
    assert probe_of(info, (64, 64), {}, seed=0) == probe_of(info, (64, 64), {}, seed=0)
    assert probe_of(info, (128, 128), {}, seed=0) is None
    named = {**info, "extra": {"target": "a red cat"}}
    assert probe_of(named, (128, 128), {}, seed=0).target == "a red cat"
