"""InstructPix2Pix's sampler against diffusers' own pipeline, and its objective against a plain restatement."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from torch import Tensor

from data.jobs.command import parse
from models.backbone import Backbone
from models.ddim import Ddim
from models.instruct_pix2pix import dual_guidance, edit_by_instruction
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.instruct_pix2pix.task import InstructPix2PixTask, load_backbone
from train.rng import StepRandom
from train.task import StepLoss

BATCH = 8
ORDERS = [f"make it number {i}" for i in range(BATCH)]
SCALE = 0.7  # of the tiny VAE's latents


def make_task(backbone: str, *options: str, prediction: str = "v_prediction") -> InstructPix2PixTask:
    """A task as the entry point makes it; its new weights are not zeros, so that every input counts."""
    required = ["--run.folder=unused", "--data.shards=unused", f"--backbone.path={backbone}"]
    config = parse(InstructPix2PixConfig, [*required, "--backbone.dtype=float32", *options])
    loaded = load_backbone(config, "cpu")
    loaded.schedule.prediction_type = prediction
    task = InstructPix2PixTask(config, "cpu", loaded)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        task.trainable.conv_in.weight.data += 0.05 * torch.randn_like(task.trainable.conv_in.weight)
    return task


def random_numbers(rows: Tensor | None = None) -> StepRandom:
    return StepRandom(7, 3, BATCH, torch.arange(BATCH) if rows is None else rows)


def latents(seed: int, count: int = BATCH) -> Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def batch() -> dict[str, object]:
    return {"latent": latents(0), "source": latents(1), "caption": ORDERS, "rows": torch.arange(BATCH)}


@pytest.fixture(scope="module")
def task(tiny_sd_backbone: str) -> InstructPix2PixTask:
    return make_task(tiny_sd_backbone)


def stock_pipeline(task: InstructPix2PixTask, folder: str) -> StableDiffusionInstructPix2PixPipeline:
    """diffusers' pipeline with the task's UNet and DDIM's steps."""
    parts = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).components
    scheduler = DDIMScheduler.from_config(
        parts["scheduler"].config, prediction_type=task.schedule.prediction_type, steps_offset=1
    )
    pipeline = StableDiffusionInstructPix2PixPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer")},
        unet=task.trainable.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_guidance_is_equation_three():
    neither, image, both = latents(0, 3).double()
    expected = neither + 1.3 * (image - neither) + 6.0 * (both - image)
    torch.testing.assert_close(dual_guidance(neither, image, both, 6.0, 1.3), expected)
    assert torch.equal(dual_guidance(neither, image, both, 0.0, 0.0), neither)
    torch.testing.assert_close(dual_guidance(neither, image, both, 0.0, 1.0), image)
    torch.testing.assert_close(dual_guidance(neither, image, both, 1.0, 1.0), both)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edits_are_those_of_diffusers_own_pipeline(tiny_sd_backbone: str, prediction: str):
    task = make_task(tiny_sd_backbone, prediction=prediction)
    pipeline = stock_pipeline(task, tiny_sd_backbone)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = latents(2, 2)
    expected = pipeline(
        ORDERS[:2],
        image=image,
        num_inference_steps=5,
        guidance_scale=4.0,
        image_guidance_scale=1.3,
        latents=noise.clone(),
        output_type="latent",
    ).images
    backbone = task.backbone
    source = backbone.unscale(backbone.encode_image(2 * image - 1))
    prompt, null = backbone.encode_text(ORDERS[:2]), backbone.encode_text([""])
    found = edit_by_instruction(task.trainable, Ddim(backbone.schedule, 5), source, prompt, null, noise, 4.0, 1.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    other = edit_by_instruction(
        task.trainable, Ddim(backbone.schedule, 5), SCALE * source, prompt, null, noise, 4.0, 1.3
    )
    assert (other - expected).abs().max() > 1e-3 * expected.abs().max(), "the source's scale does not count here"


def test_the_source_is_what_the_vae_gives(task: InstructPix2PixTask):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"source": task.backbone.encode_image(image), "caption": ORDERS[:2]}
    source, _ = task.conditions(batch, torch.ones(2))
    with torch.no_grad():
        torch.testing.assert_close(source, task.backbone.vae.encode(image).latent_dist.mode())
    torch.testing.assert_close(source, batch["source"] / SCALE)


def test_the_order_the_picture_or_both_are_left_out(task: InstructPix2PixTask):
    draw = torch.tensor([0.0, 0.049, 0.051, 0.099, 0.101, 0.149, 0.151, 0.99])
    batch = {"source": latents(1), "caption": ORDERS}
    source, prompt = task.conditions(batch, draw)
    silent, hidden = [True] * 4 + [False] * 4, [False] * 2 + [True] * 4 + [False] * 2
    null, spoken = task.backbone.encode_text([""]).embeds[0], task.backbone.encode_text(ORDERS).embeds
    for row in range(BATCH):
        torch.testing.assert_close(prompt.embeds[row], null if silent[row] else spoken[row])
        assert torch.equal(source[row], torch.zeros(4, 16, 16) if hidden[row] else latents(1)[row] / SCALE)


def test_shares_of_what_is_left_out(task: InstructPix2PixTask, monkeypatch: pytest.MonkeyPatch):
    count = 20_000
    draw = StepRandom(0, 0, count, torch.arange(count)).uniform("dropout")
    said: list[str] = []
    monkeypatch.setattr(task.backbone, "encode_text", lambda texts, sizes: said.extend(texts))
    source, _ = task.conditions({"source": torch.ones(count, 1, 1, 1), "caption": ["order"] * count}, draw)
    silent, hidden = torch.tensor([not order for order in said]), source.flatten() == 0
    for share in (silent & ~hidden, silent & hidden, ~silent & hidden):
        assert share.double().mean().item() == pytest.approx(0.05, abs=0.005)


def test_without_dropout_nothing_is_left_out(tiny_sd_backbone: str):
    task = make_task(tiny_sd_backbone, "--objective.dropout=0")
    source, prompt = task.conditions({"source": latents(1), "caption": ORDERS}, torch.zeros(BATCH))
    assert torch.equal(source, latents(1) / SCALE)
    assert torch.equal(prompt.embeds, task.backbone.encode_text(ORDERS).embeds)


def timesteps() -> Tensor:
    return random_numbers().integers("timestep", 1000)


@torch.no_grad()
def hand_computed(task: InstructPix2PixTask, batch: dict) -> Tensor:
    """Squared errors [B] in float64, one sample at a time."""
    draw, noise = random_numbers().uniform("dropout"), random_numbers().normal("noise", (4, 16, 16)).double()
    abar, p, errors = task.schedule.alphas_cumprod, task.dropout, []
    unet = task.trainable.double()
    for i, t in enumerate(timesteps().tolist()):
        a, b, x0 = abar[t].sqrt(), (1 - abar[t]).sqrt(), batch["latent"][i].double()
        order = "" if draw[i] < 2 * p else ORDERS[i]
        source = batch["source"][i].double() / SCALE * (0 if p <= draw[i] < 3 * p else 1)
        seen = torch.cat([a * x0 + b * noise[i], source])[None]
        text = task.backbone.encode_text([order]).embeds.double()
        output = unet(seen, torch.tensor([t]), encoder_hidden_states=text).sample[0]
        target = a * noise[i] - b * x0 if task.schedule.prediction_type == "v_prediction" else noise[i]
        errors.append((output - target).square().mean())
    task.trainable.float()
    return torch.stack(errors)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_paper(tiny_sd_backbone: str, batch: dict, prediction: str):
    task = make_task(tiny_sd_backbone, "--objective.dropout=0.3", prediction=prediction)
    result = task.loss(task.trainable, batch, random_numbers())
    expected = hand_computed(task, batch)
    assert list(result.terms) == ["mse"] and list(result.report) == ["prediction_error"]
    torch.testing.assert_close(result.terms["mse"].double(), expected.mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(result.report["prediction_error"].double(), expected, rtol=1e-3, atol=1e-6)
    assert not result.report["prediction_error"].requires_grad


def test_phases_are_thirds_from_noise_to_picture(task: InstructPix2PixTask, batch: dict):
    result = task.loss(task.trainable, batch, random_numbers())
    assert task.groups == ("noisy", "middle", "clean") and result.group is not None
    assert len(set(result.group.tolist())) == 3, "choose another seed: the test wants every phase"
    for t, phase in zip(timesteps().tolist(), result.group.tolist(), strict=True):
        assert phase == (0 if t > 666 else 1 if t > 333 else 2)


def test_micro_batches_average_to_the_batch(task: InstructPix2PixTask, batch: dict):
    whole: StepLoss = task.loss(task.trainable, batch, random_numbers())
    errors = []
    for rows in torch.arange(BATCH).chunk(2):
        half = {name: batch[name][rows] for name in ("latent", "source")} | {"caption": [ORDERS[i] for i in rows]}
        errors.append(task.loss(task.trainable, half, random_numbers(rows)).report["prediction_error"])
    torch.testing.assert_close(torch.cat(errors), whole.report["prediction_error"], rtol=1e-4, atol=1e-6)


def test_the_same_step_leaves_out_the_same(task: InstructPix2PixTask, batch: dict):
    first, second = (task.loss(task.trainable, batch, random_numbers()).terms["mse"] for _ in range(2))
    assert torch.equal(first, second)


def test_the_whole_unet_is_trained_and_lies_in_memory_once(tiny_sd_backbone: str, batch: dict):
    task = make_task(tiny_sd_backbone)
    task.loss(task.trainable, batch, random_numbers()).terms["mse"].backward()
    assert all(weight.grad is not None and weight.dtype == torch.float32 for weight in task.trainable.parameters())
    assert all(weight.is_meta for weight in task.backbone.unet.parameters())
    assert task.backbone.image_size == 64
    task.backbone.assert_frozen()


def test_adapters_and_conv_in_alone_are_trained(tiny_sd_backbone: str, batch: dict):
    task = make_task(tiny_sd_backbone, "--unet.lora.rank=2")
    base = {id(weight) for weight in task.backbone.unet.parameters()}
    before = {name: weight.clone() for name, weight in task.backbone.unet.state_dict().items()}
    named = dict(task.trainable.named_parameters())
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    assert all(".lora_" in name or name.startswith("conv_in.") for name in trained) and "conv_in.weight" in trained
    assert {id(weight) for name, weight in named.items() if name not in trained} <= base
    optimizer = torch.optim.SGD(trained.values(), lr=1e-2)
    task.loss(task.trainable, batch, random_numbers()).terms["mse"].backward()
    assert all(weight.grad is not None for weight in trained.values())
    optimizer.step()
    task.backbone.assert_frozen()
    assert all(torch.equal(weight, before[name]) for name, weight in task.backbone.unet.state_dict().items())


def test_adapters_start_as_the_whole_unet(tiny_sd_backbone: str, batch: dict):
    full, lora = (make_task(tiny_sd_backbone, f"--unet.lora.rank={rank}") for rank in (0, 2))
    losses = [task.loss(task.trainable, batch, random_numbers()).terms["mse"] for task in (full, lora)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_only_the_text_encoder_is_rounded_in_a_full_fine_tune(tiny_sd_backbone: str, batch: dict):
    exact, coarse = (make_task(tiny_sd_backbone, f"--backbone.dtype={dtype}") for dtype in ("float32", "bfloat16"))
    for mine, theirs in zip(coarse.trainable.parameters(), exact.trainable.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    near = coarse.loss(coarse.trainable, batch, random_numbers()).terms["mse"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cheap = coarse.loss(coarse.trainable, batch, random_numbers()).terms["mse"]
    expected = exact.loss(exact.trainable, batch, random_numbers()).terms["mse"].item()
    assert near.item() == pytest.approx(expected, rel=0.02) and cheap.item() == pytest.approx(expected, rel=0.05)
    assert cheap.dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient(tiny_sd_backbone: str, batch: dict):
    gradients = []
    for options in ([], ["--unet.gradient_checkpointing=true"]):
        task = make_task(tiny_sd_backbone, *options)
        assert task.trainable.is_gradient_checkpointing is bool(options)
        task.loss(task.trainable.train(), batch, random_numbers()).terms["mse"].backward()
        gradients.append([weight.grad for weight in task.trainable.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_previews_show_the_pair_and_the_edit(task: InstructPix2PixTask, batch: dict):
    two = {name: batch[name][:2] for name in ("latent", "source", "caption")}
    columns = task.preview(task.trainable, two, random_numbers(torch.arange(2)))
    assert list(columns) == ["source", "target", "edit"]
    torch.testing.assert_close(columns["source"], task.backbone.decode(two["source"]))
    torch.testing.assert_close(columns["target"], task.backbone.decode(two["latent"]))
    assert columns["edit"].shape == (2, 3, 64, 64) and torch.isfinite(columns["edit"]).all()


def test_a_backbone_that_would_be_trained_is_caught(tiny_sd_backbone: str):
    config = parse(InstructPix2PixConfig, ["--run.folder=x", "--data.shards=x", f"--backbone.path={tiny_sd_backbone}"])
    backbone = load_backbone(config, "cpu")
    backbone.text.encoders[0].requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match="frozen CLIPTextModel has trainable weights"):
        InstructPix2PixTask(config, "cpu", backbone)


def test_two_text_encoders_are_refused(tiny_backbone: str):
    with pytest.raises(ValueError, match=r"two text encoders \(SDXL\).*set backbone\.path"):
        make_task(tiny_backbone)


def test_a_unet_that_takes_a_picture_already_is_refused(tiny_sd_backbone: str):
    config = parse(InstructPix2PixConfig, ["--run.folder=x", "--data.shards=x", f"--backbone.path={tiny_sd_backbone}"])
    backbone = Backbone.load(tiny_sd_backbone)
    backbone.unet.register_to_config(in_channels=8)
    with pytest.raises(ValueError, match=r"has 8 input channels, expected 4.*set backbone\.path"):
        InstructPix2PixTask(config, "cpu", backbone)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--objective.dropout=0.34"], "objective.dropout is 0.34, expected 0 to 1/3"),
        (["--objective.dropout=-0.1"], "objective.dropout is -0.1"),
        (["--unet.lora.rank=4"], "set run.mixed_precision bf16"),
        (["--unet.lora.rank=-1"], "lora.rank -1 must be at least 0"),
    ],
)
def test_impossible_configs_are_refused(options: list[str], cure: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises((ValueError, SystemExit)) as caught:
        parse(InstructPix2PixConfig, ["--run.folder=x", "--data.shards=x", *options])
    assert cure in str(caught.value) + capsys.readouterr().err
