"""The noise schedule against diffusers' own and against the figures of Stable Diffusion's betas."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from models.schedule import PREDICTION_TYPES, NoiseSchedule, trailing_timesteps

BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TIMESTEPS = torch.tensor([0, 199, 249, 399, 499, 599, 749, 799, 999])


def draws(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(len(TIMESTEPS), 4, 5, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def exact_schedule(prediction_type: str = "epsilon") -> NoiseSchedule:
    """Stable Diffusion's schedule computed in float64, as the figures below were."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return NoiseSchedule((1 - betas).cumprod(0), prediction_type)


def stock(prediction_type: str) -> DDPMScheduler:
    """diffusers' scheduler with its tables in float64."""
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


@pytest.mark.parametrize(
    ("t", "abar", "signal", "noise", "sigma"),
    [
        (999, 0.0046601, 0.0682649, 0.997667, 14.6146),
        (799, 0.037195, 0.192860, 0.981226, 5.0878),
        (749, 0.0566235, 0.237957, 0.971276, 4.0817),
        (599, 0.161753, 0.402185, 0.915559, 2.2765),
        (499, 0.277670, 0.526944, 0.849900, 1.6129),
        (399, 0.426086, 0.652753, 0.757571, 1.1606),
        (249, 0.675432, 0.821847, 0.569708, 0.6932),
        (199, 0.755238, 0.869045, 0.494734, 0.56928),
        (0, 0.99915, 0.999575, 0.029155, 0.029167),
    ],
)
def test_figures_of_stable_diffusions_betas(t: int, abar: float, signal: float, noise: float, sigma: float):
    schedule = exact_schedule()
    a, b = schedule.coefficients(torch.tensor([t]), torch.zeros(1, dtype=torch.float64))
    assert schedule.alphas_cumprod[t].item() == pytest.approx(abar, rel=2e-5)
    assert a.item() == pytest.approx(signal, rel=2e-5)
    assert b.item() == pytest.approx(noise, rel=2e-5)
    assert (b / a).item() == pytest.approx(sigma, rel=5e-4)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_any_scheduler_of_the_family_gives_the_same_schedule(kind: type):
    schedule = NoiseSchedule.from_scheduler(kind(**BETAS, prediction_type="v_prediction"))
    assert schedule.prediction_type == "v_prediction"
    torch.testing.assert_close(schedule.alphas_cumprod, exact_schedule().alphas_cumprod, rtol=1e-4, atol=0)


def test_add_noise_is_that_of_ddpm():
    x0, noise, _ = draws()
    scheduler = stock("epsilon")
    ours = NoiseSchedule.from_scheduler(scheduler).add_noise(x0, noise, TIMESTEPS)
    torch.testing.assert_close(ours, scheduler.add_noise(x0, noise, TIMESTEPS), rtol=1e-12, atol=1e-12)


def test_add_noise_is_that_of_euler_ancestral_in_vp_space():
    x0, noise, _ = draws()
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(1000)
    sigmas = scheduler.sigmas[:-1].flip(0).double()[TIMESTEPS].view(-1, 1, 1, 1)
    scaled = scheduler.add_noise(x0, noise, TIMESTEPS.float()).double() / (sigmas.square() + 1).sqrt()
    ours = NoiseSchedule.from_scheduler(scheduler).add_noise(x0, noise, TIMESTEPS)
    torch.testing.assert_close(ours, scaled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predicted_x0_is_that_of_ddpm(prediction_type: str):
    x_t, output, _ = draws()
    scheduler = stock(prediction_type)
    ours = NoiseSchedule.from_scheduler(scheduler).predict_x0(x_t, output, TIMESTEPS)
    steps = [scheduler.step(output[i], t, x_t[i]).pred_original_sample for i, t in enumerate(TIMESTEPS.tolist())]
    torch.testing.assert_close(ours, torch.stack(steps), rtol=1e-9, atol=1e-9)


def test_training_target_of_v_is_ddpms_velocity():
    x0, noise, _ = draws()
    scheduler = stock("v_prediction")
    ours = NoiseSchedule.from_scheduler(scheduler).training_target(x0, noise, TIMESTEPS)
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, noise, TIMESTEPS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_perfect_output_gives_back_x0_and_noise(prediction_type: str):
    x0, noise, _ = draws()
    schedule = exact_schedule(prediction_type)
    x_t, target = schedule.add_noise(x0, noise, TIMESTEPS), schedule.training_target(x0, noise, TIMESTEPS)
    torch.testing.assert_close(schedule.predict_x0(x_t, target, TIMESTEPS), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(schedule.predict_noise(x_t, target, TIMESTEPS), noise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_any_output_stands_for_an_x0_and_a_noise_that_make_x_t(prediction_type: str):
    x_t, output, _ = draws()
    schedule = exact_schedule(prediction_type)
    x0, noise = (f(x_t, output, TIMESTEPS) for f in (schedule.predict_x0, schedule.predict_noise))
    torch.testing.assert_close(schedule.add_noise(x0, noise, TIMESTEPS), x_t, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(schedule.training_target(x0, noise, TIMESTEPS), output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_keep_the_dtype_of_the_latent(dtype: torch.dtype):
    x0, noise, _ = (x.to(dtype) for x in draws())
    schedule = exact_schedule()
    assert schedule.add_noise(x0, noise, TIMESTEPS).dtype == dtype
    assert schedule.predict_x0(x0, noise, TIMESTEPS).dtype == dtype


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_trailing_timesteps_are_diffusers(num_steps: int):
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    assert trailing_timesteps(num_steps) == tuple(int(t) for t in scheduler.timesteps)


def test_trailing_timesteps_of_four_steps():
    assert trailing_timesteps(4) == (999, 749, 499, 249)
    assert trailing_timesteps(3) == (999, 666, 332)
    assert trailing_timesteps(1) == (999,)


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_number_of_steps_is_refused(num_steps: int):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; expected 1 to 1000"):
        trailing_timesteps(num_steps)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="prediction_type is 'flow'; expected one of"):
        NoiseSchedule(torch.ones(10), "flow")
