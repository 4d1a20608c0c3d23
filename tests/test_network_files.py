"""Few-step models that are a file over a base: another UNet, a fused LoRA, another prediction type, the whole way."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from models.unet_family import UNetBackbone
from tests.processes import run
from tests.turboedit_runs import command, write_shards
from train.engine import fit
from train.methods.network_files import apply_files
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask
from train.run.launch import Launch


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
    return {name: str(folder / f"{name}.safetensors") for name in ("other", "lora")}


def unet_of(path: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(path, subfolder="unet").requires_grad_(False)


@torch.no_grad()
def output(network: UNet2DConditionModel) -> torch.Tensor:
    """What a UNet gives for fixed random inputs."""
    x, prompt = UNetBackbone.random_inputs(network, 2)
    return network(x, torch.tensor([999, 499]), **prompt.unet_inputs()).sample


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


def test_a_run_over_files_goes_the_whole_way(files: dict[str, str], tiny_backbone: str, tmp_path: Path):
    shards = write_shards(tmp_path / "data", tiny_backbone)
    options = [f"--generator.unet={files['other']}", f"--generator.lora={files['lora']}"]
    options += ["--generator.prediction_type=sample", "--run.steps=2", "--encoder.lora.rank=2"]
    config = parse(TurboEditConfig, command(tmp_path / "run", shards, tiny_backbone, *options)[1:])
    launch = Launch(config.run)
    task = TurboEditTask(config, launch.device)
    network = unet_of(tiny_backbone)
    apply_files(network, files["other"], files["lora"])
    assert task.schedule.prediction_type == "sample"
    assert torch.equal(output(task.backbone.network), output(network))
    x, prompt = UNetBackbone.random_inputs(network, 2)
    t = torch.tensor([999, 499])
    mean, _ = NoiseEncoder.from_generator(network, task.schedule)(x, torch.randn_like(x), prompt, t)
    assert (mean - task.schedule.predict_noise(x, output(network), t)).abs().max() < 1e-4  # divided by a small b
    fit(task, ShardDataset(config.data.shards, task.fields), config, launch)

    refused = run("-m", "train.export", tmp_path / "run", tmp_path / "alone", "--encoder_only=true", status=1)
    assert "only a whole export" in refused.stderr
    run("-m", "train.export", tmp_path / "run", tmp_path / "export", "--dtype=float32")
    exported = Backbone.load(str(tmp_path / "export"))
    assert exported.schedule.prediction_type == "sample"
    assert (output(exported.network) - output(network)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet": "nobody.safetensors"}, "generator.unet nobody.safetensors is not there"),
        ({"unet": "nobody.bin"}, "generator.unet is nobody.bin; expected a .safetensors file"),
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


def test_unets_that_embed_a_guidance_are_refused(tiny_backbone: str):
    config = dict(unet_of(tiny_backbone).config) | {"time_cond_proj_dim": 16}
    parts = {"scheduler": DDPMScheduler(), "unet": UNet2DConditionModel.from_config(config)}
    with pytest.raises(ValueError, match="embeds a guidance"):
        UNetBackbone.of_components(parts)


def test_transformers_are_refused():
    with pytest.raises(ValueError, match="work on UNets"):
        apply_files(torch.nn.Linear(1, 1), None, "x.safetensors")
