"""TurboEdit's terms beside the paper's, each against a slow restatement with the random numbers of the same step."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.jobs.command import parse
from models.backbone import Backbone
from models.noise_encoder import NoisePosterior
from models.shapes import SizeConditioning
from tests.slow_metrics import save_random_classifier, slow_lpips_map
from tests.test_turboedit_task import (
    BATCH,
    CAPTIONS,
    UNCROPPED,
    assert_near,
    generate,
    make_task,
    random_numbers,
    simulated,
    timestep_numbers,
)
from train.method import PlannedTask
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.gaussianity import moments, spectrum
from train.methods.turboedit.known_noise import known_noise_error
from train.methods.turboedit.perceptual import crop_distance, feature_distance
from train.methods.turboedit.plan import PLAN
from train.methods.turboedit.score import score_error
from train.methods.turboedit.task import TurboEditTask
from train.methods.turboedit.weighting import EVEN_ERROR, TimestepWeights, own_share_at
from train.planning.footprint import BalancedRandom, count_flop, flop
from train.rng import StepRandom
from train.run.meters import Meters

KNOWN = ("--objective.known_noise_weight=0.1", "--objective.known_noise_share=0.4")


@pytest.fixture(scope="module")
def batch() -> dict[str, object]:
    latent = torch.randn(BATCH, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"latent": latent, "caption": CAPTIONS, "info": [UNCROPPED] * BATCH, "rows": torch.arange(BATCH)}


def part(batch: dict, rows: Tensor) -> dict[str, object]:
    """The rows of a batch as a micro batch."""
    listed = {name: [batch[name][i] for i in rows] for name in ("caption", "info")}
    return {"latent": batch["latent"][rows], "rows": rows, **listed}


def loss(task: TurboEditTask, batch: dict):
    return task.loss(task.trainable, batch, random_numbers(batch["rows"]))


# Known noise


def chosen_slowly(share: float) -> list[int]:
    """Rows of the step's global batch that have a picture of known noise: one for each whole number that is passed."""
    offset = torch.rand(1, generator=random_numbers()._generator("known_rows", "cpu"), dtype=torch.float64).item()
    return [row for row in range(BATCH) if math.floor((row + 1) * share + offset) > math.floor(row * share + offset)]


@pytest.mark.parametrize("kind", ["mse", "nll"])
def test_known_noise_is_asked_for_at_the_very_step_that_used_it(any_backbone: str, batch: dict, kind: str):
    task = make_task(any_backbone, *KNOWN, f"--objective.known_noise_loss={kind}")
    result, plain = loss(task, batch), loss(make_task(any_backbone), batch)
    drawn = random_numbers().normal("known_noise", (4, 16, 16))
    previous, rows = simulated(task, batch["latent"]), chosen_slowly(0.4)
    assert len(rows) in (3, 4)
    errors = {}
    with torch.no_grad():
        for i in rows:
            t = task.timesteps[timestep_numbers(task)[i]]
            z = generate(task.backbone, previous[i], drawn[i], CAPTIONS[i], int(t))
            prompt = task.backbone.encode_text([CAPTIONS[i]])
            posterior = task.trainable(z[None], previous[i : i + 1], prompt, t[None])
            mean, logvar = (x[0].double().numpy() for x in posterior)
            squares = (drawn[i].double().numpy() - mean) ** 2
            errors[i] = float(np.mean(squares if kind == "mse" else 0.5 * (squares / np.exp(logvar) + logvar)))
    expected = 0.1 * sum(errors.values()) / (0.4 * BATCH)
    assert result.terms["weighted_known_noise"].item() == pytest.approx(expected, rel=1e-4)
    figures, counts = result.report["known_noise"], result.report["known_rows"]
    assert torch.nonzero(counts).squeeze(1).tolist() == rows
    assert figures[rows].tolist() == pytest.approx([errors[i] / 0.4 for i in rows], rel=1e-4)
    for name, value in plain.terms.items():  # the other samples do not see them
        torch.testing.assert_close(result.terms[name], value, rtol=1e-4, atol=1e-6)


def test_known_noise_trains_mean_and_by_likelihood_variance(tiny_backbone: str, batch: dict):
    for kind, trained in (("mse", False), ("nll", True)):
        task = make_task(tiny_backbone, *KNOWN, f"--objective.known_noise_loss={kind}")
        loss(task, batch).terms["weighted_known_noise"].backward()
        gradient = task.trainable.unet.conv_out.weight.grad
        assert gradient[:4].abs().max() > 0
        assert (gradient[4:].abs().max() > 0) == trained
        assert all(weight.grad is None for module in task.backbone.modules() for weight in module.parameters())


def test_the_likelihood_is_least_at_the_true_variance():
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    logvars = torch.linspace(-2, 2, 41)
    errors = [known_noise_error(NoisePosterior(0.5 * noise, torch.full_like(noise, v)), noise, "nll") for v in logvars]
    assert logvars[torch.stack(errors).argmin()].item() == pytest.approx(math.log(0.25), abs=0.1)


def test_a_micro_batch_without_known_noise_reports_the_same_names(tiny_backbone: str, batch: dict):
    task = make_task(tiny_backbone, *KNOWN)
    without = next(i for i in range(BATCH) if i not in chosen_slowly(0.4))
    meters = Meters(task.groups, torch.device("cpu"))
    for rows in (torch.tensor([without]), torch.arange(BATCH)):
        result = loss(task, part(batch, rows))
        meters.add(torch.stack(list(result.terms.values())).sum(), result)
    alone = loss(task, part(batch, torch.tensor([without])))
    assert alone.terms["weighted_known_noise"].item() == 0 and alone.report["known_rows"].item() == 0


def test_figures_of_known_noise_are_means_over_its_own_rows(tiny_backbone: str, batch: dict):
    task = make_task(tiny_backbone, *KNOWN)
    result = loss(task, batch)
    means = {name: value.mean().item() for name, value in result.report.items()}
    means |= {f"{name}/t999": value[result.group == 0].mean().item() for name, value in result.report.items()}
    logged = task.summarise(means)
    rows = result.report["known_rows"] > 0
    errors = result.report["known_noise"][rows] * 0.4
    assert logged["known_noise"] == pytest.approx(errors.mean().item(), rel=1e-5)
    of_999 = errors[result.group[rows] == 0]
    assert ("known_noise/t999" in logged) == bool(len(of_999))
    assert not any(name.startswith("known_rows") for name in logged)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 1.0])
def test_chosen_rows_are_spread_evenly_and_fairly(share: float):
    counts = torch.zeros(40)
    for step in range(400):
        whole = StepRandom(0, step, 40, torch.arange(40)).chosen("rows", share)
        for size in (1, 5, 8, 40):
            taken = whole.unfold(0, size, size).sum(1)
            assert taken.min() >= math.floor(size * share - 1e-9) and taken.max() <= math.ceil(size * share - 1e-9)
        half = StepRandom(0, step, 40, torch.arange(20, 40)).chosen("rows", share)
        assert torch.equal(half, whole[20:])
        counts += whole
    assert (counts / 400 - share).abs().max() < 0.1


# Moments and spectrum


def slow_moments(noise: np.ndarray) -> float:
    values = [float(x) for x in noise.flatten()]
    first, second = sum(values) / len(values), sum(x**2 for x in values) / len(values)
    return abs(abs(first) - 0) + abs(math.sqrt(second) - 1)


def slow_spectrum(noise: np.ndarray) -> float:
    """Transform by its definition, groups of 4 x 4 neighbours; at the edges smaller ones."""
    height, width = noise.shape[1:]
    across = np.exp(-2j * np.pi * np.outer(np.arange(width), np.arange(width)) / width)
    down = np.exp(-2j * np.pi * np.outer(np.arange(height), np.arange(height)) / height)
    distances = []
    for channel in noise:
        amplitude = np.abs(down @ channel @ across) / math.sqrt(height * width)
        for top in range(0, height, 4):
            for left in range(0, width, 4):
                group = amplitude[top : top + 4, left : left + 4]
                distances.append(abs(group.mean() - math.sqrt(math.pi) / 2))
    return float(np.mean(distances))


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 8, 14)])
def test_moments_and_spectrum_are_those_of_their_definitions(shape: tuple[int, ...]):
    noise = 0.7 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) + 0.1
    found = moments(noise), spectrum(noise)
    for i, x in enumerate(noise.double().numpy()):
        assert found[0][i].item() == pytest.approx(slow_moments(x), rel=1e-5)
        assert found[1][i].item() == pytest.approx(slow_spectrum(x), rel=1e-5)


def test_noise_has_them_near_zero_and_structure_is_seen_by_the_spectrum_alone():
    noise = torch.randn(8, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    smooth = (smooth - smooth.mean((1, 2, 3), keepdim=True)) / smooth.flatten(1).std(1).view(-1, 1, 1, 1)
    assert moments(noise).max() < 0.05 and moments(smooth).max() < 0.01
    assert spectrum(noise).mean() < 0.1 and spectrum(smooth).mean() > 0.4
    shuffled = smooth.flatten(1)[:, torch.randperm(4096, generator=torch.Generator().manual_seed(1))]
    assert spectrum(shuffled.view_as(noise)).mean() < 0.1, "a permutation hides what leaks"
    zeros = torch.zeros(1, 4, 8, 8, requires_grad=True)
    moments(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_moments_and_spectrum_of_the_mean_are_logged_and_trained_where_they_weigh(tiny_backbone: str, batch: dict):
    weights = ("--objective.moments_weight=0.1", "--objective.spectrum_weight=25")
    plain, result = (loss(make_task(tiny_backbone, *options), batch) for options in ((), weights))
    assert list(result.terms) == ["mse", "weighted_kl", "weighted_moments", "weighted_spectrum"]
    for name, weight in (("moments", 0.1), ("spectrum", 25)):
        assert torch.equal(plain.report[name], result.report[name])
        assert result.terms[f"weighted_{name}"].item() == pytest.approx(weight * result.report[name].mean().item())
    task = make_task(tiny_backbone, *weights)
    terms = loss(task, batch).terms
    (terms["weighted_moments"] + terms["weighted_spectrum"]).backward()
    gradient = task.trainable.unet.conv_out.weight.grad
    assert gradient[:4].abs().max() > 0 and gradient[4:].abs().max() == 0  # of the mean, not of the variance


# The on-policy share, and weights of timesteps


def test_the_own_share_rises_with_the_step_alone():
    assert [own_share_at(step, 0.5, 0.0, 300) for step in (0, 299)] == [0.5, 0.5]
    rising = [own_share_at(step, 0.6, 0.5, 300) for step in (0, 50, 75, 150, 299)]
    assert rising == pytest.approx([0, 0.2, 0.3, 0.6, 0.6])


@torch.no_grad()
def test_the_ramp_decides_who_makes_the_previous_reconstructions(tiny_backbone: str, batch: dict):
    ramp = ("--objective.own_share=1", "--objective.own_share_ramp=0.5", "--run.steps=12")  # the step is 3 of 6
    tasks = [make_task(tiny_backbone, *options) for options in ((), ("--objective.own_share=1",), ramp)]
    index, prompt = torch.full((BATCH,), 2), tasks[0].backbone.encode_text(CAPTIONS)
    simulated, own, rising = (
        task.previous_reconstruction(task.trainable, batch["latent"], prompt, index, random_numbers()) for task in tasks
    )
    chosen = random_numbers().uniform("own") < 0.5
    assert 0 < chosen.sum() < BATCH
    assert_near(rising[chosen], own[chosen])
    assert_near(rising[~chosen], simulated[~chosen])


def test_given_weights_are_those_of_the_samples_timesteps(tiny_backbone: str, batch: dict):
    weights = (0.5, 0.7, 1.3, 1.5)
    plain = loss(make_task(tiny_backbone), batch)
    result = loss(make_task(tiny_backbone, f"--objective.timestep_weights={list(weights)}"), batch)
    errors, numbers = plain.report["latent_mse"].tolist(), timestep_numbers(make_task(tiny_backbone)).tolist()
    expected = sum(weights[number] * error for number, error in zip(numbers, errors, strict=True)) / BATCH
    assert result.terms["mse"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(result.report["latent_mse"], plain.report["latent_mse"])


def test_balanced_weights_have_the_gradient_of_the_errors_root():
    error = torch.tensor([0.0, 0.02, 0.1, 0.4], requires_grad=True)
    weighted = TimestepWeights("balanced")(error, torch.zeros(4, dtype=torch.long))
    assert weighted.tolist() == pytest.approx([0, *(math.sqrt(EVEN_ERROR * x) for x in (0.02, 0.1, 0.4))], rel=1e-6)
    weighted.sum().backward()
    assert error.grad[1:].tolist() == pytest.approx([math.sqrt(EVEN_ERROR / x) for x in (0.02, 0.1, 0.4)], rel=1e-6)
    assert torch.isfinite(error.grad).all()


def test_a_plan_counts_known_noise_and_the_steps_after_the_ramp(tiny_backbone: str, batch: dict):
    """Known noise is a pass of G, and of F with its gradient, for its share of the samples."""
    words = ["--run.folder=unused", "--data.shards=unused", f"--generator.path={tiny_backbone}"]

    def planned(*options: str) -> PlannedTask:
        return PLAN.task(parse(TurboEditConfig, [*words, "--generator.dtype=float32", *options]))

    task = make_task(tiny_backbone)
    prompt, t, x = task.backbone.encode_text(CAPTIONS), torch.full((BATCH,), 999), batch["latent"]
    with torch.no_grad():
        g = count_flop(lambda: task.generator.predict_x0(x, prompt, t).sum()).forward / BATCH
    f = count_flop(lambda: torch.cat(task.trainable(x, x, prompt, t)).sum())
    plain, known = (
        flop(found.task, found.batch(20), BalancedRandom(20), "no") / 20 for found in (planned(), planned(*KNOWN))
    )
    assert known.forward - plain.forward == pytest.approx(0.4 * (f.forward / BATCH + g), rel=1e-6)
    assert known.backward - plain.backward == pytest.approx(0.4 * f.backward / BATCH, rel=1e-6)
    objective = planned("--objective.own_share=0.5", "--objective.own_share_ramp=0.5").task.objective
    assert own_share_at(0, objective.own_share, objective.own_share_ramp, 1000) == 0.5


# Perceptual distances


def of_length_1(values: np.ndarray) -> np.ndarray:
    """Each position's channels [C, h, w] as a vector of length 1."""
    return values / np.sqrt((values**2).sum(0, keepdims=True) + 1e-8)


@torch.no_grad()
def hooked_features(task: TurboEditTask, x_t: Tensor, caption: str, t: int) -> list[np.ndarray]:
    """Maps of the down blocks before they are sampled down, and of the middle block, by hooks on a whole pass."""
    unet, found = task.backbone.unet, []
    layers = [block.attentions[-1] if hasattr(block, "attentions") else block.resnets[-1] for block in unet.down_blocks]

    def keep(layer: object, inputs: object, output: object) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0].double().numpy())

    hooks = [layer.register_forward_hook(keep) for layer in (*layers, unet.mid_block)]
    task.backbone.predict(x_t[None], task.backbone.encode_text([caption]), torch.tensor([t]))
    for hook in hooks:
        hook.remove()
    return found


def test_feature_distance_is_lpips_of_the_unets_own_features(any_backbone: str, batch: dict):
    task = make_task(any_backbone, "--objective.perceptual_weight=0.5")
    x0, x0_hat = batch["latent"], batch["latent"] + 0.3 * torch.randn(BATCH, 4, 16, 16)
    noise, t = torch.randn(BATCH, 4, 16, 16), torch.full((BATCH,), 249)
    prompt = task.backbone.encode_text(CAPTIONS)
    found = feature_distance(task.backbone, x0_hat, x0, prompt, t, noise)
    for i in range(2):
        noised = [task.schedule.add_noise(x[i : i + 1], noise[i : i + 1], t[:1])[0] for x in (x0_hat, x0)]
        pairs = zip(*(hooked_features(task, x, CAPTIONS[i], 249) for x in noised), strict=True)
        distances = [((of_length_1(a) - of_length_1(b)) ** 2).sum(0).mean() for a, b in pairs]
        assert len(distances) == 3
        assert found[i].item() == pytest.approx(sum(distances), rel=1e-4)
    result = loss(task, batch)
    assert result.terms["weighted_perceptual"].item() == pytest.approx(0.5 * result.report["perceptual"].mean().item())
    result.terms["weighted_perceptual"].backward()
    assert all(torch.isfinite(weight.grad).all() for weight in task.trainable.parameters() if weight.grad is not None)
    assert task.trainable.unet.conv_out.weight.grad.abs().max() > 0


def test_crop_distance_is_lpips_of_the_same_decoded_places(tiny_backbone: str, tmp_path: Path):
    weights = save_random_classifier("vgg", tmp_path / "vgg.pth")
    options = ("perceptual_weight=1", "perceptual=lpips", f"perceptual_network={weights}")
    task = make_task(tiny_backbone, *(f"--objective.{option}" for option in options))
    x0 = torch.randn(2, 4, 24, 20, generator=torch.Generator().manual_seed(0))
    x0_hat = (x0 + 0.3 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    lpips, rows = task.terms["perceptual"].lpips, torch.arange(2)
    found = crop_distance(task.backbone, lpips, x0_hat, x0, StepRandom(7, 3, 2, rows))
    rng = StepRandom(7, 3, 2, rows)
    tops, lefts = rng.integers("crop_top", 9).tolist(), rng.integers("crop_left", 5).tolist()
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        crop = [x.detach()[i, :, top : top + 16, left : left + 16] for x in (x0_hat, x0)]
        pictures = [task.backbone.decode(x[None])[0].detach().clamp(-1, 1).numpy() for x in crop]
        assert found[i].item() == pytest.approx(slow_lpips_map("vgg", torch.load(weights), *pictures).mean, rel=1e-3)
    found.sum().backward()
    inside = x0_hat.grad[0].abs().sum(0)[tops[0] : tops[0] + 16, lefts[0] : lefts[0] + 16]
    assert inside.min() > 0 and x0_hat.grad[0].abs().sum().item() == pytest.approx(inside.sum().item())


# The score regulariser

TEACHER = ("--objective.score_weight=0.3", *KNOWN)


def test_the_score_is_that_of_the_formula_and_its_gradient(any_backbone: str, tiny_sd_backbone: str, batch: dict):
    task = make_task(any_backbone, *TEACHER, f"--objective.score_teacher={tiny_sd_backbone}")
    teacher, reference = task.terms["score"].teacher, Backbone.load(tiny_sd_backbone)
    prompt = teacher.encode_text(CAPTIONS, SizeConditioning.uncropped(64, 64))
    x0, eps = batch["latent"], torch.randn(BATCH, 4, 16, 16, requires_grad=True)
    t = torch.tensor([20, 100, 300, 500, 700, 900, 979, 980])
    found = score_error(teacher, x0, eps, prompt, t)
    found.sum().backward()
    for i in range(BATCH):
        abar = teacher.schedule.alphas_cumprod[t[i]].item()
        z = (math.sqrt(abar) * x0[i] + math.sqrt(1 - abar) * eps[i]).detach()
        x0_of_teacher = generate(reference, x0[i], eps[i].detach(), CAPTIONS[i], int(t[i])).detach()
        estimate = (z - math.sqrt(abar) * x0_of_teacher) / math.sqrt(1 - abar)
        difference = (eps[i].detach() - estimate).double().numpy()
        assert found[i].item() == pytest.approx(0.5 * (1 - abar) * np.mean(difference**2), rel=1e-3)
        assert_near(eps.grad[i] * eps[i].numel(), (1 - abar) * (eps[i].detach() - estimate), 1e-3)


def test_the_score_trains_f_alone(tiny_backbone: str, tiny_sd_backbone: str, batch: dict):
    task = make_task(
        tiny_backbone, *TEACHER, f"--objective.score_teacher={tiny_sd_backbone}", "--generator.cached_prompts=true"
    )  # fmt: skip
    assert task.fields == ("latent", "prompt", "pooled", "caption", "info")
    prompt = Backbone.load(tiny_backbone).encode_text(CAPTIONS)
    result = loss(task, {**batch, "prompt": prompt.embeds, "pooled": prompt.pooled})
    assert result.terms["weighted_score"].item() == pytest.approx(0.3 * result.report["score"].mean().item())
    result.terms["weighted_score"].backward()
    assert task.trainable.unet.conv_out.weight.grad.abs().max() > 0
    frozen = (*task.backbone.modules(), *task.terms["score"].teacher.modules())
    assert all(weight.grad is None and not weight.requires_grad for x in frozen for weight in x.parameters())


def test_a_teacher_of_other_latents_is_refused(tiny_backbone: str):
    with pytest.raises(ValueError, match=r"has a scaling_factor of .*: take a teacher of the same latents"):
        make_task(tiny_backbone, *TEACHER, "--objective.score_teacher=models/miniature/teacher")


# All of them


ALL = (
    *KNOWN,
    "--objective.moments_weight=0.1",
    "--objective.spectrum_weight=0.1",
    "--objective.timestep_weights=balanced",
    "--objective.own_share=0.5",
    "--objective.own_share_ramp=0.01",
    "--objective.perceptual_weight=0.1",
    "--objective.score_weight=0.1",
)


def test_micro_batches_average_to_the_batch_with_every_term(tiny_backbone: str, tiny_sd_backbone: str, batch: dict):
    task = make_task(tiny_backbone, *ALL, f"--objective.score_teacher={tiny_sd_backbone}")
    whole = loss(task, batch)
    halves = [loss(task, part(batch, rows)) for rows in torch.arange(BATCH).chunk(2)]
    for name, value in whole.terms.items():
        torch.testing.assert_close(
            torch.stack([half.terms[name] for half in halves]).mean(), value, rtol=1e-4, atol=1e-6
        )
    for name, values in whole.report.items():
        assert_near(torch.cat([half.report[name] for half in halves]), values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["own_share_ramp=0.3"], "own_share_ramp is 0.3 and objective.own_share 0"),
        (["own_share=0.5", "own_share_ramp=2"], "own_share_ramp is 2"),
        (["moments_weight=-1"], "moments_weight is -1"),
        (["known_noise_share=0"], "known_noise_share is 0"),
        (["timestep_weights=[1,2]"], "timestep_weights has 2 numbers"),
        (["timestep_weights=[1,2,0,1]"], "expected numbers above 0"),
        (["perceptual_weight=0.1", "perceptual=lpips"], "perceptual_network"),
        (["score_weight=1"], "score_teacher"),
        (["score_weight=1", "score_teacher=x"], "known_noise_weight 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tiny_backbone: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises((ValueError, SystemExit)) as caught:
        make_task(tiny_backbone, *(f"--objective.{option}" for option in options))
    assert words in str(caught.value) + " ".join(capsys.readouterr().err.split())
