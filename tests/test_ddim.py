"""DDIM in both directions against diffusers' schedulers in float64, with both conventions of timesteps."""

from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, guided_noise, matching, predict_noise
from models.schedule import NoiseSchedule

STEPS = (1, 7, 30, 50, 999, 1000)
"""7, 30 and 999 do not divide 1000; 30 are StyleDiffusion's."""


def stock(kind: Any, prediction_type: str = "epsilon", steps_offset: int = 0) -> Any:
    """A scheduler of diffusers with Stable Diffusion's betas, whose table of abar is float64."""
    scheduler = kind(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=steps_offset,
        prediction_type=prediction_type,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def schedule_of(prediction_type: str = "epsilon") -> NoiseSchedule:
    return NoiseSchedule.from_scheduler(stock(DDIMScheduler, prediction_type))


def latent(seed: int = 0) -> Tensor:
    """Float64 [2, 4, 4, 4]."""
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, t: int) -> Tensor:
    """A smooth function of latent and timestep in the place of a UNet."""
    return torch.tanh(x.flip(1) + t / 500) + 0.3 * x.roll(1, -1)


def noise_of(schedule: NoiseSchedule, ddim: Ddim) -> Any:
    """What `network` means by a prediction type, as a predictor of noise."""

    def predict(x: Tensor, step: int) -> Tensor:
        t = ddim.timesteps[step]
        return schedule.predict_noise(x, network(x, t), torch.full((len(x),), t))

    return predict


# Every offset with every number of steps, but for the one that would leave the schedule.
conventions = pytest.mark.parametrize(
    ("num_steps", "steps_offset"), [(n, offset) for n in STEPS for offset in (0, 1) if n + offset <= 1000]
)


@conventions
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sampling_is_that_of_diffusers(num_steps, steps_offset, prediction_type):
    schedule = schedule_of(prediction_type)
    ddim = Ddim(schedule, num_steps, steps_offset)
    theirs = stock(DDIMScheduler, prediction_type, steps_offset)
    theirs.set_timesteps(num_steps)
    assert ddim.timesteps == tuple(theirs.timesteps.tolist()) and len(ddim) == num_steps
    levels = ddim.denoise(latent(), noise_of(schedule, ddim))
    x = latent()
    for step, t in enumerate(theirs.timesteps):
        x = theirs.step(network(x, int(t)), t, x).prev_sample
        torch.testing.assert_close(levels[step + 1], x, rtol=1e-10, atol=1e-10)


@conventions
def test_inversion_is_that_of_diffusers(num_steps, steps_offset):
    """DDIMInverseScheduler names a step by the noisier timestep, to which it goes, and so do the official codes.

    Its timesteps are therefore ours from clean to noisy, unshifted, and with set_alpha_to_one=False it starts at abar_0
    as ours does: all levels agree.
    """
    ddim = Ddim(schedule_of(), num_steps, steps_offset)
    theirs = stock(DDIMInverseScheduler, steps_offset=steps_offset)
    theirs.set_timesteps(num_steps)
    assert ddim.timesteps[::-1] == tuple(theirs.timesteps.tolist())
    pivots = ddim.invert(latent(), noise_of(ddim.schedule, ddim))
    x = latent()
    for number, t in enumerate(theirs.timesteps, start=1):
        x = theirs.step(network(x, int(t)), t, x).prev_sample
        torch.testing.assert_close(pivots[num_steps - number], x, rtol=1e-10, atol=1e-10)


def test_inversion_reads_a_v_prediction_at_the_timestep_that_the_network_was_given():
    """The inverse scheduler reads it at the level of the latent instead.

    Ours is the official codes' inversion of eps(z_{t-1}, t, c), the noise that is sampled with at t: the same for two
    networks that predict the same noise, one as epsilon and one as v.
    """
    schedule = schedule_of("v_prediction")
    ddim = Ddim(schedule, 50)
    x, step = latent(), 20
    t, level = ddim.timesteps[step], ddim.timesteps[step + 1]
    as_v, as_noise = stock(DDIMInverseScheduler, "v_prediction", 1), stock(DDIMInverseScheduler, "epsilon", 1)
    for scheduler in (as_v, as_noise):
        scheduler.set_timesteps(50)
    output = network(x, t)
    at_t, at_level = (schedule.predict_noise(x, output, torch.full((2,), time)) for time in (t, level))
    ours = ddim.move(x, noise_of(schedule, ddim)(x, step), step + 1, step)
    torch.testing.assert_close(ours, as_noise.step(at_t, t, x).prev_sample, rtol=1e-12, atol=1e-12)
    theirs = as_v.step(output, t, x).prev_sample
    torch.testing.assert_close(theirs, ddim.move(x, at_level, step + 1, step), rtol=1e-12, atol=1e-12)


def test_timesteps_of_both_conventions():
    assert Ddim(schedule_of(), 50, 0).timesteps[:2] == (980, 960) and Ddim(schedule_of(), 50, 0).timesteps[-1] == 0
    assert Ddim(schedule_of(), 50, 1).timesteps[:2] == (981, 961) and Ddim(schedule_of(), 50, 1).timesteps[-1] == 1
    assert Ddim(schedule_of(), 30, 0).timesteps[:2] == (957, 924)
    # Nothing beyond the last training timestep.
    assert Ddim(schedule_of(), 1000, 1).timesteps == tuple(reversed(range(1000)))


def test_with_offset_0_the_last_step_changes_nothing():
    schedule = schedule_of()
    for num_steps in (30, 50):
        still, moving = Ddim(schedule, num_steps, 0), Ddim(schedule, num_steps, 1)
        assert still.abar(num_steps - 1) == still.abar(num_steps) == schedule.alphas_cumprod[0].item()
        assert moving.abar(num_steps - 1) < moving.abar(num_steps) == schedule.alphas_cumprod[0].item()
        pivots = still.invert(latent(), noise_of(schedule, still))
        torch.testing.assert_close(pivots[-2], pivots[-1], rtol=1e-14, atol=1e-14)
        levels = still.denoise(latent(), noise_of(schedule, still))
        torch.testing.assert_close(levels[-2], levels[-1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("steps_offset", [0, 1])
def test_a_move_is_undone_by_the_same_noise(steps_offset):
    ddim = Ddim(schedule_of(), 10, steps_offset)
    x, noise = latent(), latent(1)
    for start in range(11):
        for end in range(11):
            there = ddim.move(x, noise, start, end)
            torch.testing.assert_close(ddim.move(there, noise, end, start), x, rtol=1e-11, atol=1e-11)


def test_rows_move_on_from_steps_of_their_own():
    ddim = Ddim(schedule_of(), 10)
    x, noise = latent(), latent(1)
    moved = ddim.next_latent(x, noise, torch.tensor([0, 9]))
    expected = torch.cat([ddim.move(x[:1], noise[:1], 0, 1), ddim.move(x[1:], noise[1:], 9, 10)])
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps_offset", [0, 1])
def test_a_noise_that_does_not_depend_on_the_latent_is_inverted_exactly(steps_offset):
    ddim = Ddim(schedule_of(), 30, steps_offset)

    def predict(x: Tensor, step: int) -> Tensor:
        return latent(step)

    pivots = ddim.invert(latent(99), predict)
    assert pivots.shape == (31, 2, 4, 4, 4) and torch.equal(pivots[-1], latent(99))
    torch.testing.assert_close(ddim.denoise(pivots[0], predict), pivots, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ddim.denoise(pivots[12], predict, first=12), pivots[12:], rtol=1e-11, atol=1e-11)


def test_more_steps_invert_a_smooth_noise_better():
    errors = []
    for num_steps in (10, 50, 250):
        ddim = Ddim(schedule_of(), num_steps)
        predict = noise_of(ddim.schedule, ddim)
        errors.append((ddim.denoise(ddim.invert(latent(), predict)[0], predict)[-1] - latent()).abs().max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; expected 1 to the 1000 training timesteps"):
        Ddim(schedule_of(), num_steps)


def test_other_offsets_are_refused():
    with pytest.raises(ValueError, match=r"steps_offset is 2; expected 0 .* or 1"):
        Ddim(schedule_of(), 50, 2)


# --- on a backbone -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    """SDXL-like, predicting epsilon; then SD-like, predicting v."""
    return Backbone.load(any_backbone)


def test_pivots_follow_the_unet(backbone):
    ddim = Ddim(backbone.schedule, 5)
    x0 = latent().float().repeat(1, 1, 4, 4)
    prompt = backbone.encode_text(["a cat", "a red car"])
    pivots = ddim_pivots(backbone, ddim, x0, prompt)
    assert pivots.shape == (6, 2, 4, 16, 16) and pivots.dtype == torch.float32 and not pivots.requires_grad
    assert torch.equal(pivots[-1], x0)
    theirs = stock(DDIMInverseScheduler, steps_offset=1)
    theirs.alphas_cumprod = backbone.schedule.alphas_cumprod
    theirs.initial_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(5)
    x = x0
    with torch.no_grad():
        for t in theirs.timesteps:
            output = backbone.unet(x, t, **prompt.unet_inputs()).sample
            noise = backbone.schedule.predict_noise(x, output, t.repeat(2))
            x = theirs.step(noise, t, x).prev_sample.float()
    torch.testing.assert_close(pivots[0], x, rtol=1e-4, atol=1e-4)


def test_guidance_is_one_evaluation_of_both_prompts(backbone):
    x = latent().float().repeat(1, 1, 4, 4)
    prompt = backbone.encode_text(["a cat", "a red car"])
    null = matching(backbone.encode_text([""]), prompt)
    assert len(null) == 2 and torch.equal(null.embeds[0], null.embeds[1])
    with torch.no_grad():
        conditional = predict_noise(backbone, x, 501, prompt)
        unconditional = predict_noise(backbone, x, 501, null)
        for guidance in (0.0, 1.0, 7.5):
            expected = unconditional + guidance * (conditional - unconditional)
            found = guided_noise(backbone, x, 501, prompt, null, guidance)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        at_each = predict_noise(backbone, x, torch.tensor([501, 21]), prompt)
        torch.testing.assert_close(at_each[:1], conditional[:1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(at_each[1:], predict_noise(backbone, x, 21, prompt)[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (3.0, 4)])
def test_an_inversion_costs_one_evaluation_a_step(backbone, guidance, rows):
    sizes = []
    handle = backbone.unet.register_forward_pre_hook(lambda unet, inputs: sizes.append(len(inputs[0])))
    prompt = backbone.encode_text(["a cat", "a red car"])
    null = matching(backbone.encode_text([""]), prompt)
    x0 = latent().float().repeat(1, 1, 4, 4)
    ddim_pivots(backbone, Ddim(backbone.schedule, 6), x0, prompt, null, guidance)
    handle.remove()
    assert sizes == [rows] * 6
