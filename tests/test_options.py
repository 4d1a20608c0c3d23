"""Each memory and speed option against the plain run: every loss within its tolerance, and what it saves."""

import json
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from data.jobs.command import parse
from scripts.bench.choices import OPTIONS, PLAIN
from scripts.bench.options import OptionRun, measure_option
from scripts.bench.timing import loss_difference
from scripts.bench_options import bench
from tests.processes import run
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import TurboEditTask
from train.run.checkpoint import MODEL, OPTIMIZER, Checkpoints, RunProgress, read_part
from train.run.config import OptimConfig
from train.run.launch import Launch
from train.run.optim import LossScale, build_optimizer, step_if
from train.run.weights import ReplicatedWeights

STEPS = 12  # more than the 10 after which the average on the CPU is moved
LONG = 50
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install bitsandbytes")


class TinyRuns:
    """Runs of the tiny SDXL-like backbone on the same random latents."""

    def __init__(self, backbone: str, folder: Path, steps: int) -> None:
        self.backbone, self.folder, self.steps = backbone, folder, steps

    @cached_property
    def plain(self) -> OptionRun:
        """The run that the others are compared with."""
        return self.measure(PLAIN)

    def config(self, name: str) -> TurboEditConfig:
        """What the benchmark would run for an option."""
        words = {
            "run.folder": self.folder / name,
            "run.steps": self.steps + 2,
            "run.global_batch": 2,
            "run.micro_batch": 2,
            "data.shards": self.folder / "shards",
            "data.workers": 0,
            "generator.path": self.backbone,
            "generator.dtype": "float32",
            "objective.own_share": 0.5,
            "optim.lr": 1e-4,
            "log.log_every": 1,
            "log.preview_every": 0,
        }
        return parse(TurboEditConfig, [*(f"--{key}={value}" for key, value in words.items()), *OPTIONS[name]])

    def measure(self, name: str) -> OptionRun:
        return measure_option(self.config(name), "miniature", name)


@pytest.fixture(scope="module", params=[STEPS, pytest.param(LONG, marks=pytest.mark.long)])
def runs(request: pytest.FixtureRequest, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    return TinyRuns(tiny_backbone, tmp_path_factory.mktemp("options"), request.param)


@pytest.mark.parametrize(
    ("name", "tolerance", "saved", "share"),
    [
        ("checkpointing of both", 1e-5, "step_bytes", 0.7),
        ("bf16", 0.02, "step_bytes", 0.85),
        pytest.param("adamw8bit", 1e-3, "held_bytes", 0.9, marks=needs_bitsandbytes),
        ("adamw not fused", 1e-5, "held_bytes", 1.01),
        ("average on the CPU", 0.0, "held_bytes", 1.01),
        pytest.param("compile of both", 1e-4, "step_bytes", 1.0, marks=pytest.mark.long),
    ],
)
def test_losses_stay_within_the_tolerance(runs: TinyRuns, name: str, tolerance: float, saved: str, share: float):
    run = runs.measure(name)
    assert len(run.losses) == runs.steps and loss_difference(run.losses, runs.plain.losses) <= tolerance
    assert getattr(run, saved) <= share * getattr(runs.plain, saved)


def test_the_same_run_twice_measures_the_same(runs: TinyRuns):
    again = runs.measure("plain, again")
    assert again.losses == runs.plain.losses
    assert again.step_bytes == pytest.approx(runs.plain.step_bytes, rel=0.01)
    assert again.held_bytes == pytest.approx(runs.plain.held_bytes, rel=0.01)


@pytest.fixture
def eight_bit() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(128, 64)
    optimizer = build_optimizer(module, OptimConfig(kind="adamw8bit", lr=1e-2))
    return module, optimizer


def descend(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, good: bool = True) -> None:
    for step in range(steps):
        x = torch.randn(8, 128, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()
        if not good:
            for parameter in module.parameters():
                parameter.grad.fill_(float("nan"))
        step_if(torch.tensor(good), optimizer)
        optimizer.zero_grad()


@needs_bitsandbytes
def test_8_bit_moments_survive_a_checkpoint_exactly(eight_bit: tuple[nn.Linear, torch.optim.Optimizer], tmp_path: Path):
    module, optimizer = eight_bit
    descend(module, optimizer, 3)
    assert optimizer.state[module.weight]["state1"].dtype == torch.uint8
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(RunProgress(3), {MODEL: module.state_dict, OPTIMIZER: optimizer.state_dict})
    other = nn.Linear(128, 64)
    other.load_state_dict(read_part(checkpoints.path(3), MODEL))
    resumed = build_optimizer(other, OptimConfig(kind="adamw8bit", lr=1e-2))
    ReplicatedWeights(other, resumed, LossScale(torch.device("cpu"), enabled=False)).load_optimizer(
        read_part(checkpoints.path(3), OPTIMIZER)
    )
    for part in ((module, optimizer), (other, resumed)):
        descend(*part, 3)
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, other.bias)


@needs_bitsandbytes
def test_a_step_that_is_left_out_changes_no_8_bit_moment(eight_bit: tuple[nn.Linear, torch.optim.Optimizer]):
    module, optimizer = eight_bit
    descend(module, optimizer, 2)
    weight, moments = module.weight.detach().clone(), optimizer.state[module.weight]["state1"].clone()
    descend(module, optimizer, 1, good=False)
    assert torch.equal(module.weight, weight) and torch.equal(optimizer.state[module.weight]["state1"], moments)
    descend(module, optimizer, 1)
    assert module.weight.isfinite().all() and not torch.equal(module.weight, weight)


NO_BITSANDBYTES = """
import sys
assert "bitsandbytes" not in sys.modules
sys.modules["bitsandbytes"] = None
from torch import nn
from train.run.config import OptimConfig
from train.run.optim import build_optimizer
build_optimizer(nn.Linear(2, 2), OptimConfig(kind="adamw8bit"))
"""


def test_missing_bitsandbytes_names_the_cure():
    done = run("-c", NO_BITSANDBYTES, status=1)
    assert "ValueError: optim.kind adamw8bit needs bitsandbytes" in done.stderr
    assert "pip install bitsandbytes" in done.stderr


def test_fused_is_of_torchs_adamw_alone():
    with pytest.raises(ValueError, match=r"leave it null with optim\.kind adamw8bit"):
        OptimConfig(kind="adamw8bit", fused=True)


@pytest.mark.long
@pytest.mark.parametrize("runs", [STEPS], indirect=True)
def test_compiled_regions_keep_their_names_and_compile_once_for_all_numbers_of_rows(runs: TinyRuns):
    config = runs.config("compile of both")
    names = set(TurboEditTask(runs.config(PLAIN), "cpu").trainable.state_dict())
    task = TurboEditTask(config, Launch(config.run).device)
    assert set(task.trainable.state_dict()) == names
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    prompts = task.backbone.encode_text(["a"] * 6)
    graphs = []
    for rows in (6, 1, 5, 2, 4, 3, 1):
        x0, t, prompt = torch.randn(rows, 4, 16, 16), torch.full((rows,), 749), prompts[torch.arange(rows)]
        with torch.no_grad():
            task.generator.predict_x0(x0, prompt, t)
            task.trainable.eval()(x0, x0, prompt, t)
        noise = task.trainable.train()(x0, x0, prompt, t)[0]
        task.generator.predict_x0(noise, prompt, t).square().mean().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # one row is a graph of its own; no other number is
    assert graphs[1:] == [graphs[1]] * 6 and graphs[1] <= 2 * graphs[0] <= 16


@pytest.mark.long
def test_the_benchmark_prints_a_table_and_four_results_an_option():
    options = ["--device=cpu", "--batch=2", "--steps=1", "--select=[lora,F recomputed around G]"]
    done = run("-m", "scripts.bench_options", *options)
    assert "| lora |" in done.stdout and "| plain |" in done.stdout
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert len(results) == 3 * 4
    assert results["lora: held"]["ratio"] < 0.5 and results["F recomputed around G: step memory"]["ratio"] < 0.8
    assert results["F recomputed around G: loss difference"]["value"] == 0


def test_the_benchmark_names_the_options_it_knows():
    with pytest.raises(ValueError, match="--select lorra: expected some of plain, "):
        bench(select=("lorra",))
