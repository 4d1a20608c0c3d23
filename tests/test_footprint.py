"""Counts on tensors without data against what autograd and the allocator really hold; FLOP against known figures."""

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from data.jobs.command import parse
from models.backbone import Backbone, freeze
from models.clip import ImageTokens
from models.value_mapper import Modulation
from scripts.bench.random_backbones import SDXL, sdxl_unet_config
from train.method import PlanParts
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.stylediffusion.plan import PLAN as STYLEDIFFUSION
from train.methods.stylediffusion.task import StyleDiffusionTask
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.plan import PLAN as TURBOEDIT
from train.methods.turboedit.task import TurboEditTask
from train.planning.flop import executed_flop, model_flop
from train.planning.footprint import BalancedRandom, CudaAutocast, Footprint, count_flop, footprint
from train.planning.meta_models import MetaModels, PaddedAlike
from train.rng import StepRandom
from train.task import Batch, Task, critic_of

STUDENT = "models/miniature/student"
CLIP = "models/miniature/clip"
SAMPLES = 4


def turboedit(backbone: str, *options: str) -> TurboEditConfig:
    required = ["--run.folder=unused", "--data.shards=unused", f"--generator.path={backbone}"]
    return parse(TurboEditConfig, [*required, "--generator.dtype=float32", *options])


def stylediffusion(backbone: str, *options: str) -> StyleDiffusionConfig:
    required = ["--run.folder=unused", "--data.shards=unused", f"--backbone.path={backbone}", "--backbone.num_steps=4"]
    small = [f"--mapper.clip={CLIP}", "--mapper.width=8", "--mapper.heads=2", "--objective.attention_side=8"]
    return parse(StyleDiffusionConfig, [*required, *small, "--backbone.dtype=float32", *options])


def real_turboedit(config: TurboEditConfig) -> tuple[TurboEditTask, Batch]:
    task = TurboEditTask(config, "cpu")
    side = task.backbone.unet.config.sample_size
    batch = {"latent": torch.randn(SAMPLES, 4, side, side), "caption": ["a red circle"] * SAMPLES}
    return task, batch | {"info": [{"original_size": (64, 64), "crop": (0, 0, 64, 64)}] * SAMPLES}


def real_stylediffusion(config: StyleDiffusionConfig) -> tuple[StyleDiffusionTask, Batch]:
    tokens = ImageTokens.load(CLIP).shape
    task = StyleDiffusionTask(config, Backbone.load(config.backbone.path), tokens)
    batch = {"pivots": torch.randn(SAMPLES, 5, 4, 16, 16), "clip": torch.randn(SAMPLES, *tokens)}
    return task, {**batch, "caption": ["a red circle"] * SAMPLES}


def rng() -> StepRandom:
    return StepRandom(0, 0, SAMPLES, torch.arange(SAMPLES))


def loss_of(task: Any, batch: Batch, precision: str) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return torch.stack(list(task.loss(task.trainable.train(), batch, rng()).terms.values())).sum()


def bytes_saved(task: Any, batch: Batch, precision: str) -> int:
    """What autograd saves in a real forward pass, by address, beside weights and batch."""
    critics = [critic.module for critic in [critic_of(task)] if critic]
    modules = (task.trainable, *critics, *task.backbone.modules())
    there = [w for module in modules for w in (*module.parameters(), *module.buffers())]
    there += [x for x in batch.values() if isinstance(x, Tensor)]
    kept: list[weakref.ref] = []  # a branch of the graph that nothing needs ends within the forward pass

    def keep(tensor: Tensor) -> Tensor:
        kept.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(task, batch, precision)
    addresses = {x.untyped_storage().data_ptr() for x in there}
    saved = {storage.data_ptr(): storage.nbytes() for known in kept if (storage := known()) is not None}
    assert loss.requires_grad
    return sum(size for address, size in saved.items() if address not in addresses)


CHECKPOINTING = ("--encoder.gradient_checkpointing={}", "--generator.gradient_checkpointing={}")
CASES = [
    pytest.param(
        ["--run.mixed_precision=" + precision, CHECKPOINTING[0].format(f), CHECKPOINTING[1].format(g)],
        id=f"{precision}, checkpointing of F {f}, of G {g}",
    )
    for precision, f, g in itertools.product(("no", "bf16"), ("false", "true"), ("false", "true"))
]


def check_counts(config: Any, parts: PlanParts, real: tuple[Any, Batch]) -> None:
    planned, precision = parts.task(config), config.run.mixed_precision
    counted = footprint(planned.task, planned.batch(SAMPLES), rng(), precision, "cpu")
    assert counted == footprint(*real, rng(), precision, "cpu")
    assert counted.saved == bytes_saved(*real, precision)
    assert counted.peak >= counted.saved > 0


@pytest.mark.parametrize("options", [CASES[-1]])
def test_counted_bytes_are_those_that_autograd_saves(tiny_backbone: str, options: Sequence[str]):
    config = turboedit(tiny_backbone, "--objective.own_share=0.5", *options)
    check_counts(config, TURBOEDIT, real_turboedit(config))


@pytest.mark.long
@pytest.mark.parametrize("options", CASES)
def test_counted_bytes_are_those_that_autograd_saves_in_the_miniature(options: Sequence[str]):
    config = turboedit(STUDENT, *options)
    check_counts(config, TURBOEDIT, real_turboedit(config))


@pytest.fixture(scope="module")
def without_options(tiny_backbone: str) -> Footprint:
    planned = TURBOEDIT.task(turboedit(tiny_backbone, "--run.mixed_precision=bf16"))
    return footprint(planned.task, planned.batch(SAMPLES), rng(), "bf16", "cpu")


TERMS = [
    *("--objective.known_noise_weight=1", "--objective.moments_weight=1", "--objective.spectrum_weight=1"),
    *("--objective.perceptual_weight=1", "--objective.score_weight=1"),
    "--objective.timestep_weights=balanced",
]


@pytest.mark.parametrize("more", [["--generator.dtype=bfloat16"], ["--objective.space=pixel"], TERMS])
def test_counted_bytes_follow_the_options(
    tiny_backbone: str, tiny_sd_backbone: str, without_options: Footprint, more: list[str]
):
    options = ["--run.mixed_precision=bf16", f"--objective.score_teacher={tiny_sd_backbone}", *more]
    task, batch = real_turboedit(turboedit(tiny_backbone, *options))
    planned = TURBOEDIT.task(turboedit(tiny_backbone, *options))
    counted = footprint(planned.task, planned.batch(SAMPLES), rng(), "bf16", "cpu")
    assert counted.saved == bytes_saved(task, batch, "bf16")
    assert counted != without_options


@pytest.mark.parametrize(("precision", "checkpointing"), [("no", "false"), ("bf16", "true")])
def test_counted_bytes_of_stylediffusion(tiny_sd_backbone: str, precision: str, checkpointing: str):
    config = stylediffusion(
        tiny_sd_backbone, f"--run.mixed_precision={precision}", f"--backbone.gradient_checkpointing={checkpointing}"
    )
    check_counts(config, STYLEDIFFUSION, real_stylediffusion(config))


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_counted_peak_is_that_of_the_allocator(checkpointing: str):
    options = [option.format(checkpointing) for option in CHECKPOINTING]
    config = turboedit(STUDENT, *options)
    task, batch = real_turboedit(config)
    loss_of(task, batch, "no").backward()  # gradients, which are no part of the peak, are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss_of(task, batch, "no").backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    planned = TURBOEDIT.task(config)
    counted = footprint(planned.task, planned.batch(SAMPLES), rng(), "no", "cpu")
    assert max(itertools.accumulate(changes)) == pytest.approx(counted.peak, rel=0.1)


@pytest.mark.long
def test_checkpointing_saves_memory_for_operations(tiny_backbone: str):
    def counted(*options: str) -> Any:
        config = turboedit(tiny_backbone, "--objective.own_share=0", *options)
        planned = TURBOEDIT.task(config)
        return footprint(planned.task, planned.batch(SAMPLES), rng(), "no"), config

    plain, config = counted()
    least, recomputing = counted(*(option.format("true") for option in CHECKPOINTING))
    assert least.saved < plain.saved and least.peak < plain.peak
    executed = executed_flop(TURBOEDIT, config)
    assert executed_flop(TURBOEDIT, recomputing).total > 1.1 * executed.total
    assert model_flop(TURBOEDIT, recomputing) == model_flop(TURBOEDIT, config) == executed


def test_flop_by_hand():
    x, layer = torch.randn(3, 5), nn.Linear(5, 7)
    found = count_flop(lambda: layer(x).sum())
    assert (found.forward, found.backward) == (2 * 3 * 5 * 7, 2 * 3 * 5 * 7)  # x needs no gradient
    q, k, v = (torch.randn(2, 4, length, 8, requires_grad=True) for length in (6, 9, 9))
    attention = count_flop(lambda: F.scaled_dot_product_attention(q, k, v).sum())
    one = 2 * 2 * 4 * 6 * 9 * 8
    assert (attention.forward, attention.backward) == (2 * one, 5 * one)  # Q K^T is computed again in the backward pass


@pytest.mark.parametrize("own_share", [pytest.param(0.0, marks=pytest.mark.long), 0.25])
def test_flop_of_a_step_is_the_mean_over_its_draws(tiny_backbone: str, own_share: float):
    config = turboedit(tiny_backbone, f"--objective.own_share={own_share}")
    task, batch = real_turboedit(config)
    prompt, t, x = task.backbone.encode_text(batch["caption"]), torch.full((SAMPLES,), 999), batch["latent"]

    @torch.no_grad()
    def forward(run: Callable[[], Any]) -> float:
        return count_flop(lambda: (run(), torch.zeros(()))[1]).total / SAMPLES

    text = forward(lambda: task.backbone.encode_text(batch["caption"]))
    f = forward(lambda: task.trainable(x, x, prompt, t))
    g = forward(lambda: task.generator.predict_x0(x, prompt, t))
    own = (0 + 1 + 2 + 3) / 4  # steps of F and G before each of the four timesteps
    simulated = (1 - own_share) * 0.75 * g + own_share * own * (f + g)
    found = executed_flop(TURBOEDIT, config)
    assert found.forward == pytest.approx(text + f + g + simulated, rel=1e-6)
    noisy = x.clone().requires_grad_()
    of_f = count_flop(lambda: torch.cat(task.trainable(x, x, prompt, t)).sum()).backward / SAMPLES
    of_g = count_flop(lambda: task.generator.predict_x0(noisy, prompt, t).sum()).backward / SAMPLES
    assert found.backward == pytest.approx(of_f + of_g, rel=1e-6)


def test_flop_of_own_latents_are_those_of_their_steps(tiny_sd_backbone: str):
    options = ("--objective.own_share={}", "--objective.own_steps=3")
    none, half = (
        executed_flop(STYLEDIFFUSION, stylediffusion(tiny_sd_backbone, options[0].format(share), options[1]))
        for share in (0.0, 0.5)
    )
    task, batch = real_stylediffusion(stylediffusion(tiny_sd_backbone))
    prompt, null = task._prompts(batch)
    steps, x = torch.ones(SAMPLES, dtype=torch.long), batch["pivots"][:, 1]

    @torch.no_grad()
    def moved() -> Tensor:
        modulation = Modulation(*task.trainable(batch["clip"], task.step.timesteps(steps), prompt.embeds))
        return task.step.advance(x, steps, prompt, null, modulation).sum()

    away = sum(min(count, step) for count in (1, 2, 3) for step in range(4)) / 12  # mean over counts and steps
    one = count_flop(moved).total / SAMPLES
    assert half.forward - none.forward == pytest.approx(0.5 * away * one, rel=0.02)
    assert half.backward == none.backward


@pytest.mark.long
def test_flop_of_sdxl_are_the_known_figures():
    """design.md: forward 1.59 TFLOP a sample at 512 px, trained 4.71, frozen to its input 3.17; 2.567 B weights."""
    meta = MetaModels()
    with meta.mode:
        unet = UNet2DConditionModel(**sdxl_unet_config(SDXL))
        x, embeds = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 2048)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}

    def loss() -> Tensor:
        return unet(x, torch.tensor([999]), encoder_hidden_states=embeds, added_cond_kwargs=added).sample.sum()

    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(2.567e9, rel=1e-3)
    trained = count_flop(loss)
    assert trained.forward == pytest.approx(1.59e12, rel=0.02)
    assert trained.total == pytest.approx(4.71e12, rel=0.02)
    freeze(unet)
    x.requires_grad_()
    assert count_flop(loss).total == pytest.approx(3.17e12, rel=0.02)


def test_balanced_draws_come_as_often_as_they_should():
    draws = BalancedRandom(40)
    index, own = draws.integers("timestep", 4), draws.uniform("own") < 0.3
    assert [int(((index == i) & own).sum()) for i in range(4)] == [3, 3, 3, 3]


KEYS = ("AutocastCUDA", "AutocastCPU")


class Unlike(TorchFunctionMode):
    """Finds functions that get bf16 tensors under autocast and that CUDA's autocast treats otherwise than the CPU's."""

    def __init__(self) -> None:
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        names = torch._C._dispatch_get_all_op_names()
        ruled = [{name.removeprefix("aten::").split(".")[0] for name in names if has(name, key)} for key in KEYS]
        self.names = ruled[0] ^ ruled[1]
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        name = "upsample_nearest2d" if name == "interpolate" else name
        bf16 = any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in args)
        if name in self.names and bf16 and torch.is_autocast_enabled("cpu"):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def losses(tiny_backbone: str, tiny_sd_backbone: str) -> list[tuple[Task, Batch]]:
    options = ("--run.mixed_precision=bf16",)
    of_turboedit = real_turboedit(turboedit(tiny_backbone, "--generator.dtype=bfloat16", *options))
    return [of_turboedit, real_stylediffusion(stylediffusion(tiny_sd_backbone, *options))]


def test_cuda_rules_know_every_function_that_the_methods_use(tiny_backbone: str, tiny_sd_backbone: str):
    unruled, ruled = Unlike(), Unlike()
    for task, batch in losses(tiny_backbone, tiny_sd_backbone):
        with unruled:
            loss_of(task, batch, "bf16")
        with ruled, CudaAutocast():
            loss_of(task, batch, "bf16")
    assert {"group_norm", "layer_norm"} <= unruled.found  # only trained networks are under autocast
    assert ruled.found == set()


@pytest.mark.parametrize("precision", [pytest.param("no", marks=pytest.mark.long), "bf16"])
def test_counts_for_a_gpu_keep_norms_in_float32(tiny_backbone: str, precision: str):
    options = [f"--run.mixed_precision={precision}", *(option.format("true") for option in CHECKPOINTING)]
    options.append("--objective.own_share=0")
    planned = TURBOEDIT.task(turboedit(tiny_backbone, *options))
    cpu, cuda = (
        footprint(planned.task, planned.batch(SAMPLES), rng(), precision, device)  # type: ignore[arg-type]
        for device in ("cpu", "cuda")
    )
    assert (cuda.peak > 1.05 * cpu.peak) == (precision == "bf16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: compares with its autograd and allocator")
@pytest.mark.parametrize("options", CASES)
def test_counted_bytes_are_those_of_a_gpu(options: Sequence[str]):
    config = turboedit(STUDENT, "--generator.dtype=bfloat16", *options)
    task = TurboEditTask(config, "cuda")
    batch = {"latent": torch.randn(SAMPLES, 4, 16, 16, device="cuda"), "caption": ["a red circle"] * SAMPLES}
    draws = StepRandom(0, 0, SAMPLES, torch.arange(SAMPLES), "cuda")
    real = footprint(task, batch, draws, config.run.mixed_precision)
    planned = TURBOEDIT.task(config)
    counted = footprint(planned.task, planned.batch(SAMPLES), rng(), config.run.mixed_precision)
    assert counted.saved == pytest.approx(real.saved, rel=0.02)  # kernels pad what they keep beside the large tensors
    assert counted.peak == pytest.approx(real.peak, rel=0.05)


@pytest.mark.parametrize("batch_first", [True, False])
def test_sequences_without_data_are_padded_without_any(batch_first: bool):
    """As Z-Image does with its pictures and captions; torch alone makes gigabytes of zeros for it."""
    shapes, meta = ((3, 2), (5, 2)), MetaModels()
    with PaddedAlike():
        found = pad_sequence([meta.tensor(*shape) for shape in shapes], batch_first, padding_value=1.0)
        real = pad_sequence([torch.zeros(shape) for shape in shapes], batch_first, padding_value=1.0)
    assert isinstance(found, FakeTensor) and not isinstance(real, FakeTensor) and found.shape == real.shape
    assert not isinstance(pad_sequence([meta.tensor(*shape) for shape in shapes]), FakeTensor), (
        "torch pads it itself now"
    )
