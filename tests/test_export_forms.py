"""What of a run is exported: another checkpoint than the newest, the encoder alone."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from eval.harness.exports import load_scene_encoder
from tests.exported_runs import STEPS
from train.export import export, read_run
from train.export import main as export_command
from train.method import Storage


@pytest.fixture(scope="module")
def alone(turboedit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder alone."""
    out = tmp_path_factory.mktemp("exported") / "alone"
    export(turboedit_run, out, encoder_only=True)
    return out


def stored_encoder(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder" / "diffusion_pytorch_model.safetensors")


def test_an_earlier_checkpoint(turboedit_run: Path, tmp_path: Path):
    export(turboedit_run, tmp_path / "out", dtype="float32", checkpoint=2)
    averages = load_file(turboedit_run / "checkpoints" / "step-000002" / "ema.safetensors")
    assert all(torch.equal(value, averages[f"unet.{name}"]) for name, value in stored_encoder(tmp_path / "out").items())
    assert "step 2, stored in float32" in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_is_not_there_or_not_whole_names_the_others(turboedit_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=f"--checkpoint 7: .* has no such checkpoint; .* the steps 2, {STEPS}$"):
        export(turboedit_run, tmp_path / "out", checkpoint=7)
    damaged = turboedit_run / "checkpoints" / "step-000002" / "model.safetensors"
    content = damaged.read_bytes()
    try:
        damaged.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"--checkpoint 2 is damaged: model.safetensors .* another of 2, {STEPS}"):
            export(turboedit_run, tmp_path / "out", checkpoint=2)
    finally:
        damaged.write_bytes(content)


def test_the_encoder_alone_holds_nothing_of_the_base(alone: Path, tiny_backbone: str):
    assert {path.name for path in alone.iterdir() if path.is_dir()} == {"encoder"}
    assert {path.relative_to(alone).as_posix() for path in alone.rglob("*.safetensors")} == {
        "encoder/diffusion_pytorch_model.safetensors"
    }
    index = json.loads((alone / "model_index.json").read_text())
    assert index["base"] == tiny_backbone and "unet" not in index
    assert 'base="FOLDER OR HUB ID"' in (alone / "README.md").read_text()


def test_another_copy_of_the_base_can_be_named(alone: Path, tiny_backbone: str, tmp_path: Path):
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_backbone)
    index = alone / "model_index.json"
    before = index.read_text()
    try:
        index.write_text(json.dumps(json.loads(before) | {"base": "/nowhere/at/all"}))
        pipeline = DiffusionPipeline.from_pretrained(alone, base=str(moved), trust_remote_code=True)
    finally:
        index.write_text(before)
    assert pipeline.unet.config.in_channels == 4 and pipeline.text_encoder_2 is not None
    pipeline.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert saved["base"] is None and saved["unet"][1] == "UNet2DConditionModel"


def test_evaluations_take_the_encoder_alone(alone: Path):
    pipeline = load_scene_encoder(alone, torch.device("cpu"), "float16")
    assert pipeline.encoder.config.in_channels == 8 and pipeline.backbone.image_size == 64
    assert pipeline.unet.dtype == torch.float16 and pipeline.vae.dtype == torch.float32


def test_adapters_are_merged_into_the_encoder_alone(lora_run: Path, tmp_path: Path):
    export(lora_run, tmp_path / "alone", encoder_only=True)
    method, weights = read_run(lora_run)
    whole = method.export().build(weights, Storage("float16"))
    mine, theirs = stored_encoder(tmp_path / "alone"), whole.encoder.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not [name for name in mine if "lora" in name]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--encoder_only=true", "--lora=apart"), "has no adapters: its lora.rank is 0"),
        (("--private=true",), "--private is about what is pushed: give --push USER/NAME too"),
        (("--push=nobody",), "--push 'nobody' names no user or organisation: expected USER/NAME"),
        (("--push=a/b/c",), "--push 'a/b/c' is no name of a repository: expected USER/NAME"),
        (("--push=me/mine", "--encoder_only=true"), "name the base's hub id by --base to push"),
        (("--base=/x",), "--base '/x' is no hub id"),
        (("--device=gpu",), "--device is 'gpu', expected auto, cpu, cuda"),
        (("--checkpoint=9",), "there are those of the steps 2, 3"),
        (("--checkpoint=best",), "the run names no figure to choose by"),
    ],
)
def test_choices_that_do_not_fit_are_told_in_a_sentence(
    turboedit_run: Path, tmp_path: Path, options: tuple[str, ...], told: str
):
    with pytest.raises(SystemExit) as ended:
        export_command([str(turboedit_run), str(tmp_path / "out"), *options])
    assert told in str(ended.value.code) and "\n" not in str(ended.value.code)
    assert not list(tmp_path.iterdir())


def test_weights_that_a_dtype_cannot_hold_are_an_error():
    storage = Storage("float16")
    assert storage.cast("a", torch.tensor([1.0, -6e4])).dtype == torch.float16 and storage.rounding < 1e-3
    with pytest.raises(ValueError, match=r"conv_out.bias holds 7e\+04, too much for float16: --dtype bfloat16"):
        storage.cast("conv_out.bias", torch.tensor([1.0, 7e4]))
    with pytest.raises(ValueError, match="b holds values that are not finite: take an earlier --checkpoint"):
        storage.cast("b", torch.tensor([1.0, float("nan")]))
    storage.cast("small", torch.tensor([1e-7]))
    assert storage.rounding > 0.1  # a number that float16 has only a few bits for
