"""Latents that the mapper's own sampling makes, and whole inversions, against one image and one step at a time."""

import pytest
import torch
from torch import Tensor

from data.jobs.command import parse
from eval.metrics.pixels import psnr
from models.attention import controlled
from models.attention_edits import injection
from models.backbone import Backbone
from models.ddim import matching, predict_noise
from models.value_mapper import Modulation
from train.methods.stylediffusion.config import AmortisedObjective, StyleDiffusionConfig
from train.methods.stylediffusion.drift import measure_drift
from train.methods.stylediffusion.task import StyleDiffusionTask
from train.rng import StepRandom
from train.task import Batch

STEPS, SAMPLES = 4, 12
TOKENS = (5, 16)


@pytest.fixture(scope="module")
def backbone(tiny_sd_backbone: str) -> Backbone:
    return Backbone.load(tiny_sd_backbone)


@pytest.fixture(scope="module")
def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    pivots, tokens = (torch.randn(SAMPLES, *shape, generator=draw) for shape in ((STEPS + 1, 4, 16, 16), TOKENS))
    return {"pivots": pivots, "clip": tokens, "caption": [f"{number} red circles" for number in range(SAMPLES)]}


def make_task(backbone: Backbone, *options: str) -> StyleDiffusionTask:
    """A task whose mapper already does something."""
    required = ["--run.folder=unused", "--data.shards=unused", f"--backbone.num_steps={STEPS}"]
    small = ["--mapper.width=8", "--mapper.heads=2", "--mapper.depth=1", "--objective.attention_side=8"]
    config = parse(StyleDiffusionConfig, [*required, *small, "--objective.guidance=3", *options])
    task = StyleDiffusionTask(config, backbone, TOKENS)
    draw = torch.Generator().manual_seed(1)
    for parameter in task.trainable.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return task


def rng(rows: slice = slice(None)) -> StepRandom:
    return StepRandom(0, 3, SAMPLES, torch.arange(SAMPLES)[rows])


def part(batch: Batch, rows: slice) -> Batch:
    return {name: values[rows] for name, values in batch.items()}


@torch.no_grad()
def sampled(
    task: StyleDiffusionTask, batch: Batch, row: int, start: int, end: int, mapped: bool = True
) -> list[Tensor]:
    """The latents [1, 4, h, w] from a pivot of one image to level `end`, one evaluation of the UNet at a time."""
    backbone, ddim = task.backbone, task.ddim
    prompt = backbone.encode_text([batch["caption"][row]])
    levels = [batch["pivots"][row : row + 1, start]]
    for step in range(start, end):
        x, t = levels[-1], ddim.timesteps[step]
        unconditional = predict_noise(backbone, x, t, matching(backbone.encode_text([""]), prompt))
        tokens = batch["clip"][row : row + 1]
        values = Modulation(*task.trainable(tokens, torch.tensor([t]), prompt.embeds))(prompt.embeds)
        with controlled(backbone.unet, [injection(values, "values")] if mapped else []):
            conditional = predict_noise(backbone, x, t, prompt)
        noise = unconditional + 3.0 * (conditional - unconditional)
        levels.append(ddim.move(x, noise, step, step + 1))
    return levels


def own_latents(task: StyleDiffusionTask, batch: Batch, steps: Tensor, draws: StepRandom) -> Tensor:
    prompt, null = task._prompts(batch)
    return task.own_latents(task.trainable, batch, steps, prompt, null, draws)


def test_own_latents_are_sampled_from_earlier_pivots(backbone: Backbone, batch: Batch):
    share, most = 0.75, 3
    task = make_task(backbone, f"--objective.own_share={share}", f"--objective.own_steps={most}")
    steps, drawn = torch.arange(SAMPLES) % STEPS, rng().uniform("own").tolist()
    found = own_latents(task, batch, steps, rng())
    away = set()
    for row, (step, value) in enumerate(zip(steps.tolist(), drawn, strict=True)):
        count = min(step, 1 + int(value / share * most)) if value < share else 0
        away.add(count)
        expected = sampled(task, batch, row, step - count, step)[-1][0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
    assert away == {0, 1, 2, 3}  # every case has come


def test_parts_of_a_batch_have_the_latents_of_the_whole(backbone: Backbone, batch: Batch):
    task, steps = make_task(backbone, "--objective.own_share=0.5"), torch.arange(SAMPLES) % STEPS
    whole = own_latents(task, batch, steps, rng())
    halves = [slice(0, SAMPLES // 2), slice(SAMPLES // 2, SAMPLES)]
    parts = [own_latents(task, part(batch, rows), steps[rows], rng(rows)) for rows in halves]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_without_a_share_the_loss_is_that_of_the_pivots(backbone: Backbone, batch: Batch):
    """Bit for bit the objective at the pivots, whatever `own_steps` is."""
    task = make_task(backbone, "--objective.own_share=0", "--objective.own_steps=2")
    found = task.loss(task.trainable, batch, rng())
    steps, rows = rng().integers("step", STEPS), torch.arange(SAMPLES)
    x, target = batch["pivots"][rows, steps], batch["pivots"][rows, steps + 1]
    prompt, null = task._prompts(batch)
    reference = task.step.reference(x, x, steps, prompt, null)
    modulation = Modulation(*task.trainable(batch["clip"], task.step.timesteps(steps), prompt.embeds.float()))
    rec, attention = task.step.losses(x, target, steps, prompt, reference, modulation)
    assert torch.equal(found.terms["rec"], rec.mean()) and torch.equal(found.terms["attention"], attention.mean())


def test_the_loss_at_own_latents_leads_to_the_pivots(backbone: Backbone, batch: Batch):
    task = make_task(backbone, "--objective.own_share=1")
    found = task.loss(task.trainable, batch, rng())
    steps = rng().integers("step", STEPS)
    prompt, null = task._prompts(batch)
    x = own_latents(task, batch, steps, rng())
    modulation = Modulation(*task.trainable(batch["clip"], task.step.timesteps(steps), prompt.embeds))
    after = task.step.advance(x, steps, prompt, null, modulation)
    targets = batch["pivots"][torch.arange(SAMPLES), steps + 1]
    torch.testing.assert_close(
        found.report["step_error"], (after - targets).square().mean((1, 2, 3)), rtol=1e-4, atol=0
    )
    sum(found.terms.values()).backward()
    assert all(weight.grad is not None for weight in task.trainable.parameters())


def test_drift_is_that_of_a_plain_loop(backbone: Backbone, batch: Batch):
    task = make_task(backbone)
    images = part(batch, slice(0, 2))
    for mapped in (True, False):
        found = measure_drift(task.step, task.trainable if mapped else None, images)
        for row in range(2):
            latents = sampled(task, batch, row, 0, STEPS, mapped)
            pivots = batch["pivots"][row]
            errors = torch.stack([(x[0] - pivots[i]).square().mean().sqrt() for i, x in enumerate(latents)])[1:]
            torch.testing.assert_close(found.errors[:, row], errors, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.growth[:, row], errors / errors[0], rtol=1e-3, atol=0)
            pictures = [backbone.decode(x).clamp(-1, 1) for x in (latents[-1], pivots[-1:])]
            torch.testing.assert_close(found.psnr[row : row + 1], psnr(*pictures), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("name", "value"), [("own_share", 1.5), ("own_share", -0.1), ("own_steps", 0)])
def test_options_that_cannot_be_meant_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=rf"objective\.{name} is {value}, expected"):
        AmortisedObjective(**{name: value})
