"""Exports and pipelines by folder or hub id, and the dtype in which an evaluation loads them."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from eval.edit import edit_pictures, main
from eval.harness.exports import load_encoder, load_scene_backbone, load_scene_encoder
from eval.harness.options import folder_or_hub_id
from eval.harness.precision import export_dtype, guided_dtype, stored_dtype
from eval.inversion_guidance import main as inversion_guidance
from eval.photo_edits.options import PhotoEditOptions
from scripts.bench.random_backbones import REDUCED, SDXL, SdxlSize, write_sdxl_configs
from tests.tiny_editing import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in float16, as train.export writes it."""
    saved = tmp_path_factory.mktemp("exports") / "half"
    pipeline = tiny_pipeline(tiny_sd_backbone).to(torch.float16)
    pipeline.vae.float()
    pipeline.save_pretrained(saved)
    return saved


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hub id of the export, which lies in the hub's cache."""
    place = tmp_path / "models--someone--encoder"
    shutil.copytree(folder, place / "snapshots" / "c0ffee")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return "someone/encoder"


def test_an_export_is_loaded_by_its_hub_id(folder: Path, hub: str):
    assert folder_or_hub_id(hub, "--encoder") == hub
    by_id, by_folder = load_encoder(hub), load_encoder(folder)
    assert torch.equal(by_id.encoder.conv_in.weight, by_folder.encoder.conv_in.weight)
    assert by_id.timesteps == by_folder.timesteps


def test_a_command_takes_a_hub_id(hub: str, tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    for dtype in ("auto", "float16"):
        texts = {"image": (str(tmp_path / "red.png"),), "prompt": ("a",), "target": ("b",), "mask": "auto"}
        [made] = edit_pictures(PhotoEditOptions(encoder=hub, **texts, dtype=dtype, device="cpu"))
        assert made.is_file()


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "a/b/c", "../nowhere", __file__])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str):
    with pytest.raises(ValueError, match=r"there is no such folder made by .* it is no hub id, which"):
        folder_or_hub_id(name, "--encoder")


def test_a_hub_id_that_is_not_there_says_so(tmp_path: Path):
    (tmp_path / "x.png").touch()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    words = ["--image", str(tmp_path / "x.png"), "--prompt", "a", "--target", "b"]
    with pytest.raises(SystemExit, match=r"exports/typo[\s\S]*the hub was not reached: HF_HUB_OFFLINE is set"):
        main(["--encoder", "exports/typo", *words])


def test_auto_is_what_the_export_holds_but_float32_on_a_cpu(folder: Path):
    assert stored_dtype(folder / "encoder") == torch.float16 and stored_dtype(folder / "vae") == torch.float32
    assert export_dtype("auto", folder, "cpu") == torch.float32
    assert export_dtype("auto", folder, "cuda") == torch.float16
    assert export_dtype("bfloat16", folder, "cuda") == torch.bfloat16
    half = load_encoder(folder, "meta", "auto")
    assert half.encoder.dtype == half.unet.dtype == half.text_encoder.dtype == torch.float16
    assert half.vae.dtype == torch.float32
    assert load_encoder(folder, "cpu", "auto").encoder.dtype == torch.float32


def test_auto_takes_a_large_guided_model_in_float16(tiny_backbone: str, tiny_sd_backbone: str):
    assert guided_dtype("auto", tiny_backbone, "cuda") == torch.float16
    assert guided_dtype("auto", tiny_sd_backbone, "cuda") == torch.float32
    assert guided_dtype("auto", tiny_backbone, "cpu") == torch.float32
    assert guided_dtype("float16", tiny_sd_backbone, "cpu") == torch.float16


@pytest.mark.parametrize(("size", "expected"), [(SDXL, torch.bfloat16), (REDUCED, torch.float32)])
def test_auto_on_a_cpu_goes_by_size(tmp_path: Path, size: SdxlSize, expected: torch.dtype):
    """SDXL's config files suffice: nothing of ten gigabytes is read in float32 to find that out."""
    place = write_sdxl_configs(tmp_path / "model", size)
    shutil.copytree(place / "unet", place / "encoder")
    assert guided_dtype("auto", str(place), "cpu") == export_dtype("auto", place, "cpu") == expected
    assert guided_dtype("float32", str(place), "cpu") == export_dtype("float32", place, "cpu") == torch.float32
    assert guided_dtype("auto", str(place), "cuda") == torch.float16


def test_a_model_of_another_size_is_refused_before_its_weights_are_read(folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for weights in other.rglob("*.safetensors"):
        weights.unlink()
    config = other / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 16', '"sample_size": 32'))
    for load in (load_scene_encoder, load_scene_backbone):
        with pytest.raises(ValueError, match="makes 128 px images; scenes have 64 px"):
            load(other, torch.device("cpu"))


def test_guidance_is_measured_in_half_precision_too(tiny_sd_backbone: str, tmp_path: Path):
    for dtype in ("float32", "bfloat16"):
        short = ["--num=1", "--num_steps=2", "--guidances=[1.0]", "--device=cpu"]
        inversion_guidance([f"--backbone={tiny_sd_backbone}", f"--out={tmp_path / 'out'}", f"--dtype={dtype}", *short])
    assert len(list((tmp_path / "out" / "kept").glob("guidance-1-*"))) >= 2, "each dtype has its own results"
