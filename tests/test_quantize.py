"""Frozen networks in 8 bits: what the bits stand for, gradients across them, what they hold, and training on them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from data.jobs.command import parse
from data.shards.dataset import ShardDataset
from models.backbone import Backbone
from models.options import Quantization
from models.quantized import QuantizedLinear, dequantize, quantize
from scripts.bench.random_backbones import write_random_shards
from tests.processes import run
from train.engine import fit
from train.method import Storage
from train.methods.config import LoraConfig
from train.methods.lora import load_adapter, merge, save_adapter
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import EncoderConfig, TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, build_encoder, load_generator
from train.run.launch import Launch

KINDS: tuple[Quantization, ...] = ("int8", "fp8")
LORA = EncoderConfig(lora=LoraConfig(rank=4))
T = torch.tensor([999, 499, 249])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frozen_linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    """A layer whose outputs have weights of very different sizes, one of them of zeros."""
    linear = nn.Linear(96, 5, bias).requires_grad_(False)
    linear.weight.copy_(drawn(5, 96) * torch.tensor([1.0, 1e-3, 50.0, 0.0, 1e-6])[:, None])
    return linear.to(dtype)


def by_hand(weight: Tensor, kind: Quantization) -> Tensor:
    """Each row scaled to the largest number of its kind and rounded, in double precision."""
    levels = torch.arange(-127.0, 128, dtype=torch.float64)
    if kind == "fp8":  # e4m3: exponents -6 to 8, three digits, subnormal numbers below 2^-6
        normal = torch.tensor([2.0**e * (1 + m / 8) for e in range(-6, 9) for m in range(8) if (e, m) != (8, 7)])
        positive = torch.cat([torch.arange(8) * 2.0**-9, normal]).double()
        levels = torch.cat([-positive.flip(0), positive])
    rows = []
    for row in weight.double():
        scale = row.abs().max() / levels.max()
        scale = scale if scale > 0 else torch.ones_like(scale)
        rows.append(levels[(row[:, None] / scale - levels).abs().argmin(1)] * scale)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_8_bits_are_the_nearest_of_their_kind(kind: Quantization):
    linear = frozen_linear()
    expected = by_hand(linear.weight, kind)
    restored = QuantizedLinear(linear, kind).restored(torch.float32)
    # a weight in the middle between two levels may go to either
    step = expected.abs().amax(1, keepdim=True) / (127 if kind == "int8" else 448 / 32)
    different = (restored - expected).abs() > 1e-6 * expected.abs()
    assert different.double().mean() < 0.01 and ((restored - expected).abs() <= 1.001 * step).all()
    assert QuantizedLinear(linear, kind).weight.element_size() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_restored_weight(kind: Quantization, dtype: torch.dtype, bias: bool):
    layer = QuantizedLinear(frozen_linear(dtype, bias), kind)
    stock = nn.ModuleList([layer])
    dequantize(stock, dtype)
    inputs = [drawn(3, 7, 96).to(dtype).requires_grad_() for _ in range(2)]
    outputs = [part(x) for part, x in zip((layer, stock[0]), inputs, strict=True)]
    gradients = [torch.autograd.grad(y, x, drawn(3, 7, 5, seed=1).to(dtype))[0] for x, y in zip(inputs, outputs)]
    assert type(stock[0]) is nn.Linear and torch.equal(*outputs) and torch.equal(*gradients)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_decides_the_dtype(autocast: torch.dtype):
    layer = QuantizedLinear(frozen_linear(torch.float16), "int8")
    x = drawn(3, 96).requires_grad_()
    with torch.autocast("cpu", autocast):
        y = layer(x)
    assert y.dtype == autocast
    y.float().sum().backward()
    torch.testing.assert_close(x.grad, layer.restored(torch.float32).sum(0).expand(3, 96), rtol=0.05, atol=0.2)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps beside the network's own weights."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_no_restored_weight_and_no_input(kind: Quantization):
    network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))).requires_grad_(False)
    quantize(network, kind)
    assert saved_bytes(network, drawn(2, 64).requires_grad_()) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_cross_a_quantised_generator(any_backbone: str, kind: Quantization, checkpointing: bool):
    """As through the same generator with the values that its 8 bits stand for, in float32."""
    found = []
    for name in ("float32", "float16"):
        backbone = Backbone.load(any_backbone, dtype=torch.float16)
        quantize(backbone.unet, kind)
        if name == "float32":
            dequantize(backbone.unet, torch.float32)
            backbone.unet.float()
        elif checkpointing:
            backbone.unet.train().enable_gradient_checkpointing()
        x_t = drawn(3, 4, 16, 16).requires_grad_()
        prompt = backbone.encode_text(["a red star", "grass", "a circle"])
        output = backbone.predict(x_t, prompt, T)
        found.append((output, *torch.autograd.grad(output, x_t, 1e-8 * drawn(3, 4, 16, 16, seed=1))))
    for exact, mine in zip(*found, strict=True):
        assert ((mine - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_only_linear_layers_change(any_backbone: str, kind: Quantization):
    backbone = Backbone.load(any_backbone, dtype=torch.float16)
    before = dict(backbone.unet.named_parameters())
    linear = {f"{name}.weight" for name, layer in backbone.unet.named_modules() if isinstance(layer, nn.Linear)}
    quantize(backbone.unet, kind)
    after = dict(backbone.unet.named_parameters())
    assert {name for name in before if after[name] is not before[name]} == linear
    assert all(after[name].dtype == torch.int8 for name in linear) and backbone.unet.dtype == torch.float16
    backbone.assert_frozen()


@torch.no_grad()
def test_an_encoder_of_its_own_starts_from_the_exact_weights(tiny_backbone: str):
    exact, quantised = (Backbone.load(tiny_backbone) for _ in range(2))
    mine = build_encoder(quantised.unet, quantised.schedule, EncoderConfig(), 0, "int8")
    expected = build_encoder(exact.unet, exact.schedule, EncoderConfig(), 0)
    assert not any(isinstance(layer, QuantizedLinear) for layer in mine.modules())
    assert mine.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in mine.state_dict().items())
    assert any(isinstance(layer, QuantizedLinear) for layer in quantised.unet.modules())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_lie_over_the_generators_own_8_bits(any_backbone: str, tmp_path: Path, kind: Quantization):
    backbone = Backbone.load(any_backbone)
    encoder = build_encoder(backbone.unet, backbone.schedule, LORA, 0, kind)
    theirs = {id(weight) for weight in backbone.unet.parameters()}
    assert all(weight.requires_grad != (id(weight) in theirs) for weight in encoder.parameters())
    assert all(weight.dtype == torch.float32 for weight in encoder.parameters() if weight.requires_grad)
    for weight in encoder.parameters():
        if weight.requires_grad:
            weight += 0.05 * drawn(*weight.shape)
    prompt, (x0, x0_prev) = backbone.encode_text(["one", "two", "three"]), drawn(2, 3, 4, 16, 16)
    expected = torch.stack(encoder(x0, x0_prev, prompt, T))

    save_adapter(encoder.unet, tmp_path)
    other = Backbone.load(any_backbone)
    quantize(other.unet, kind)
    again = type(encoder).from_generator(other.unet, other.schedule, shared=True)
    load_adapter(again.unet, tmp_path)
    torch.testing.assert_close(torch.stack(again(x0, x0_prev, prompt, T)), expected, rtol=0, atol=0)

    dequantize(encoder.unet, torch.float32)
    merge(encoder.unet, Storage("float32"))
    torch.testing.assert_close(torch.stack(encoder(x0, x0_prev, prompt, T)), expected, rtol=1e-4, atol=1e-4)
    assert any(isinstance(layer, QuantizedLinear) for layer in backbone.unet.modules())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    config = parse(TurboEditConfig, [*words(folder, folder / "run", tiny_backbone), "--generator.dtype=float32"])
    return write_random_shards(folder / "shards", load_generator(config.generator, "cpu"), num_samples=8)


def words(shards: Path, folder: Path, backbone: str, *more: str) -> list[str]:
    options = {
        "run.folder": folder,
        "run.global_batch": 2,
        "run.micro_batch": 2,
        "run.mixed_precision": "bf16",
        "data.shards": shards,
        "data.workers": 0,
        "generator.path": backbone,
        "optim.lr": 1e-3,
        "log.log_every": 1,
        "log.preview_every": 0,
    }
    return [*(f"--{name}={value}" for name, value in options.items()), *more]


def train(config: TurboEditConfig) -> list[float]:
    """Losses of a run; fails if a weight of G moved."""
    launch = Launch(config.run)
    task = TurboEditTask(config, launch.device)
    before = {name: weight.clone() for name, weight in task.backbone.unet.state_dict().items()}
    fit(task, ShardDataset(config.data.shards, task.fields), config, launch)
    assert all(torch.equal(weight, before[name]) for name, weight in task.backbone.unet.state_dict().items())
    return [json.loads(x)["loss"] for x in (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("rank", "kind"), [pytest.param(0, "int8", marks=pytest.mark.long), (4, "fp8")])
def test_a_training_on_8_bits_resumes_exactly(shards: Path, tiny_backbone: str, tmp_path: Path, rank: int, kind: str):
    options = [f"--generator.quantize={kind}", f"--encoder.lora.rank={rank}"]
    if rank:
        options.append("--generator.dtype=bfloat16")
    whole, half, rest = (
        train(parse(TurboEditConfig, words(shards, tmp_path / name, tiny_backbone, f"--run.steps={steps}", *options)))
        for name, steps in (("whole", 4), ("parts", 2), ("parts", 4))
    )
    assert rest == whole and half == whole[:2] and len(set(whole)) == 4


@pytest.mark.long
def test_an_export_has_the_generator_as_it_was_loaded(shards: Path, tiny_backbone: str, tmp_path: Path):
    more = ["--run.steps=1", "--generator.quantize=int8", "--generator.dtype=bfloat16", "--encoder.lora.rank=4"]
    train(parse(TurboEditConfig, words(shards, tmp_path / "run", tiny_backbone, *more)))
    run("-m", "train.export", tmp_path / "run", tmp_path / "export")
    found, whole = (Backbone.load(str(path)).unet.state_dict() for path in (tmp_path / "export", tiny_backbone))
    for name, weight in whole.items():  # what is stored may have been rounded to 16 bits, and not to 8
        torch.testing.assert_close(found[name], weight, rtol=2**-8, atol=1e-6)
    run("-m", "train.export", tmp_path / "run", tmp_path / "apart", "--lora", "apart")
    assert 'quantize(backbone.unet, "int8")' in (tmp_path / "apart" / "README.md").read_text()


@pytest.mark.parametrize(("dtype", "precision"), [("float16", "bf16"), ("bfloat16", "fp16")])
def test_what_a_cpu_cannot_mix_is_told(tiny_backbone: str, tmp_path: Path, dtype: str, precision: str):
    more = [f"--generator.dtype={dtype}", f"--run.mixed_precision={precision}", "--encoder.lora.rank=4"]
    config = parse(TurboEditConfig, words(tmp_path, tmp_path, tiny_backbone, *more))
    with pytest.raises(ValueError, match=f"adapters lie over {dtype} weights; .* set generator.dtype float32"):
        METHOD.load(config, torch.device("cpu"))


def test_the_plan_counts_the_8_bits(tiny_backbone: str, tmp_path: Path):
    more = ["--generator.dtype=float16", "--generator.quantize=int8", "--encoder.lora.rank=4"]
    config = parse(TurboEditConfig, words(tmp_path, tmp_path, tiny_backbone, *more))
    planned = METHOD.plan().task(config).frozen["G"]
    real, whole = TurboEditTask(config, "cpu").backbone.unet, Backbone.load(tiny_backbone, dtype=torch.float16).unet
    held, before = (sum(weight.nbytes for weight in (*unet.parameters(), *unet.buffers())) for unet in (real, whole))
    assert planned == held < 0.8 * before


def test_the_plan_counts_no_text_encoders_with_cached_prompts(tiny_backbone: str, tmp_path: Path):
    config = parse(TurboEditConfig, words(tmp_path, tmp_path, tiny_backbone, "--generator.cached_prompts=true"))
    assert METHOD.plan().task(config).frozen["text"] == 0


@pytest.mark.parametrize("name", ["generator.compile", "encoder.compile"])
def test_8_bits_are_not_compiled(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str):
    more = [f"--{name}=true", "--encoder.lora.rank=4", "--generator.quantize=int8"]
    with pytest.raises(SystemExit) as stop:
        parse(TurboEditConfig, words(tmp_path, tmp_path, "nowhere", *more))
    assert stop.value.code and f"leave out {name} or generator.quantize" in capsys.readouterr().err


def test_an_unknown_kind_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with pytest.raises(SystemExit) as stop:
        parse(TurboEditConfig, words(tmp_path, tmp_path, "nowhere", "--generator.quantize=int4"))
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "generator.quantize" in told and "int4" in told and "int8" in told
