"""Few-step models that are a file over a base: another UNet, a fused LoRA, another prediction type, the whole way."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.jobs.command import parse
from data.world.captions import long_caption
from data.world.render import render
from data.world.splits import sample_scene
from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from models.pictures import from_pictures
from models.schedule import NoiseSchedule
from models.text import Prompt
from models.unet_family import GUIDANCE, UNetBackbone
from tests.turboedit_runs import command, write_shards
from train.export import export
from train.methods.initial_weights import initial_weights
from train.methods.network_files import apply_files
from train.methods.training import train
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> dict[str, str]:
    """Weights of another UNet, and a LoRA on the base's, whose layers are random."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(5)
    base = UNet2DConditionModel.from_pretrained(tiny_backbone, subfolder="unet")
    save_file(UNet2DConditionModel.from_config(base.config).state_dict(), folder / "other.safetensors")
    base.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v", "ff.net.2"], init_lora_weights=False)
    )
    StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(base), weight_name="lora.safetensors"
    )
    (folder / "folder").mkdir()
    shutil.copy(folder / "lora.safetensors", folder / "folder" / "pytorch_lora_weights.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("other", "lora")}


def unet_of(path: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(path, subfolder="unet").requires_grad_(False)


@torch.no_grad()
def output(network: UNet2DConditionModel) -> torch.Tensor:
    """What a UNet gives for fixed random inputs."""
    x, prompt = UNetBackbone.random_inputs(network, 2)
    return UNetBackbone.evaluate(network, x, prompt, torch.tensor([999, 499]))


def equal_at_first(network: UNet2DConditionModel, schedule: NoiseSchedule) -> None:
    """F's mean is G's own noise prediction."""
    x, prompt = UNetBackbone.random_inputs(network, 2)
    t = torch.tensor([999, 499])
    with torch.no_grad():
        mean, _ = NoiseEncoder.from_generator(network, schedule)(x, torch.randn_like(x), prompt, t)
        expected = schedule.predict_noise(x, UNetBackbone.evaluate(network, x, prompt, t), t)
    assert (mean - expected).abs().max() < 1e-6 * max(1.0, expected.abs().max().item())


def test_other_weights_are_that_unet(files: dict[str, str], tiny_backbone: str):
    network, other = unet_of(tiny_backbone), unet_of(tiny_backbone)
    other.load_state_dict(load_file(files["other"]))
    before = output(network)
    apply_files(network, files["other"], None)
    assert torch.equal(output(network), output(other)) and not torch.equal(output(network), before)


def test_a_lora_is_fused_as_by_the_stock_pipeline(files: dict[str, str], tiny_backbone: str):
    network = unet_of(tiny_backbone)
    names, before = list(network.state_dict()), output(network)
    apply_files(network, None, files["lora"])
    stock = StableDiffusionXLPipeline.from_pretrained(tiny_backbone)
    stock.load_lora_weights(files["lora"])
    stock.fuse_lora()
    assert (output(network) - output(stock.unet)).abs().max() < 1e-5 < (output(network) - before).abs().max()
    assert list(network.state_dict()) == names and not any(w.requires_grad for w in network.parameters())


def run_over(
    files: dict[str, str], backbone: str, data: Path, folder: Path, *options: str
) -> tuple[TurboEditConfig, TurboEditTask]:
    """Config and task of a finished run of two steps over some of the files."""
    shards = data if data.is_dir() else write_shards(data, backbone)
    given = [f"--generator.{option}={place}" for option, place in files.items()]
    config = parse(TurboEditConfig, command(folder, shards, backbone, *given, "--run.steps=2", *options)[1:])
    task = TurboEditTask(config, torch.device("cpu"))
    train(METHOD, config)
    return config, task


def inverted(export: Path, network: UNet2DConditionModel) -> None:
    """What stock diffusers makes of an export: the UNet that the run had, bare and in a pipeline that inverts."""
    bare = UNet2DConditionModel.from_pretrained(export, subfolder="unet")
    pipeline = DiffusionPipeline.from_pretrained(export, trust_remote_code=True)
    expected = output(network)
    assert (output(bare) - expected).abs().max() < 1e-6 and (output(pipeline.unet) - expected).abs().max() < 1e-6
    scene = sample_scene("test", 0, 0)
    inversion = pipeline.invert(from_pictures([render(scene)]), [long_caption(scene)])
    found = torch.stack([*inversion.noises, *inversion.reconstructions])
    assert len(found) == 8 and found.isfinite().all()


def test_a_run_over_files_goes_the_whole_way(files: dict[str, str], tiny_backbone: str, tmp_path: Path):
    chosen = {"unet": files["other"], "lora": files["lora"]}
    options = ("--generator.prediction_type=sample", "--encoder.lora.rank=2")
    _, task = run_over(chosen, tiny_backbone, tmp_path / "data", tmp_path / "run", *options)
    network = apply_files(unet_of(tiny_backbone), files["other"], files["lora"])
    assert task.schedule.prediction_type == "sample"
    assert torch.equal(output(task.backbone.network), output(network))
    equal_at_first(network, task.schedule)

    with pytest.raises(ValueError, match="only a whole export"):
        export(tmp_path / "run", tmp_path / "alone", encoder_only=True)
    export(tmp_path / "run", tmp_path / "export", dtype="float32")
    assert Backbone.load(str(tmp_path / "export")).schedule.prediction_type == "sample"
    inverted(tmp_path / "export", network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet": "nobody.safetensors"}, "generator.unet nobody.safetensors is not there"),
        ({"unet": "nobody.bin"}, "generator.unet is nobody.bin; expected a .safetensors file, a folder"),
        ({"lora": "no/body/file.safetensors"}, "generator.lora no/body/file.safetensors is no local file"),
        ({"unet": "lora"}, "holds another network's weights than generator.path: it lacks"),
        ({"lora": "other"}, "generator.lora .* names no layer|generator.lora .* does not fit"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    files: dict[str, str], tiny_backbone: str, options: dict[str, str], message: str
):
    chosen = {name: files.get(place, place) for name, place in options.items()}
    with pytest.raises(ValueError, match=message):
        apply_files(unet_of(tiny_backbone), chosen.get("unet"), chosen.get("lora"))


def test_a_unet_that_embeds_a_guidance_goes_the_whole_way(tiny_backbone: str, tmp_path: Path):
    torch.manual_seed(6)
    base = unet_of(tiny_backbone)
    consistent = UNet2DConditionModel.from_config({**base.config, "time_cond_proj_dim": 32}).requires_grad_(False)
    consistent.save_pretrained(tmp_path / "unet")
    _, task = run_over({"unet": str(tmp_path / "unet")}, tiny_backbone, tmp_path / "data", tmp_path / "run")
    assert torch.equal(output(task.backbone.network), output(consistent))
    equal_at_first(consistent, task.schedule)
    export(tmp_path / "run", tmp_path / "export", dtype="float32")
    inverted(tmp_path / "export", consistent)


@torch.no_grad()
def test_guidance_is_embedded_as_by_the_stock_pipeline(tiny_sd_backbone: str):
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd_backbone)
    config = {**stock.unet.config, "time_cond_proj_dim": 33}
    parts = {**stock.components, "unet": UNet2DConditionModel.from_config(config)}
    pipeline = LatentConsistencyModelPipeline(**parts | {"scheduler": LCMScheduler.from_config(stock.scheduler.config)})
    seen: list[tuple[Tensor, Tensor, Prompt, Tensor]] = []

    def look(network: UNet2DConditionModel, inputs: Any, words: dict[str, Any], result: Any) -> None:
        seen.append((*inputs, Prompt(words["encoder_hidden_states"]), result[0]))

    handle = pipeline.unet.register_forward_hook(look, with_kwargs=True)
    pipeline("a circle", num_inference_steps=2, guidance_scale=GUIDANCE, output_type="latent")
    handle.remove()
    assert len(seen) == 2
    for x, t, prompt, expected in seen:
        assert (UNetBackbone.evaluate(pipeline.unet, x, prompt, t.expand(len(x))) - expected).abs().max() < 1e-6
        without = pipeline.unet(x, t, prompt.embeds).sample
        assert (without - expected).abs().max() > 1e-4


def test_folders_of_diffusers_and_peft_are_taken(files: dict[str, str], tiny_backbone: str, tmp_path: Path):
    other = unet_of(tiny_backbone)
    other.load_state_dict(load_file(files["other"]))
    other.save_pretrained(tmp_path / "unet", variant="fp16")
    adapted = get_peft_model(unet_of(tiny_backbone), LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "conv1"]))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path / "peft")
    found = output(apply_files(unet_of(tiny_backbone), None, str(tmp_path / "peft")))
    assert (found - output(adapted.merge_and_unload())).abs().max() < 1e-5
    assert torch.equal(output(apply_files(unet_of(tiny_backbone), str(tmp_path / "unet"), None)), output(other))
    diffusers = output(apply_files(unet_of(tiny_backbone), None, str(Path(files["lora"]).parent / "folder")))
    assert torch.equal(diffusers, output(apply_files(unet_of(tiny_backbone), None, files["lora"])))

    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": 1e-3}))
    for folder, message in (("unet", "its norm_eps is 0.001, expected 1e-05"), (".", "a folder without config.json")):
        with pytest.raises(ValueError, match=message):
            apply_files(unet_of(tiny_backbone), str(tmp_path / folder), None)


def test_a_run_knows_its_files_again(files: dict[str, str], tiny_backbone: str, tmp_path: Path):
    lora = Path(shutil.copy(files["lora"], tmp_path / "lora.safetensors"))
    shards = tmp_path / "data"
    config, _ = run_over({"lora": str(lora)}, tiny_backbone, shards, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "export", dtype="float16")

    # Weights to start from: the same files are the same network, in a run and in an export; none or others are not.
    for source in ("run", "export"):
        words = (f"--encoder.init_from={tmp_path / source}", "--run.steps=2")
        for place, fits in ((files["lora"], True), (None, False)):
            given = [] if place is None else [f"--generator.lora={place}"]
            again = parse(TurboEditConfig, command(tmp_path / "new", shards, tiny_backbone, *given, *words)[1:])
            if fits:
                assert initial_weights(METHOD, again) is not None
            else:
                with pytest.raises(ValueError, match=r"was trained on another backbone.*not the same are network"):
                    initial_weights(METHOD, again)

    # Going on: not over another file of the same name.
    save_file({name: 2 * weight for name, weight in load_file(lora).items()}, lora)
    with pytest.raises(ValueError, match=r"generator\.lora is not the file that .* was trained on: its sha256 is"):
        train(METHOD, config)


def test_transformers_are_refused():
    with pytest.raises(ValueError, match="work on UNets"):
        apply_files(torch.nn.Linear(1, 1), None, "x.safetensors")
