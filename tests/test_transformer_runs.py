"""The whole way of a transformer family on a tiny pipeline: shards, training, plan, export, edit, evaluation."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.captioning.tokens import TokenLimits
from data.encode import EncodeConfig, encode_shards
from data.scenes import write_scenes
from data.shards.dataset import ShardDataset
from eval.edit import main as edit
from eval.reconstruction import main as reconstruct
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline
from tests.second_device import offloaded
from tests.turboedit_runs import command, losses
from train.export import main as export
from train.exports.pipeline import code_cache
from train.plan import main as plan
from train.turboedit import main as train

TIMESTEPS = {
    "sd3": "[1.0, 0.9, 0.75, 0.5]",
    "z_image": "[1.0, 0.9, 0.75, 0.5]",
    "sana": "[1.5708, 1.1781, 0.7854, 0.3927]",
    "flux": "[1.0, 0.75, 0.5, 0.25]",
    "flux2": "[1.0, 0.958, 0.884, 0.717]",
}
"""Timesteps of each family's few steps."""

MORE = [pytest.param(family, marks=pytest.mark.long) for family in TIMESTEPS if family != "sd3"]

LORA = ("--encoder.lora.rank=2", "--encoder.gradient_checkpointing=true", "--generator.gradient_checkpointing=true")


@pytest.fixture(scope="module", params=list(TIMESTEPS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, family: str) -> str:
    return request.getfixturevalue(f"tiny_{family}")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "scenes", num=8)
    return folder / "scenes"


@pytest.fixture(scope="module")
def captioned(scenes: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    caption_folder(scenes, folder / "captioned", CaptionConfig(backbone=base, resolution=64))
    return folder / "captioned"


@pytest.fixture(scope="module")
def shards(captioned: Path, base: str) -> Path:
    folder = captioned.with_name("shards")
    encode_shards(captioned, folder, EncodeConfig(backbone=base, prompts=True, keep_images=True))
    return folder


@pytest.fixture(scope="module")
def words(base: str, family: str, shards: Path) -> list[str]:
    """Options of a training of two steps, but for its folder."""
    _, *options = command(Path("unused"), shards, base, f"--generator.timesteps={TIMESTEPS[family]}")
    return [*options, "--run.steps=2", "--run.global_batch=4", "--log.log_every=1", "--log.checkpoint_every=2"]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with cached prompts."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train([*words, f"--run.folder={folder}", "--generator.cached_prompts=true"])
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export([str(run), str(run.with_name("export")), "--dtype=float32"])
    return run.with_name("export")


def test_shards_hold_all_of_a_prompt(shards: Path, base: str):
    backbone = Backbone.load(base)
    dataset = ShardDataset(shards, ("latent", "caption", *backbone.prompt_fields))
    sample, made = dataset[0], backbone.encode_text([dataset[0]["caption"]])
    assert sample["latent"].shape == (backbone.latent_channels, 16, 16) or sample["latent"].ndim == 3
    tensors = {"prompt": made.embeds, "pooled": made.pooled, "mask": made.mask}
    for name in backbone.prompt_fields:
        torch.testing.assert_close(sample[name], tensors[name][0].float(), rtol=1e-3, atol=1e-3)
    assert TokenLimits.load(base).limits == tuple(reader.tokens for reader in backbone.readers)


def test_a_training_learns_from_cached_prompts_and_from_texts(run: Path, words: list[str], base: str):
    folder = run.with_name("online")
    train([*words, f"--run.folder={folder}", *LORA])
    for made in (run, folder):
        assert len(losses(made)) == 2 and all(loss > 0 for loss in losses(made))
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["encoder"]["lora"]["targets"]
    assert tuple(recorded) == type(Backbone.outline(base)).LORA_TARGETS and "to_q" in recorded


@pytest.mark.parametrize("family", ["sd3", *MORE], indirect=True, scope="module")
def test_a_plan_counts_it(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text("method: turboedit\n")
    options = [word for word in words if not word.startswith("--run.folder")]
    plan(["--config", str(config), *options, "--run.folder=x", "--gpus=1", f"--json={tmp_path / 'plan.json'}"])
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["model"]["forward"] > 0 and figures["trained"] > 0 and figures["frozen"]["G"] > 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("yes")


def test_an_export_edits_without_this_project(exported: Path, scenes: Path, base: str):
    picture = Image.open(next(scenes.rglob("*.png")))
    with code_cache():
        stock = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
    stock.set_progress_bar_config(disable=True)
    assert type(stock).__module__.startswith("diffusers_modules")
    inversion = stock.invert(picture, "a red circle")
    assert len(inversion.noises) == len(stock.timesteps) == 4 and list(stock.step_counts) == [1, 2, 4]
    result = stock.edit(inversion, ["a blue circle", "a red circle"], strength=[0.7, 1.0], mask="auto")
    assert len(result.images) == 2 and result.mask is not None and not result.mask[1].any()
    again = stock(picture, "a red circle", "a blue circle", num_steps=2)
    assert again.images[0].size == (64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mask": "attention"}, "work on Stable Diffusion and SDXL"), ({"frozen_steps": 1}, "and no UNet")],
)
def test_attention_is_refused(exported: Path, options: dict, message: str):
    from eval.harness.exports import load_encoder

    pipeline: TurboEditPipeline = load_encoder(exported)
    picture = Image.new("RGB", (64, 64), "red")
    with pytest.raises(ValueError, match=message):
        pipeline(picture, "a red circle", "a blue circle", **options)


@pytest.mark.parametrize("family", ["sd3", "sana", "flux"], indirect=True, scope="module")
def test_its_networks_are_carried_to_the_device_and_back(exported: Path, monkeypatch: pytest.MonkeyPatch):
    """Qwen3, which the other families read with, asks for values, and the second device here has shapes alone."""
    from eval.harness.exports import load_encoder

    pipeline: TurboEditPipeline = load_encoder(exported)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with offloaded(pipeline, monkeypatch) as moves:
        inversion = pipeline.invert(pixels, "a red circle")
        assert moves.count("+encoder") == 1 and inversion.noises[0].device.type == "meta"
        moves.clear()
        output = pipeline.edit(inversion, "a blue circle", mask="auto", output_type="pt")
    assert moves[-4:] == ["+transformer", "-transformer", "+vae", "-vae"] and moves[0].startswith("+text_encoder")
    assert output.images.device.type == "meta" and output.images.shape == (1, 3, 64, 64)


def test_an_encoder_alone_takes_the_rest_from_its_base(run: Path, exported: Path, scenes: Path):
    from eval.harness.exports import load_encoder

    alone = run.with_name("alone")
    export([str(run), str(alone), "--dtype=float32", "--encoder_only=true"])
    assert {path.name for path in alone.iterdir() if path.is_dir()} == {"encoder"}
    picture = Image.open(next(scenes.rglob("*.png")))
    noises = [load_encoder(folder).invert(picture, "a red circle").noises[0] for folder in (exported, alone)]
    assert torch.equal(*noises)


def test_a_lora_run_over_8_bits_goes_merged_and_apart(run: Path, words: list[str], tmp_path: Path):
    folder = tmp_path / "run"
    train([*words, f"--run.folder={folder}", "--generator.cached_prompts=true", "--generator.quantize=int8", *LORA])
    export([str(folder), str(tmp_path / "merged"), "--dtype=bfloat16"])
    export([str(folder), str(tmp_path / "apart"), "--dtype=float32", "--lora=apart"])
    assert (tmp_path / "apart" / "pytorch_lora_weights.safetensors").is_file()


def test_the_commands_evaluate_it(exported: Path, captioned: Path, scenes: Path, tmp_path: Path):
    reconstruct([f"--encoder={exported}", f"--data={captioned}", f"--out={tmp_path / 'page'}", "--num=4", "--batch=4"])
    results = json.loads((tmp_path / "page" / "results.json").read_text())
    assert {"turboedit", "ddim", "ddpm_residual"} <= set(json.dumps(results).replace('"', " ").split())
    picture = next(scenes.rglob("*.png"))
    edit([f"--encoder={exported}", f"--image={picture}", "--prompt=a cat", "--target=a dog", f"--out={tmp_path / 'o'}"])
    assert list((tmp_path / "o").glob("*_edited_1.png"))
