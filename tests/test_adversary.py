"""TurboEdit's adversary against a naive restatement: D's loss, F's term and its gradient, the steps before it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data.jobs.command import parse
from tests.test_footprint import check_counts, real_turboedit
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.features import encoder_features
from train.methods.turboedit.plan import PLAN
from train.methods.turboedit.task import TurboEditTask
from train.planning.footprint import flop
from train.rng import StepRandom
from train.task import StepLoss

BATCH, WEIGHT, START = 4, 0.5, 3
CAPTIONS = [f"a circle number {i} on grass" for i in range(BATCH)]
ON = (f"--objective.adversary.weight={WEIGHT}", f"--objective.adversary.start={START}")


def config_of(backbone: str, *options: str) -> TurboEditConfig:
    required = ["--run.folder=unused", "--data.shards=unused", f"--generator.path={backbone}"]
    return parse(TurboEditConfig, [*required, "--generator.dtype=float32", *options])


def make_task(backbone: str, *options: str) -> TurboEditTask:
    return TurboEditTask(config_of(backbone, *options), "cpu")


def random_numbers(step: int = START) -> StepRandom:
    return StepRandom(7, step, BATCH, torch.arange(BATCH))


@pytest.fixture(scope="module")
def batch() -> dict[str, object]:
    latent = torch.randn(BATCH, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    info = {"original_size": (64, 64), "crop": (0, 0, 64, 64)}
    return {"latent": latent, "caption": CAPTIONS, "info": [info] * BATCH, "rows": torch.arange(BATCH)}


def gradients(module: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in module.parameters() if weight.grad is not None]


def maps_of_the_whole_unet(task: TurboEditTask, x_t: Tensor, t: Tensor) -> list[Tensor]:
    """What the last layer of each down block, before it samples down, gives while the whole UNet is evaluated."""
    found: list[Tensor] = []
    blocks = task.backbone.unet.down_blocks
    layers = [(block.attentions if hasattr(block, "attentions") else block.resnets)[-1] for block in blocks]
    hooks = [
        layer.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    task.backbone.predict(x_t, task.backbone.encode_text(CAPTIONS), t)
    for hook in hooks:
        hook.remove()
    return found


def naive_logits(task: TurboEditTask, z: Tensor, step: int) -> list[Tensor]:
    """D's logits with the draws of a step, by the schedule's definition and the heads' layers."""
    rng = random_numbers(step)
    t = torch.full((BATCH,), 249)
    abar = task.schedule.alphas_cumprod[249].float()
    x_t = abar.sqrt() * z + (1 - abar).sqrt() * rng.normal("adversary", z.shape[1:])
    heads = task.adversary.heads.heads
    return [head(feature) for head, feature in zip(heads, maps_of_the_whole_unet(task, x_t, t), strict=True)]


def estimate(task: TurboEditTask, batch: dict, step: int) -> Tensor:
    """G's estimate of x0 in the loss of a step, with its graph."""
    rng, x0, prompt = random_numbers(step), batch["latent"], task.backbone.encode_text(CAPTIONS)
    index = rng.integers("timestep", len(task.timesteps))
    t = task.timesteps[index]
    previous = task.previous_reconstruction(task.trainable, x0, prompt, index, rng)
    mean, logvar = task.trainable(x0, previous, prompt, t)
    noise = mean + logvar.exp().sqrt() * rng.normal("posterior", x0.shape[1:])
    return task.generator.predict_x0(task.schedule.add_noise(previous, noise, t), prompt, t)


def test_features_are_those_of_the_whole_unet(any_backbone: str, batch: dict):
    task = make_task(any_backbone)
    t = torch.tensor([249, 499, 749, 999])
    found = encoder_features(task.backbone, batch["latent"], task.backbone.encode_text(CAPTIONS), t)
    expected = maps_of_the_whole_unet(task, batch["latent"], t)
    assert [x.shape[1:] for x in found] == [(16, 16, 16), (32, 8, 8)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_losses_and_gradients_are_those_of_a_naive_adversary(any_backbone: str, batch: dict):
    task = make_task(any_backbone, *ON)
    x0_hat = estimate(task, batch, START)
    score = torch.stack([places.mean((1, 2, 3)) for places in naive_logits(task, x0_hat, START)]).mean(0)
    expected = torch.autograd.grad(-WEIGHT * score.mean(), list(task.trainable.parameters()), allow_unused=True)

    result = task.loss(task.trainable, batch, random_numbers())
    torch.testing.assert_close(result.terms["weighted_adversary"].detach(), -WEIGHT * score.detach().mean())
    torch.testing.assert_close(result.report["critic_fake"], score.detach())
    result.terms["weighted_adversary"].backward()
    assert gradients(task.adversary.heads) == []
    for weight, gradient in zip(task.trainable.parameters(), expected, strict=True):
        assert (weight.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-7)

    task.trainable.zero_grad(set_to_none=True)
    real, fake = naive_logits(task, batch["latent"], START), naive_logits(task, x0_hat.detach(), START)
    hinge = sum(
        (1 - true).clamp_min(0).mean() + (1 + false).clamp_min(0).mean() for true, false in zip(real, fake, strict=True)
    ) / len(real)
    assert result.critic is not None
    torch.testing.assert_close(result.critic, hinge)
    expected = torch.autograd.grad(hinge, list(task.adversary.heads.parameters()))
    result.critic.backward()
    assert gradients(task.trainable) == []
    for mine, theirs in zip(gradients(task.adversary.heads), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    assert all(weight.grad is None for module in task.backbone.modules() for weight in module.parameters())
    task.backbone.assert_frozen()


def trained_by(task: TurboEditTask, batch: dict, step: int) -> tuple[StepLoss, list[Tensor]]:
    """The loss of a step and F's gradients."""
    result = task.loss(task.trainable, batch, random_numbers(step))
    torch.stack(list(result.terms.values())).sum().backward()
    return result, gradients(task.trainable)


def test_before_its_start_d_learns_alone(tiny_backbone: str, batch: dict):
    plain, plain_gradients = trained_by(make_task(tiny_backbone), batch, START - 1)
    for step in (START - 1, START):
        task = make_task(tiny_backbone, *ON)
        result, found = trained_by(task, batch, step)
        result.critic.backward()
        assert all(head[1].weight.grad.abs().max() > 0 for head in task.adversary.heads.heads)
        if step < START:
            assert result.terms["weighted_adversary"] == 0
            assert all(torch.equal(result.terms[name], term) for name, term in plain.terms.items())
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, plain_gradients, strict=True))
        else:
            assert result.terms["weighted_adversary"] != 0


def test_half_precision_and_checkpointing_change_no_gradient_much(tiny_backbone: str, batch: dict):
    found = []
    for options in ([], ["--generator.dtype=float16"], ["--generator.gradient_checkpointing=true"]):
        task = make_task(tiny_backbone, *ON, *options)
        task.loss(task.trainable, batch, random_numbers()).terms["weighted_adversary"].backward()
        found.append(torch.cat([gradient.flatten() for gradient in gradients(task.trainable)]))
    assert (found[1] - found[0]).norm() < 0.02 * found[0].norm()
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-8)


def test_the_plan_counts_heads_activations_and_operations(tiny_backbone: str):
    config = config_of(tiny_backbone, "--objective.adversary.weight=0.1")
    planned = PLAN.task(config)
    assert planned.critic == sum(weight.numel() for weight in make_task(tiny_backbone, *ON).critic.module.parameters())
    check_counts(config, PLAN, real_turboedit(PLAN.steady(config)))
    without = PLAN.task(config_of(tiny_backbone))
    counts = [flop(x.task, x.batch(BATCH), random_numbers(), "no") for x in (planned, without)]
    assert counts[0].forward > 1.2 * counts[1].forward and counts[0].backward > 1.1 * counts[1].backward
    assert without.critic == 0


@pytest.mark.parametrize("option", ["weight=-0.1", "start=-1", "lr=0", "timesteps=[]", "timesteps=[1000]"])
def test_impossible_adversaries_are_refused(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises((ValueError, SystemExit)) as caught:
        config_of(str(tmp_path), f"--objective.adversary.{option}")
    assert f"objective.adversary.{option.split('=')[0]} is" in str(caught.value) + capsys.readouterr().err
