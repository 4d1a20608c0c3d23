"""Shards and the networks that made them, over file variants, earlier versions, damage and other users."""

import importlib
import json
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.encode import main as encode
from data.inspection.checks import inspect_shards
from data.inspection.config import InspectConfig
from data.jobs.command import parse
from data.jobs.errors import ShardError
from data.jobs.sharing import Ranks
from data.scene_pie_bench import write_pie_bench
from data.scenes import write_scenes
from data.shards.dataset import ShardDataset
from data.shards.encoder import open_encodings
from data.shards.origins import check_latents, check_pivots
from data.shards.shard import MANIFEST, file_digest, read_manifest
from data.shards.verification import damaged_shards
from eval.pie_bench import main as evaluate_pie_bench
from models.backbone import Backbone
from models.ddim import Ddim
from models.fingerprints import named, vae_fingerprint
from models.shapes import SizeConditioning
from scripts.bench.precision import errors_of_x0
from tests.processes import run, start_ranks
from tests.tiny_backbones import save_with_variant, shake
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.planning.shards import read_shards

STEPS = 2
FORMER = "0123456789abcdef"


@pytest.fixture(scope="module")
def backbone(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SDXL-like folder with float32 files and fp16 ones, each of whose weights is rounded there."""
    folder = tmp_path_factory.mktemp("backbone")
    save_with_variant(tiny_backbone, folder)
    return str(folder)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of four scenes each."""
    root = tmp_path_factory.mktemp("captioned")
    write_scenes(root / "scenes", num=8)
    caption_folder(root / "scenes", root / "shards", CaptionConfig(resolution=64, unit_size=4))
    return root / "shards"


@pytest.fixture(scope="module")
def encoded(captioned: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents, pivots, prompts and image tokens by the float32 files."""
    out = tmp_path_factory.mktemp("encoded") / "shards"
    encode_shards(captioned, out, options(backbone))
    return out


def options(backbone: str, **others: Any) -> EncodeConfig:
    return EncodeConfig(backbone, prompts=True, pivots=True, pivot_steps=STEPS, clip="models/miniature/clip", **others)


def config(shards: Path, backbone: str, *words: str) -> TurboEditConfig:
    """A TurboEdit training of two steps."""
    return parse(TurboEditConfig, training(shards, backbone, Path("unused"), *words))


def training(shards: Path, backbone: str, folder: Path, *words: str) -> list[str]:
    return [
        *(f"--run.folder={folder}", "--run.steps=2", "--run.global_batch=2", "--run.micro_batch=1"),
        *(f"--data.shards={shards}", "--data.workers=0", f"--generator.path={backbone}", "--log.preview_every=0"),
        *("--generator.dtype=float32", *words),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_training_takes_the_shards_in_any_file_variant(encoded, backbone, variant, dtype):
    words = ["--generator.cached_prompts=true", f"--generator.dtype={dtype}"]
    words += [f"--generator.variant={variant}"] if variant else []
    task, dataset = METHOD.load(config(encoded, backbone, *words), torch.device("cpu"))
    assert task.generator.backbone.text is None and set(dataset.fields) == {"latent", "prompt", "pooled", "info"}
    loaded = Backbone.load(backbone, dtype=getattr(torch, dtype), variant=variant)
    check_latents(dataset, loaded)
    check_pivots(dataset, loaded, Ddim(loaded.schedule, STEPS, 1))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_inspection_and_plan_take_the_variant(encoded, backbone, variant):
    found = inspect_shards(encoded, InspectConfig(backbone=backbone, variant=variant))
    assert not found.findings.problems
    assert not read_shards(str(encoded), backbone, variant, 2).problems
    other = read_shards(str(encoded), backbone, "fp8", 2)
    assert other.fingerprints.startswith("not checked: the vae of ") and "file variant 'fp8'" in other.fingerprints


def test_stored_prompts_of_other_text_encoders_are_refused_before_training(encoded, backbone, tmp_path):
    other = Backbone.load(backbone, parts=["text"]).text.encoders[0]
    shake(other, 1e-4, seed=1)
    folder = shutil.copytree(backbone, tmp_path / "other")
    other.save_pretrained(folder / "text_encoder")
    with pytest.raises(ValueError, match=r"the prompts in .* other text encoders: .*generator\.cached_prompts false"):
        METHOD.load(config(encoded, str(folder), "--generator.cached_prompts=true"), torch.device("cpu"))
    METHOD.load(config(encoded, str(folder)), torch.device("cpu"))


def test_latents_of_another_size_are_refused(encoded, backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "other")
    path = folder / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 32}))
    with pytest.raises(ValueError, match=r"64 px pictures, .* for 128 px; run data\.caption with --resolution 128"):
        check_latents(ShardDataset(encoded), Backbone.load(str(folder)))


def test_a_folder_is_encoded_with_the_fp16_files_and_trains_with_the_others(captioned, backbone, tmp_path):
    words = [str(captioned), str(tmp_path), "--backbone", backbone, "--prompts", "true"]
    encode([*words, "--variant", "fp16", "--dtype", "bfloat16"])
    assert read_manifest(tmp_path)["config"]["dtype"] == "bfloat16"
    with pytest.raises(SystemExit, match=r'dtype: "bfloat16" -> null'):
        encode([*words, "--variant", "fp16"])
    dataset = ShardDataset(tmp_path, ("latent", "prompt"))
    half = Backbone.load(backbone, dtype=torch.bfloat16, variant="fp16")
    assert named(dataset.vae_fingerprint) == named(vae_fingerprint(half))
    assert named(dataset.vae_fingerprint) != named(vae_fingerprint(Backbone.load(backbone)))
    sample = dataset[0]
    caption = ShardDataset(tmp_path, ("caption",))[0]["caption"]
    torch.testing.assert_close(
        sample["prompt"],
        half.encode_text([caption], SizeConditioning.uncropped(64, 64)).embeds[0].float(),
        atol=2e-3,
        rtol=0,
    )
    METHOD.load(config(tmp_path, backbone, "--generator.cached_prompts=true"), torch.device("cpu"))


def test_a_variant_that_is_not_there_is_told(captioned, backbone, tmp_path):
    words = [str(captioned), str(tmp_path / "out"), "--backbone", backbone]
    with pytest.raises(SystemExit, match=r"the vae of .* in the file variant 'fp8' .*; set variant to one that its"):
        encode([*words, "--variant", "fp8"])
    with pytest.raises(ValueError, match=r"the text_encoder of .* in the file variant 'fp8'"):
        Backbone.load(backbone, parts=["text"], variant="fp8")


EVALUATIONS = (
    "many_step",
    "null_text_ablation",
    "inversion_guidance",
    "style_transfer",
    "style_claims",
    "caption_accuracy",
)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_take_the_variant(backbone, tmp_path, name):
    main = importlib.import_module(f"eval.{name}").main
    with pytest.raises(SystemExit, match=r"the vae of .* cannot be loaded in the file variant 'fp8'"):
        main(["--backbone", backbone, "--out", str(tmp_path / "out"), "--variant", "fp8", "--device", "cpu"])


def test_pie_bench_takes_the_variant(backbone, tmp_path):
    write_pie_bench(tmp_path / "data", num=1)
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--teacher.path", backbone]
    with pytest.raises(SystemExit, match=r"the vae of .* cannot be loaded in the file variant 'fp8'"):
        evaluate_pie_bench([*words, "--teacher.variant", "fp8", "--device", "cpu"])
    words[-2] = "--instruct.one"
    with pytest.raises(SystemExit, match=r"backbone\d* cannot be loaded in the file variant 'fp8'"):
        evaluate_pie_bench([*words, "--instruct_variants.one", "fp8", "--device", "cpu"])
    with pytest.raises(SystemExit, match="--instruct_variants names other, of which --instruct has no model"):
        evaluate_pie_bench([*words, "--instruct_variants.other", "fp16", "--device", "cpu"])


@pytest.mark.parametrize(("name", "option"), [("measure_precision", "backbones"), ("bench_stylediffusion", "backbone")])
def test_measurements_take_the_variant(backbone, name, option):
    main = importlib.import_module(f"scripts.{name}").main
    with pytest.raises(SystemExit, match=r"the vae of .* cannot be loaded in the file variant 'fp8'"):
        main([f"--{option}={[backbone] if option == 'backbones' else backbone}", "--variant=fp8"])


def test_errors_of_x0_are_those_of_the_variant(backbone):
    plain, half = (errors_of_x0([backbone], ["float16"], 2, variant)[backbone] for variant in (None, "fp16"))
    assert max(half["float16"].values()) > 0 and plain != half


def test_a_dtype_that_decides_nothing_is_refused(captioned, backbone, tmp_path, capsys):
    with pytest.raises(SystemExit):
        encode([str(captioned), str(tmp_path / "out"), "--backbone", backbone, "--dtype", "float16"])
    assert "--dtype is float16, but neither prompts nor pivots are made" in capsys.readouterr().err


def test_as_many_pictures_at_once_as_memory_has_room_for(tmp_path):
    """SDXL's first level has 128 channels: 32 pictures of 512 px are 4.3 GB a tensor."""
    from diffusers import AutoencoderKL

    folder = shutil.copytree("models/miniature/student", tmp_path / "backbone")
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shutil.rmtree(folder / "vae")
    AutoencoderKL(block_out_channels=(128, 128), latent_channels=4, **levels).save_pretrained(folder / "vae")
    sizes = {64: 32, 512: 3, 1024: 1}
    for resolution, expected in sizes.items():
        properties = {"resolution": resolution, "preprocessing": "none"}
        assert open_encodings(EncodeConfig(str(folder)), properties, False)[1] == expected
        assert open_encodings(EncodeConfig(str(folder), batch=7), properties, False)[1] == 7


# --- shards of an earlier version ----------------------------------------------------------------------------------


def as_before(folder: Path, copy: Path, units: Sequence[str] | None = None) -> Path:
    """A copy with the fingerprints and words of the version before."""
    shutil.copytree(folder, copy)
    for path in [*copy.glob("unit-*.json"), copy / MANIFEST]:
        if units is None or path.stem in units:
            content = json.loads(path.read_text())
            content["config"] |= dict.fromkeys(("vae", "unet", "clip"), FORMER)
            content["config"]["text_encoders"] = f"{FORMER} {FORMER}"
            properties = {name: value for name, value in content["properties"].items() if name != "pivot_steps"}
            properties |= {name: FORMER for name in properties if name.endswith("_fingerprint")}
            properties |= {"text_fingerprint": f"{FORMER} {FORMER}", "pivot_fingerprint": f"{FORMER}, 2 DDIM steps"}
            path.write_text(json.dumps({**content, "properties": properties}))
    return copy


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")}


def test_earlier_shards_say_what_to_do_and_the_same_command_renews_them(captioned, encoded, backbone, tmp_path):
    former = as_before(encoded, tmp_path / "shards")
    assert contents(former) != contents(encoded)
    with pytest.raises(ValueError, match=rf"{former} was made by an earlier version.*run the data\.encode that"):
        METHOD.load(config(former, backbone), torch.device("cpu"))
    found = inspect_shards(former, InspectConfig(backbone=backbone)).findings.problems
    assert {finding.kind.what.split(",")[0] for finding in found} == {"the shards were made by an earlier version"}
    encode_shards(captioned, former, options(backbone))
    assert contents(former) == contents(encoded)


def test_a_renewal_that_was_killed_goes_on(captioned, encoded, backbone, tmp_path):
    """The first unit is the last to be renewed."""
    former = as_before(encoded, tmp_path / "shards", ["unit-000000"])
    encode_shards(captioned, former, options(backbone))
    assert contents(former) == contents(encoded)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_earlier_shards_of_other_networks_are_not_renewed(captioned, encoded, backbone, tmp_path, part):
    former = as_before(encoded, tmp_path / "shards")
    before = contents(former)
    folder = shutil.copytree(backbone, tmp_path / "other")
    loaded = Backbone.load(backbone)
    network = {"vae": loaded.vae, "unet": loaded.unet, "text_encoder": loaded.text.encoders[0]}[part]
    shake(network, 0.1, seed=1)
    network.save_pretrained(folder / part)
    with pytest.raises(ShardError, match=r"by other networks than these: .*\.npy differs by [0-9.]+%"):
        encode_shards(captioned, former, options(str(folder)))
    assert contents(former) == before


def test_other_options_for_earlier_shards_are_refused_as_ever(captioned, encoded, backbone, tmp_path):
    former = as_before(encoded, tmp_path / "shards")
    before = contents(former)
    with pytest.raises(ShardError, match="was made with another config"):
        encode_shards(captioned, former, options(backbone, keep_images=True))
    assert contents(former) == before


# --- damage --------------------------------------------------------------------------------------------------------


def turn_a_bit(folder: Path, unit: str) -> None:
    """Turn the lowest bit of a latent's number, which stays finite."""
    spans = json.loads((folder / f"{unit}.json").read_text())["members"]["latent.npy"]
    tar = folder / f"{unit}.tar"
    content = bytearray(tar.read_bytes())
    content[spans[1][0] + spans[1][1] - 2] ^= 1
    tar.write_bytes(content)


def test_a_turned_bit_is_found_by_verify_alone(encoded, tmp_path):
    damaged = shutil.copytree(encoded, tmp_path / "shards")
    turn_a_bit(damaged, "unit-000001")
    assert not ShardDataset(damaged).read_batch(range(8))["substituted"]
    assert damaged_shards(encoded, Ranks()) == [] and damaged_shards(damaged, Ranks()) == ["unit-000001.tar"]
    assert [damaged_shards(damaged, Ranks(rank, 2)) for rank in range(2)] == [[], ["unit-000001.tar"]]
    (damaged / "unit-000000.tar").unlink()
    assert damaged_shards(damaged, Ranks()) == ["unit-000000.tar", "unit-000001.tar"]


def test_a_run_with_verify_stops_before_it_begins_on_all_ranks(encoded, backbone, tmp_path):
    damaged = shutil.copytree(encoded, tmp_path / "shards")
    turn_a_bit(damaged, "unit-000001")
    words = training(damaged, backbone, tmp_path / "run", "--data.verify=true")
    ranks = [process.finished(1).stderr for process in start_ranks(2, "-m", "train.turboedit", *words)]
    assert f"data.verify: unit-000001.tar in {damaged} do not hold what was written; remove each with" in ranks[0]
    assert "Traceback" not in "".join(ranks) and not (tmp_path / "run").exists()


# --- other users ---------------------------------------------------------------------------------------------------

UNDER_A_UMASK = """
import os, sys
os.umask(int(sys.argv[1], 8))
from data.encode import main as encode
from train.export import main as export
from train.turboedit import main as train
shards, backbone, out, *words = sys.argv[2:]
encode([shards, f"{out}/shards", "--backbone", backbone])
train([f"--run.folder={out}/run", f"--data.shards={out}/shards", *words])
export([f"{out}/run", f"{out}/export"])
export([f"{out}/run", f"{out}/adapter", "--lora", "apart"])
"""


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_has_the_mode_that_the_umask_gives(captioned, backbone, tmp_path, umask):
    words = training(Path("unused"), backbone, Path("unused"), "--encoder.lora.rank=2")
    kept = [word for word in words if "unused" not in word]
    run("-c", UNDER_A_UMASK, f"{umask:o}", captioned, backbone, tmp_path, *kept)
    places = list(tmp_path.rglob("*"))
    assert {path.suffix for path in places} >= {".tar", ".json", ".safetensors", ".yaml", ".md", ".pt"}
    wrong = {path: oct(mode) for path in places if (mode := stat.S_IMODE(path.stat().st_mode)) != usual(path) & ~umask}
    assert not wrong


def usual(path: Path) -> int:
    """Mode of a file or folder without a umask."""
    return 0o777 if path.is_dir() else 0o666
