"""InstructPix2Pix as its users run it: training, resume, plan, and an export that stock diffusers takes; all tiny."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from eval.editors.editor import EditRequest
from eval.editors.instruct_pix2pix import InstructPix2Pix
from models.backbone import Backbone
from models.unet_family import UNetBackbone
from tests.instruct_runs import SAMPLES, STEPS, metrics, words, write_pairs
from tests.processes import finish, start_ranks
from tests.processes import run as run_python
from tests.shard_folders import make_latents
from tests.snippets import run_snippet
from train.engine import fit
from train.export import export, read_run
from train.instruct_pix2pix import main as train
from train.method import Storage
from train.methods.initial_weights import initial_weights
from train.methods.instruct_pix2pix import METHOD
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.instruct_pix2pix.task import InstructPix2PixTask
from train.plan import main as plan
from train.planning.budget import Budget, Machine
from train.planning.measure import measure_steps
from train.rng import StepRandom
from train.run.launch import Launch
from train.task import Batch, StepLoss

CONFIGS = "configs/instruct_pix2pix"
MIXED = [("float16", "bf16"), ("bfloat16", "fp16"), ("float16", "no"), ("bfloat16", "bf16")]
NEWEST = Path("checkpoints") / f"step-{STEPS:06d}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_sd_backbone: str) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "latents", tiny_sd_backbone)


@pytest.fixture(scope="module")
def run(shards: Path, tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a full fine-tune."""
    folder = tmp_path_factory.mktemp("run") / "full"
    train(words(folder, shards, tiny_sd_backbone, "--log.preview_every=3", "--log.preview_samples=2"))
    return folder


@pytest.fixture(scope="module")
def lora_run(shards: Path, tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "lora"
    train(words(folder, shards, tiny_sd_backbone, "--unet.lora.rank=2"))
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "instructive"
    export(run, out, dtype="float32")
    return out


@pytest.mark.parametrize(("dtype", "precision"), MIXED)
def test_frozen_networks_keep_their_dtype_under_any_precision(
    shards: Path, tiny_sd_backbone: str, tmp_path: Path, dtype: str, precision: str
):
    mixed = (f"--backbone.dtype={dtype}", f"--run.mixed_precision={precision}")
    train(words(tmp_path / "run", shards, tiny_sd_backbone, "--run.steps=1", "--log.preview_every=1", *mixed))
    assert metrics(tmp_path / "run")[0]["loss"] > 0 and list((tmp_path / "run" / "samples").iterdir())


@pytest.mark.parametrize(("dtype", "precision"), [("float16", "bf16"), ("bfloat16", "fp16")])
def test_what_a_cpu_cannot_mix_is_told(shards: Path, tiny_sd_backbone: str, tmp_path: Path, dtype: str, precision: str):
    mixed = (f"--backbone.dtype={dtype}", f"--run.mixed_precision={precision}", "--unet.lora.rank=2")
    with pytest.raises(SystemExit, match=f"adapters lie over {dtype} weights; .* set backbone.dtype float32"):
        train(words(tmp_path / "run", shards, tiny_sd_backbone, *mixed))


@pytest.mark.parametrize(("name", "micro_batch"), [("miniature", 32), ("sd15", 16)])
def test_configs_are_read(name: str, micro_batch: int):
    config = parse(InstructPix2PixConfig, ["--config", f"{CONFIGS}/{name}.yaml"])
    assert config.run.micro_batch == micro_batch and config.objective.dropout == 0.05


def test_card_and_page_edit_a_photo_as_typed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = [Path("docs/instruct_pix2pix.md"), folder / "README.md"]
    texts = [document.read_text(encoding="utf-8") for document in documents]
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.new("RGBA", (80, 40), (255, 0, 0, 51)).save(tmp_path / "photo.jpg", "PNG", exif=lying)
    monkeypatch.chdir(tmp_path)
    for text in texts:
        photo = run_snippet(text.replace("num_inference_steps=100", "num_inference_steps=2"), folder)["photo"]
        assert photo.mode == "RGB" and photo.size == (40, 80) and photo.getpixel((0, 0)) == (255, 204, 204)
        assert Image.open("edited.png").size == (64, 64)


def test_training_logs_the_phases_and_draws_previews(run: Path):
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["loss"] == row["mse"] == pytest.approx(row["prediction_error"]) and row["mse"] > 0
    phases = {f"prediction_error/{phase}" for phase in ("noisy", "middle", "clean")}
    assert phases & set(rows[0]) and {name for row in rows for name in row if "/" in name} <= phases
    assert len(list((run / "samples").iterdir())) == 2


def test_a_stopped_training_goes_on_exactly(run: Path, shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    for steps in (2, STEPS):
        train(words(tmp_path / "parts", shards, tiny_sd_backbone, f"--run.steps={steps}"))
    for name in ("model", "ema"):
        whole, resumed = (load_file(x / NEWEST / f"{name}.safetensors") for x in (run, tmp_path / "parts"))
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.long
@pytest.mark.parametrize("option", ["--run.mixed_precision=no", "--run.mixed_precision=bf16"])
def test_two_processes_train_as_one(shards: Path, tiny_sd_backbone: str, tmp_path: Path, option: str):
    for name, number in (("one", 1), ("two", 2)):
        options = words(tmp_path / name, shards, tiny_sd_backbone, option)
        finish(start_ranks(number, "-m", "train.instruct_pix2pix", *options))
    tolerance = 1e-5 if option.endswith("no") else 1e-3
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=tolerance)


def test_a_unet_begins_with_that_of_a_run_or_an_export(
    run: Path, folder: Path, shards: Path, tiny_sd_backbone: str, tmp_path: Path
):
    newest = load_file(run / NEWEST / "ema.safetensors")
    for source in (run, folder):
        options = words(tmp_path / "begun", shards, tiny_sd_backbone, f"--unet.init_from={source}")
        config = parse(InstructPix2PixConfig, options)
        initial = initial_weights(METHOD, config)
        task, _ = METHOD.load(config, torch.device("cpu"))
        assert initial is not None
        initial.give(task.trainable)
        assert all(torch.equal(weight, newest[name]) for name, weight in task.trainable.state_dict().items())


def test_shards_without_pairs_are_refused(tiny_sd_backbone: str, tmp_path: Path):
    shards = make_latents(tmp_path / "latents", 4, 4)
    with pytest.raises(SystemExit, match=r"data\.edit_pairs"):
        train(words(tmp_path / "run", shards, tiny_sd_backbone))


def test_latents_of_another_vae_are_refused(shards: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match="made by another VAE"):
        train(words(tmp_path / "run", shards, "models/miniature/teacher"))


LOADER = """
import sys, torch
from diffusers import StableDiffusionInstructPix2PixPipeline
pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(sys.argv[1])
found = pipeline(
    "make it red", image=torch.full((1, 3, 64, 64), 0.5), num_inference_steps=2, image_guidance_scale=1.5,
    generator=torch.Generator().manual_seed(0),
).images
assert found[0].size == (64, 64)
print(type(pipeline).__module__, "train" in sys.modules, "models" in sys.modules)
"""


def test_the_export_is_diffusers_own_pipeline(folder: Path, run: Path, tmp_path: Path):
    words = ["-c", LOADER, folder]
    done = run_python(*words, fresh=True, folder=tmp_path, PYTHONPATH=None, HF_HOME=str(tmp_path / "hf"))
    assert done.stdout.split()[-2:] == ["False", "False"] and "diffusers.pipelines" in done.stdout
    assert not list(folder.rglob("*.py"))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    assert index["scheduler"] == ["diffusers", "EulerAncestralDiscreteScheduler"]
    assert type(DiffusionPipeline.from_pretrained(folder)) is StableDiffusionInstructPix2PixPipeline
    averages = load_file(run / NEWEST / "ema.safetensors")
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == averages.keys() and all(torch.equal(stored[name], averages[name]) for name in stored)
    assert stored["conv_in.weight"].shape[1] == 8


def test_the_card_says_how_to_use_it(folder: Path):
    card = (folder / "README.md").read_text()
    assert ModelCard(card).data.tags == ["image-editing", "instruct-pix2pix"] and "trust_remote_code" not in card
    assert f"step {STEPS}" in card and f"{SAMPLES} samples" in card and "prediction_error" in card
    assert "guidance_scale=7.5" in card and "{{" not in card


def test_the_editor_of_the_evaluations_takes_the_export(folder: Path):
    editor = InstructPix2Pix(str(folder), num_steps=2)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    request = EditRequest(("a", "b"), instruction=("make it red", "add a cat"))
    edited = editor.edit(editor.invert(images, ("a", "b")), request)
    assert edited.shape == images.shape and torch.isfinite(edited).all()


@torch.no_grad()
def test_adapters_are_merged_into_a_stock_unet(lora_run: Path, tiny_sd_backbone: str, tmp_path: Path):
    weights = load_file(lora_run / NEWEST / "model.safetensors")
    assert all(".lora_" in name or name.startswith("conv_in.") for name in weights)
    export(lora_run, tmp_path / "merged", dtype="float32")
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "merged")
    plain = UNetBackbone.widened(Backbone.load(tiny_sd_backbone).unet).state_dict()
    stored = pipeline.unet.state_dict()
    assert stored.keys() == plain.keys()
    changed = {name for name in stored if not torch.equal(stored[name], plain[name])}
    assert "conv_in.weight" in changed and all(".attn" in name or name.startswith("conv_in.") for name in changed)
    averages = load_file(lora_run / NEWEST / "ema.safetensors")
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    step = averages[f"{layer}.lora_B.default.weight"] @ averages[f"{layer}.lora_A.default.weight"]
    torch.testing.assert_close(stored[f"{layer}.weight"], plain[f"{layer}.weight"] + step)


def test_adapters_of_this_method_do_not_go_apart(lora_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="instruct_pix2pix, whose adapters do not go apart: leave --lora merged"):
        export(lora_run, tmp_path / "out", lora="apart")


def test_the_page_does_not_open_exports_of_this_method(lora_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="instruct_pix2pix, whose exports the page does not open: leave out --space"):
        export(lora_run, tmp_path / "out", space=tmp_path / "space")


def test_export_does_not_need_the_shards(run: Path, shards: Path, tmp_path: Path):
    moved = shards.rename(tmp_path / "elsewhere")
    try:
        method, trained = read_run(run)
        assert method.export().build(trained, Storage("float32")).unet.config.in_channels == 8
    finally:
        moved.rename(shards)


def test_a_plan_of_the_miniature(capsys: pytest.CaptureFixture[str]):
    plan([f"--config={CONFIGS}/miniature.yaml", "--data.shards=none"])
    unet = UNetBackbone.widened(Backbone.load("models/miniature/teacher", parts=("network",)).unet)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"trained: {sum(weight.numel() for weight in unet.parameters()) / 1e6:.1f} M parameters")
    assert lines[-1].startswith("yes")


def test_what_a_plan_counts():
    words = [f"--config={CONFIGS}/miniature.yaml", "--data.shards=none"]
    unet = UNetBackbone.widened(Backbone.load("models/miniature/teacher", parts=("network",)).unet)
    full = METHOD.plan().task(parse(InstructPix2PixConfig, words))
    assert full.trained == sum(weight.numel() for weight in unet.parameters())
    assert set(full.frozen) == {"text", "VAE"}
    lora = METHOD.plan().task(parse(InstructPix2PixConfig, [*words, "--unet.lora.rank=2"]))
    assert lora.trained < 0.2 * full.trained and set(lora.frozen) == {"UNet", "text", "VAE"}


def test_a_plan_counts_what_a_step_holds(shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    config = parse(InstructPix2PixConfig, words(tmp_path / "run", shards, tiny_sd_backbone))
    found = measure_steps(METHOD, config, 1)
    assert found.counted == found.real and found.seconds > 0
    verdicts = {verdict.preset: verdict for verdict in Budget(METHOD, Machine(1, 1, 16)).judge(config)}
    assert verdicts["one_gpu"].fits


class Watched(InstructPix2PixTask):
    """On CUDA any wait for the device from the second loss to the last one is an error."""

    calls = 0

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        self.calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= self.calls < STEPS else "default")
        return super().loss(model, batch, rng)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: the CPU has no transfers to wait for")
def test_nothing_in_a_step_waits_for_the_device(shards: Path, tiny_sd_backbone: str, tmp_path: Path):
    options = words(tmp_path / "run", shards, tiny_sd_backbone, "--run.micro_batch=4", f"--log.log_every={STEPS}")
    config = parse(InstructPix2PixConfig, [*options, f"--log.checkpoint_every={STEPS}"])
    launch = Launch(config.run)
    task = Watched(config, launch.device)
    assert fit(task, ShardDataset(config.data.shards, task.fields), config, launch).step == STEPS
