"""`python -m scripts.bench_full_size` as a user runs it, a tenth as wide on a CPU. No time is asserted."""

import json
from typing import Any

import pytest
import torch

from models.turboedit_pipeline import TurboEditPipeline
from scripts.bench.full_size import flop_per_sample, guarded
from scripts.bench.latency import Graphed, Networks, untrained_pipeline
from scripts.bench.random_backbones import CAPTION, REDUCED, SDXL, sdxl_generator
from tests.processes import run

TARGET = "a small green circle"


def bench(select: str) -> dict[str, Any]:
    options = ("--device=cpu", f"--select=[{select}]", "--micro_batches=[1]", "--steps=1", "--warmup=0")
    done = run("-m", "scripts.bench_full_size", *options)
    assert done.stdout.startswith("reduced on cpu, precision no")
    return {result["name"]: result["value"] for result in json.loads(done.stdout.splitlines()[-1])["results"]}


@pytest.mark.long
def test_a_training_is_measured():
    found = bench("full+checkpointing")
    name = "full+checkpointing, micro batch 1"
    assert set(found) == {f"{name}: step", f"{name}: rate", f"{name}: work"} and min(found.values()) > 0


@pytest.mark.long
def test_adapters_compilation_and_latency_are_measured():
    found = bench("lora+checkpointing+compile,latency")
    for name in ("lora+checkpointing+compile, micro batch 1: step", "pipeline: edit", "networks + compile: inversion"):
        assert found[name] > 0


@pytest.mark.long
def test_a_sample_s_work_at_full_size():
    """Counted by hand it is 9.1 TFLOP; with adapters F has no gradients of most weights."""
    full = flop_per_sample("full", SDXL)
    assert full == pytest.approx(9.1e12, rel=0.01)
    assert 0.8 * full < flop_per_sample("lora", SDXL) < 0.9 * full


def test_what_does_not_fit_is_no_result():
    assert guarded(lambda: torch.empty(1 << 60)) is None
    assert guarded(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="must match"):
        guarded(lambda: torch.ones(2) + torch.ones(3))


def random_pipeline(device: str) -> TurboEditPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untrained_pipeline(sdxl_generator(device, torch.float32, REDUCED, complete=True))


def walk(pipeline: TurboEditPipeline) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The inputs of Networks.invert and Networks.edit, and what the pipeline makes of them."""
    backbone = pipeline.backbone
    image = torch.rand(1, 3, backbone.image_size, backbone.image_size).to(backbone.unet.device)
    inversion = pipeline.invert(image, CAPTION)
    edited = pipeline.edit(inversion, TARGET).inversion.reconstructions[-1]
    return (backbone.encode_image(image), torch.stack(inversion.noises)), (torch.stack(inversion.noises), edited)


def prompt(pipeline: TurboEditPipeline, text: str) -> tuple[torch.Tensor, ...]:
    embedded = pipeline.backbone.encode_text([text])
    return embedded.embeds, embedded.pooled, embedded.time_ids


def test_the_networks_alone_do_what_the_pipeline_does():
    pipeline = random_pipeline("cpu")
    networks = Networks(pipeline)
    (x0, noises), (_, edited) = walk(pipeline)
    assert torch.equal(networks.invert(x0, *prompt(pipeline, CAPTION)), noises)
    assert torch.equal(networks.edit(noises, *prompt(pipeline, TARGET)), edited)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: only its work can be recorded as a graph")
def test_a_graph_does_what_the_networks_do():
    pipeline = random_pipeline("cuda")
    networks = Networks(pipeline)
    (x0, noises), (_, edited) = walk(pipeline)
    invert = Graphed(networks.invert, torch.zeros_like(x0), *prompt(pipeline, TARGET))
    edit = Graphed(networks.edit, torch.zeros_like(noises), *prompt(pipeline, CAPTION))
    torch.testing.assert_close(invert(x0, *prompt(pipeline, CAPTION)), noises, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edit(noises, *prompt(pipeline, TARGET)), edited, rtol=1e-4, atol=1e-4)
