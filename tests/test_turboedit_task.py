"""TurboEdit's objective against a plain restatement, term by term, with the random numbers of the same step."""

import pytest
import torch
from torch import Tensor, nn

from data.jobs.command import parse
from eval.reconstructions.noise import noise_health
from models.backbone import Backbone
from models.text import DualClipText
from models.turboedit_pipeline import TurboEditPipeline
from tests.tiny_editing import tiny_pipeline
from train.methods.turboedit.config import GeneratorConfig, TurboEditConfig
from train.methods.turboedit.task import TurboEditTask, load_generator
from train.rng import StepRandom
from train.task import StepLoss

BATCH = 8
CAPTIONS = [f"a circle number {i} on grass" for i in range(BATCH)]
UNCROPPED = {"original_size": (64, 64), "crop": (0, 0, 64, 64)}


def make_task(backbone: str, *options: str) -> TurboEditTask:
    """A task as the entry point makes it; its new weights are not zeros, so that every input counts."""
    required = ["--run.folder=unused", "--data.shards=unused", f"--generator.path={backbone}"]
    task = TurboEditTask(parse(TurboEditConfig, [*required, "--generator.dtype=float32", *options]), "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in (task.trainable.unet.conv_in, task.trainable.unet.conv_out):
            layer.weight.data += 0.01 * torch.randn_like(layer.weight)
    return task


@pytest.fixture(scope="module")
def task(any_backbone: str) -> TurboEditTask:
    return make_task(any_backbone, "--objective.kl_weight=1e-3")


@pytest.fixture(scope="module")
def batch() -> dict[str, object]:
    latent = torch.randn(BATCH, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"latent": latent, "caption": CAPTIONS, "info": [UNCROPPED] * BATCH, "rows": torch.arange(BATCH)}


def random_numbers(rows: Tensor | None = None) -> StepRandom:
    return StepRandom(7, 3, BATCH, torch.arange(BATCH) if rows is None else rows)


def timestep_numbers(task: TurboEditTask) -> Tensor:
    return random_numbers().integers("timestep", len(task.timesteps))


def generate(backbone: Backbone, x0: Tensor, noise: Tensor, caption: str, t: int) -> Tensor:
    """G at one noised latent [4, h, w], from the definitions of epsilon and v."""
    a, b = backbone.schedule.alphas_cumprod[t].sqrt().float(), (1 - backbone.schedule.alphas_cumprod[t]).sqrt().float()
    x_t = a * x0 + b * noise
    output = backbone.predict(x_t[None], backbone.encode_text([caption]), torch.tensor([t]))[0]
    return a * x_t - b * output if backbone.schedule.prediction_type == "v_prediction" else (x_t - b * output) / a


def simulated(task: TurboEditTask, x0: Tensor) -> Tensor:
    """Previous reconstructions as the paper simulates them: one-step SDEdit at the timestep before; zeros at first."""
    noise = random_numbers().normal("sdedit", x0.shape[1:])
    previous = torch.zeros_like(x0)
    for i, number in enumerate(timestep_numbers(task).tolist()):
        if number > 0:
            t = task.timesteps[number - 1].item()
            previous[i] = generate(task.backbone, x0[i], noise[i], CAPTIONS[i], t)
    return previous


def assert_near(actual: Tensor, expected: Tensor, share: float = 1e-4) -> None:
    assert (actual - expected).abs().max() <= share * expected.abs().max().clamp_min(1)


@torch.no_grad()
def hand_computed(task: TurboEditTask, x0: Tensor) -> dict[str, Tensor]:
    """MSE [B], KL [B] and noise of equations 6 and 7, one sample at a time."""
    draw = random_numbers().normal("posterior", x0.shape[1:])
    previous = simulated(task, x0)
    mse, kl, noises = [], [], []
    for i, number in enumerate(timestep_numbers(task).tolist()):
        t = task.timesteps[number]
        prompt = task.backbone.encode_text([CAPTIONS[i]])
        mean, logvar = (x[0] for x in task.trainable(x0[i : i + 1], previous[i : i + 1], prompt, t[None]))
        noise = mean + logvar.exp().sqrt() * draw[i]
        mse.append((generate(task.backbone, previous[i], noise, CAPTIONS[i], int(t)) - x0[i]).square().mean())
        kl.append(0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum())
        noises.append(noise)
    return {"mse": torch.stack(mse), "kl": torch.stack(kl), "noise": torch.stack(noises)}


@pytest.fixture(scope="module")
def result(task: TurboEditTask, batch: dict) -> StepLoss:
    return task.loss(task.trainable, batch, random_numbers())


def test_all_timesteps_are_drawn(task: TurboEditTask):
    assert set(timestep_numbers(task).tolist()) == {0, 1, 2, 3}, "choose another seed: the tests want every timestep"


def test_terms_are_those_of_the_paper(task: TurboEditTask, batch: dict, result: StepLoss):
    expected = hand_computed(task, batch["latent"])
    assert list(result.terms) == ["mse", "weighted_kl"]
    torch.testing.assert_close(result.terms["mse"].detach(), expected["mse"].mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(result.terms["weighted_kl"].detach(), 1e-3 * expected["kl"].mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(result.report["latent_mse"], expected["mse"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(result.report["kl"], expected["kl"], rtol=1e-4, atol=0)
    assert_near(result.report["noise_m2"], expected["noise"].square().mean((1, 2, 3)))


def test_reports_are_per_sample_and_detached(task: TurboEditTask, result: StepLoss):
    moments = {f"noise_{name}" for name in ("m1", "m2", "m3", "m4", "neighbour", "over10")}
    assert set(result.report) == {"latent_mse", "kl", "posterior_sigma", "moments", "spectrum"} | moments
    assert all(value.shape == (BATCH,) and not value.requires_grad for value in result.report.values())
    assert task.groups == ("t999", "t749", "t499", "t249")
    assert result.group is not None and torch.equal(result.group, timestep_numbers(task))


@torch.no_grad()
def test_previous_reconstructions_are_simulated_as_in_the_paper(task: TurboEditTask, batch: dict):
    index, prompt = timestep_numbers(task), task.backbone.encode_text(CAPTIONS)
    previous = task.previous_reconstruction(task.trainable, batch["latent"], prompt, index, random_numbers())
    assert previous[index == 0].abs().max() == 0
    assert previous[index > 0].abs().amax((1, 2, 3)).min() > 0
    assert_near(previous, simulated(task, batch["latent"]))


@torch.no_grad()
def test_own_reconstructions_are_those_of_the_inversion(any_backbone: str):
    task = make_task(any_backbone, "--objective.own_share=1")
    pipeline = tiny_pipeline(any_backbone)
    pipeline.encoder.load_state_dict(task.trainable.unet.state_dict())
    image = torch.rand(BATCH, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = pipeline.invert(image, CAPTIONS)
    x0, index = task.backbone.encode_image(image), torch.arange(BATCH) % 4
    prompt = task.backbone.encode_text(CAPTIONS)
    previous = task.previous_reconstruction(task.trainable, x0, prompt, index, random_numbers())
    for i, number in enumerate(index.tolist()):
        expected = inversion.reconstructions[number - 1][i] if number else torch.zeros_like(x0[i])
        assert_near(previous[i], expected)


@torch.no_grad()
def test_own_share_is_the_share_of_samples(any_backbone: str, batch: dict):
    tasks = [make_task(any_backbone, f"--objective.own_share={share}") for share in (0.0, 0.5, 1.0)]
    index, prompt = torch.full((BATCH,), 2), tasks[0].backbone.encode_text(CAPTIONS)
    simulated, mixed, own = (
        task.previous_reconstruction(task.trainable, batch["latent"], prompt, index, random_numbers()) for task in tasks
    )
    chosen = random_numbers().uniform("own") < 0.5
    assert 0 < chosen.sum() < BATCH
    assert_near(mixed[chosen], own[chosen])
    assert_near(mixed[~chosen], simulated[~chosen])
    assert (own - simulated).abs().amax((1, 2, 3)).min() > 1e-3


def test_micro_batches_average_to_the_batch(task: TurboEditTask, batch: dict, result: StepLoss):
    halves = []
    for rows in torch.arange(BATCH).chunk(2):
        half = {"latent": batch["latent"][rows], "caption": [CAPTIONS[i] for i in rows], "rows": rows}
        half["info"] = [UNCROPPED] * len(rows)
        halves.append(task.loss(task.trainable, half, random_numbers(rows)))
    for name, whole in result.terms.items():
        mean = torch.stack([half.terms[name] for half in halves]).mean()
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)
    for name, values in result.report.items():
        assert_near(torch.cat([half.report[name] for half in halves]), values)
    assert torch.equal(torch.cat([half.group for half in halves]), result.group)


def test_only_the_encoder_gets_gradients(any_backbone: str, batch: dict):
    task = make_task(any_backbone, "--objective.kl_weight=1e-3")
    sum(task.loss(task.trainable, batch, random_numbers()).terms.values()).backward()
    without = [name for name, weight in task.trainable.named_parameters() if weight.grad is None]
    assert not without
    assert all(torch.isfinite(weight.grad).all() for weight in task.trainable.parameters())
    assert all(weight.grad is None for module in task.backbone.modules() for weight in module.parameters())
    task.backbone.assert_frozen()


def test_the_mse_alone_reaches_mean_and_variance(any_backbone: str, batch: dict):
    task = make_task(any_backbone)
    task.loss(task.trainable, batch, random_numbers()).terms["mse"].backward()
    gradient = task.trainable.unet.conv_out.weight.grad
    assert gradient[:4].abs().max() > 0 and gradient[4:].abs().max() > 0


def test_a_generator_that_would_be_trained_is_caught(any_backbone: str):
    config = parse(TurboEditConfig, ["--run.folder=x", "--data.shards=x", f"--generator.path={any_backbone}"])
    generator = load_generator(config.generator, "cpu")
    generator.backbone.unet.requires_grad_(True)
    with pytest.raises(AssertionError, match="frozen UNet2DConditionModel has trainable weights"):
        TurboEditTask(config, "cpu", generator)


@torch.no_grad()
def test_pixel_space_compares_decoded_pictures(any_backbone: str, batch: dict):
    task = make_task(any_backbone, "--objective.space=pixel", "--generator.timesteps=[999]")
    result = task.loss(task.trainable, batch, random_numbers())
    x0 = batch["latent"]
    prompt, t = task.backbone.encode_text(CAPTIONS), torch.full((BATCH,), 999)
    mean, logvar = task.trainable(x0, torch.zeros_like(x0), prompt, t)
    noise = mean + torch.exp(0.5 * logvar) * random_numbers().normal("posterior", x0.shape[1:])
    x_t = (1 - task.schedule.alphas_cumprod[999]).sqrt().float() * noise
    x0_hat = task.generator.predict_x0(x_t, prompt, t)
    expected = (task.backbone.decode(x0_hat) - task.backbone.decode(x0)).square().mean()
    torch.testing.assert_close(result.terms["mse"], expected, rtol=1e-4, atol=0)


def test_pixel_space_trains_through_the_decoder(any_backbone: str, batch: dict):
    task = make_task(any_backbone, "--objective.space=pixel")
    task.loss(task.trainable, batch, random_numbers()).terms["mse"].backward()
    assert all(weight.grad is not None for weight in task.trainable.parameters())


def test_stored_prompts_are_the_same_as_captions(any_backbone: str, batch: dict, result: StepLoss):
    task = make_task(any_backbone, "--objective.kl_weight=1e-3", "--generator.cached_prompts=true")
    assert task.backbone.text is None
    backbone = Backbone.load(any_backbone)
    prompt = backbone.encode_text(CAPTIONS)
    stored = {"latent": batch["latent"], "prompt": prompt.embeds, "info": batch["info"], "rows": batch["rows"]}
    if isinstance(backbone.text, DualClipText):
        assert task.fields == ("latent", "prompt", "pooled", "info")
        stored["pooled"] = prompt.pooled
    else:
        assert task.fields == ("latent", "prompt")
    cached = task.loss(task.trainable, stored, random_numbers())
    for name, value in result.terms.items():
        assert torch.equal(cached.terms[name], value)


def test_single_step_encoder(any_backbone: str, batch: dict):
    task = make_task(any_backbone, "--generator.timesteps=[999]")
    assert task.groups == ("t999",) and task.fields[:2] == ("latent", "caption")
    result = task.loss(task.trainable, batch, random_numbers())
    assert result.group is not None and result.group.tolist() == [0] * BATCH
    index = torch.zeros(BATCH, dtype=torch.int64)
    prompt = task.backbone.encode_text(CAPTIONS)
    previous = task.previous_reconstruction(task.trainable, batch["latent"], prompt, index, random_numbers())
    assert previous.abs().max() == 0


def test_gradient_checkpointing_changes_no_gradient(any_backbone: str, batch: dict):
    both = ["--generator.gradient_checkpointing=true", "--encoder.gradient_checkpointing=true"]
    gradients = []
    for options in ([], both):
        task = make_task(any_backbone, *options)
        sum(task.loss(task.trainable, batch, random_numbers()).terms.values()).backward()
        gradients.append([weight.grad for weight in task.trainable.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


def test_bfloat16_loss_is_near(any_backbone: str, batch: dict, result: StepLoss):
    task = make_task(any_backbone, "--objective.kl_weight=1e-3", "--generator.dtype=bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = task.loss(task.trainable, batch, random_numbers())
    for name, value in result.terms.items():
        assert coarse.terms[name].dtype == torch.float32
        assert coarse.terms[name].item() == pytest.approx(value.item(), rel=0.05)


def test_moments_are_summarised_by_timestep(task: TurboEditTask, result: StepLoss, batch: dict):
    means = {name: value.mean().item() for name, value in result.report.items()} | {"mse": 0.5}
    rows = result.group == 2
    means |= {f"{name}/t499": value[rows].mean().item() for name, value in result.report.items()}
    logged = task.summarise(means)
    figures = {f"noise_{name}" for name in ("mean", "std", "kurtosis", "over10", "lag1")}
    kept = {"latent_mse", "kl", "posterior_sigma", "moments", "spectrum"}
    assert set(logged) == {"mse"} | kept | figures | {f"{name}/t499" for name in kept | figures}
    health = noise_health(hand_computed(task, batch["latent"])["noise"])
    for name in ("mean", "std", "kurtosis", "lag1"):
        assert logged[f"noise_{name}"] == pytest.approx(health[name].mean, rel=1e-3, abs=1e-4)


def test_preview_shows_the_inversion_step_by_step(task: TurboEditTask, any_backbone: str):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"latent": task.backbone.encode_image(image), "caption": CAPTIONS[:2], "rows": torch.arange(2)}
    batch["info"] = [UNCROPPED] * 2
    columns = task.preview(task.trainable, batch, random_numbers(batch["rows"]))
    assert list(columns) == ["VAE round trip", "1 step", "2 steps", "3 steps", "4 steps"]
    pipeline: TurboEditPipeline = tiny_pipeline(any_backbone)
    pipeline.encoder.load_state_dict(task.trainable.unet.state_dict())
    inversion = pipeline.invert(image, CAPTIONS[:2])
    for pictures, latent in zip(list(columns.values())[1:], inversion.reconstructions, strict=True):
        with torch.no_grad():
            assert_near(pictures, pipeline.backbone.decode(latent))


@pytest.mark.parametrize("timesteps", [(), (249, 499), (999, 999), (1000, 500), (999, -1)])
def test_timesteps_that_do_not_fall_are_refused(tiny_backbone: str, timesteps: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"generator.timesteps is .*; expected falling indices from 999 to 0"):
        load_generator(GeneratorConfig(path=tiny_backbone, timesteps=timesteps), "cpu")


@pytest.mark.parametrize("option", ["own_share=1.5", "own_share=-0.1", "kl_weight=-1e-6"])
def test_impossible_objectives_are_refused(tiny_backbone: str, option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises((ValueError, SystemExit)) as caught:
        make_task(tiny_backbone, f"--objective.{option}")
    assert f"objective.{option.split('=')[0]} is" in str(caught.value) + capsys.readouterr().err


def test_trainable_is_a_float32_module(task: TurboEditTask):
    assert isinstance(task.trainable, nn.Module)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in task.trainable.parameters())
