"""Files of a variant alone: found by their names in every command that reads weights, never guessed among several."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.inspection.checks import inspect_shards
from data.inspection.config import InspectConfig
from data.scenes import write_scenes
from eval.editors.instruct_pix2pix import InstructPix2Pix
from eval.harness.exports import load_encoder
from eval.harness.precision import stored_dtype
from models.backbone import Backbone
from models.components import load_components
from models.weight_files import files_by_variant, only_variant
from tests.test_instruct_pix2pix import save_instructive
from tests.tiny_backbones import save_with_variant
from tests.tiny_editing import tiny_pipeline

NAMES = {
    "diffusion_pytorch_model.safetensors": None,
    "model-00001-of-00002.safetensors": None,
    "pytorch_model.bin": None,
    "diffusion_pytorch_model.fp16.safetensors": "fp16",
    "model.fp16-00001-of-00002.safetensors": "fp16",
    "diffusion_pytorch_model-00001-of-00002.fp16.safetensors": "fp16",
    "diffusion_pytorch_model.non_ema.bin": "non_ema",
}
OTHERS = ("model.safetensors.index.fp16.json", "config.json", "openvino_model.bin", "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(("name", "variant"), NAMES.items())
def test_names_of_files_say_their_variant(tmp_path: Path, name: str, variant: str | None):
    (tmp_path / "unet").mkdir()
    for other in (name, *OTHERS):
        (tmp_path / "unet" / other).touch()
    assert files_by_variant(tmp_path) == {variant: [tmp_path / "unet" / name]}
    assert only_variant(tmp_path) == only_variant(tmp_path / "unet") == variant


def test_plain_files_come_first_and_several_variants_are_no_choice(tmp_path: Path):
    assert only_variant(tmp_path / "nowhere") is None and only_variant(tmp_path) is None
    for name in ("model.fp16.safetensors", "model.non_ema.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="files of the variants fp16, non_ema and none without; set variant"):
        only_variant(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert only_variant(tmp_path) is None


@pytest.fixture(scope="module")
def backbone(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of fp16 files alone."""
    folder = tmp_path_factory.mktemp("backbones")
    save_with_variant(tiny_backbone, folder / "both")
    return shutil.copytree(folder / "both", folder / "fp16", ignore=plain_files)


def plain_files(folder: str, names: list[str]) -> list[str]:
    """Names of the plain files of weights, for copytree to leave out."""
    return [path.name for path in files_by_variant(folder).get(None, []) if path.parent == Path(folder)]


@pytest.fixture(scope="module")
def export(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that was saved again as docs/pipeline.md says, in float16 as a variant."""
    folder = tmp_path_factory.mktemp("exports") / "fp16"
    tiny_pipeline(str(backbone.with_name("both"))).to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def test_an_export_saved_as_a_variant_is_read(export: Path):
    found = load_encoder(export)
    expected = DiffusionPipeline.from_pretrained(
        export, variant="fp16", torch_dtype=torch.float32, trust_remote_code=True
    )
    for name in ("encoder", "unet", "vae", "text_encoder"):
        mine, theirs = getattr(found, name).state_dict(), getattr(expected, name).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert load_encoder(export, "meta", "auto").encoder.dtype == torch.float16


def test_the_dtype_of_an_export_is_that_of_the_files_that_are_read(export: Path, tmp_path: Path):
    both = shutil.copytree(export, tmp_path / "both")
    load_encoder(export).encoder.save_pretrained(both / "encoder")
    assert stored_dtype(export / "encoder") == torch.float16 and stored_dtype(both / "encoder") == torch.float32


def test_an_encoder_alone_finds_the_variant_of_its_base(backbone: Path, export: Path, tmp_path: Path):
    alone = tmp_path / "alone"
    shutil.copytree(export / "encoder", alone / "encoder")
    index = json.loads((export / "model_index.json").read_text())
    parts = {name: value for name, value in index.items() if not isinstance(value, list) or name == "encoder"}
    (alone / "model_index.json").write_text(
        json.dumps({**parts, "_class_name": ["turboedit_pipeline", "TurboEditPipeline"], "base": str(backbone)})
    )
    assert torch.equal(load_encoder(alone).unet.conv_in.weight, load_encoder(export).unet.conv_in.weight)


def test_backbones_and_components_are_read(backbone: Path):
    named = Backbone.load(str(backbone.with_name("both")), variant="fp16")
    found, parts = Backbone.load(str(backbone)), load_components(str(backbone), torch.float32)
    for unet in (found.unet, parts["unet"]):
        assert torch.equal(unet.conv_in.weight, named.unet.conv_in.weight)
    with pytest.raises(ValueError, match="in the file variant 'fp8'"):
        Backbone.load(str(backbone), variant="fp8")


def test_data_commands_find_it(backbone: Path, export: Path, tmp_path: Path):
    write_scenes(tmp_path / "scenes", num=4)
    caption_folder(tmp_path / "scenes", tmp_path / "captioned", CaptionConfig(resolution=64, backbone=str(export)))
    encode_shards(tmp_path / "captioned", tmp_path / "encoded", EncodeConfig(backbone=str(export), prompts=True))
    assert not inspect_shards(tmp_path / "encoded", InspectConfig(backbone=str(backbone))).findings.problems


def test_instruct_pix2pix_reads_it_and_takes_one(any_backbone: str, tmp_path: Path):
    both = save_instructive(any_backbone, tmp_path / "both")
    pipeline = DiffusionPipeline.from_pretrained(both, torch_dtype=torch.float16)
    pipeline.unet.conv_in.weight.data *= 2
    pipeline.save_pretrained(both, variant="fp16")
    alone = shutil.copytree(both, tmp_path / "alone", ignore=plain_files)
    plain, *others = (
        InstructPix2Pix(str(path), variant=variant).unet.conv_in.weight
        for path, variant in ((both, None), (both, "fp16"), (alone, None))
    )
    assert torch.equal(*others) and not torch.allclose(plain, others[0], rtol=0.1)
    with pytest.raises(ValueError, match=r"both cannot be loaded in the file variant 'fp8' .*; set variant to one"):
        InstructPix2Pix(str(both), variant="fp8")
