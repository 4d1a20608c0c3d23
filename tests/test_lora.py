"""LoRA on F: the same function at the start, G's own weights under it, exact files, and it learns."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from scripts.bench.random_backbones import write_random_shards
from train.engine import fit
from train.method import Storage
from train.methods.config import LoraConfig
from train.methods.lora import add_lora, load_adapter, merge, save_adapter
from train.methods.memory_options import apply_memory_options
from train.methods.turboedit.config import EncoderConfig, TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, build_encoder, load_generator
from train.run.launch import Launch

LORA = EncoderConfig(lora=LoraConfig(rank=4))
T = torch.tensor([999, 749, 499, 249])
STEPS = 12


@pytest.fixture
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


def encoder_on(backbone: Backbone, config: EncoderConfig = LORA) -> NoiseEncoder:
    return build_encoder(backbone.unet, backbone.schedule, config, seed=0)


def output(encoder: NoiseEncoder, backbone: Backbone) -> Tensor:
    x0, x0_prev = torch.randn(2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.stack(encoder(x0, x0_prev, backbone.encode_text(["one", "two", "three", "four"]), T))


def disturbed(encoder: NoiseEncoder) -> NoiseEncoder:
    """As if trained: every trainable weight moved."""
    draw = torch.Generator().manual_seed(1)
    for weight in encoder.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=draw)
    return encoder


@torch.no_grad()
def test_at_the_start_it_is_the_encoder_without(backbone: Backbone):
    assert torch.equal(output(encoder_on(backbone), backbone), output(encoder_on(backbone, EncoderConfig()), backbone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_but_adapters_and_two_convolutions_is_the_generators_own(any_backbone: str, dtype: torch.dtype):
    backbone = Backbone.load(any_backbone, dtype=dtype)
    encoder = encoder_on(backbone)
    generators = {id(weight) for weight in backbone.unet.parameters()}
    named = dict(encoder.unet.named_parameters())
    own = {name for name, weight in named.items() if id(weight) not in generators}
    assert own == {name for name, weight in named.items() if weight.requires_grad}
    assert {name for name in own if ".lora_" not in name} == {
        f"{layer}.{part}" for layer in ("conv_in", "conv_out") for part in ("weight", "bias")
    }
    assert len(generators) - 4 == len(named) - len(own)
    assert all(named[name].dtype == torch.float32 for name in own)
    attentions = [name for name in own if ".lora_A." in name]
    assert len(attentions) == 4 * 2 * 4 and all(named[name].shape[0] == 4 for name in attentions)


def test_rank_alpha_and_targets_are_those_of_the_config(backbone: Backbone):
    encoder = encoder_on(backbone, EncoderConfig(lora=LoraConfig(3, 6.0, ("conv1", "ff.net.2"))))
    named = {name: weight for name, weight in encoder.named_parameters() if ".lora_A." in name}
    assert named and all(".conv1." in name or ".ff.net.2." in name for name in named)
    layer = encoder.unet.get_submodule("mid_block.resnets.0.conv1")
    assert layer.r == {"default": 3} and layer.scaling == {"default": 2.0}
    with pytest.raises(ValueError, match=r"lora\.targets: no frozen layer's name ends in 'conv_in'"):
        encoder_on(backbone, EncoderConfig(lora=LoraConfig(3, targets=("to_q", "conv_in"))))


def test_the_generator_is_not_touched_by_attaching_or_training(backbone: Backbone):
    prompt, x_t = backbone.encode_text(["a picture"] * 4), torch.randn(4, 4, 16, 16)
    before, weights = backbone.predict(x_t, prompt, T), {k: v.clone() for k, v in backbone.unet.state_dict().items()}
    encoder = disturbed(encoder_on(backbone)).train()
    output(encoder, backbone).square().mean().backward()
    optimizer = torch.optim.AdamW([weight for weight in encoder.parameters() if weight.requires_grad], lr=1e-2)
    optimizer.step()
    backbone.assert_frozen()
    after = backbone.unet.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(backbone.predict(x_t, prompt, T), before)


@pytest.mark.parametrize("of_generator", [True, False])
def test_gradient_checkpointing_of_one_is_not_the_others(backbone: Backbone, of_generator: bool):
    if of_generator:
        backbone.unet.enable_gradient_checkpointing()
    encoder = encoder_on(backbone)
    if not of_generator:
        apply_memory_options(encoder.unet, EncoderConfig(gradient_checkpointing=True))
    assert backbone.unet.is_gradient_checkpointing is of_generator
    assert encoder.unet.is_gradient_checkpointing is not of_generator


@torch.no_grad()
def test_merged_weights_are_a_stock_unet_that_computes_the_same(backbone: Backbone):
    encoder = disturbed(encoder_on(backbone))
    generator = {name: weight.clone() for name, weight in backbone.unet.state_dict().items()}
    plain = copy.deepcopy(encoder.unet)
    merge(plain, Storage("float32"))
    stock = NoiseEncoder.from_generator(backbone.unet, backbone.schedule)
    stock.unet.load_state_dict(plain.state_dict(), strict=True)
    expected = output(encoder, backbone)
    assert (output(stock, backbone) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected - output(encoder_on(backbone), backbone)).abs().max() > 1e-2 * expected.abs().max()
    assert all(torch.equal(weight, generator[name]) for name, weight in backbone.unet.state_dict().items())


@torch.no_grad()
def test_a_stored_adapter_comes_back_exactly(backbone: Backbone, tmp_path: Path):
    encoder = disturbed(encoder_on(backbone, EncoderConfig(lora=LoraConfig(4, alpha=2.0))))
    save_adapter(encoder.unet, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 2 * sum(weight.nbytes for weight in encoder.parameters() if weight.requires_grad)
    other = NoiseEncoder.from_generator(backbone.unet, backbone.schedule, shared=True)
    load_adapter(other.unet, tmp_path)
    assert torch.equal(output(other, backbone), output(encoder, backbone))


def test_every_start_has_the_same_adapters_and_leaves_the_random_state(backbone: Backbone):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = encoder_on(backbone), NoiseEncoder.from_generator(backbone.unet, backbone.schedule, shared=True)
    torch.manual_seed(5)
    add_lora(second.unet, LORA.lora, seed=0)
    assert torch.equal(torch.rand(1), expected)
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("options", [("--encoder.lora.rank=-1",), ("--encoder.lora.rank=4", "--encoder.lora.alpha=0")])
def test_impossible_adapters_are_refused(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises((ValueError, SystemExit)) as caught:
        parse(TurboEditConfig, ["--run.folder=x", "--data.shards=x", "--generator.path=x", *options])
    assert "lora.rank" in str(caught.value) + capsys.readouterr().err


def test_mixed_weights_without_autocast_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises((ValueError, SystemExit)) as caught:
        parse(TurboEditConfig, ["--run.folder=x", "--data.shards=x", "--generator.path=x", "--encoder.lora.rank=4"])
    assert "set run.mixed_precision bf16" in str(caught.value) + capsys.readouterr().err


def train(folder: Path, backbone: str, *options: str) -> list[float]:
    """Losses of a run on random latents, which lie beside its folder."""
    words = {
        "run.folder": folder,
        "run.global_batch": 4,
        "run.micro_batch": 4,
        "data.shards": folder.parent / "shards",
        "data.workers": 0,
        "generator.path": backbone,
        "generator.dtype": "float32",
        "optim.lr": 1e-2,
        "ema.decay": 0.9,
        "log.log_every": 1,
        "log.preview_samples": 2,
    }
    config = parse(TurboEditConfig, [*(f"--{name}={value}" for name, value in words.items()), *options])
    launch = Launch(config.run)
    generator = load_generator(config.generator, launch.device)
    if not Path(config.data.shards).exists():
        write_random_shards(Path(config.data.shards), generator, num_samples=16)
    before = {name: weight.clone() for name, weight in generator.backbone.unet.state_dict().items()}
    task = TurboEditTask(config, launch.device, generator)
    fit(task, ShardDataset(config.data.shards, task.fields), config, launch)
    generator.backbone.assert_frozen()
    assert all(torch.equal(weight, before[name]) for name, weight in generator.backbone.unet.state_dict().items())
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(sorted((folder / "checkpoints").iterdir())[-1] / f"{name}.safetensors")


def test_a_run_with_adapters_starts_as_a_full_one_learns_and_resumes(tiny_backbone: str, tmp_path: Path):
    lora = "--encoder.lora.rank=8"
    full = train(tmp_path / "full", tiny_backbone, "--run.steps=1")
    whole = train(tmp_path / "whole", tiny_backbone, f"--run.steps={STEPS}", lora)
    train(tmp_path / "parts", tiny_backbone, f"--run.steps={STEPS // 2}", lora)
    parts = train(tmp_path / "parts", tiny_backbone, f"--run.steps={STEPS}", lora)
    assert whole[0] == full[0]
    assert sum(whole[-5:]) < 0.9 * sum(whole[:5])
    assert parts == whole
    for name in ("model", "ema"):
        mine, theirs = weights(tmp_path / "parts", name), weights(tmp_path / "whole", name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
