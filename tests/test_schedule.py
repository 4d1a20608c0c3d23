"""The noise schedule against diffusers' own and against the figures of Stable Diffusion's betas."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from models.schedule import PREDICTED, NoiseSchedule, trailing_timesteps

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


@pytest.mark.parametrize(
    "kind",
    [
        DDPMScheduler,
        DDIMScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        LCMScheduler,
        TCDScheduler,
    ],
)
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


@pytest.mark.parametrize("prediction_type", PREDICTED["variance_preserving"])
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


SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.716, 0.5, 0.25, 0.1, 0.009, 1e-3])
ANGLES = torch.tensor([1.5708, 1.3, 1.2, 1.0, 0.8, 0.5, 0.3, 0.1, 1e-3])


def times_of(schedule: NoiseSchedule) -> Tensor:
    """Nine timesteps from end to end."""
    return {"rectified_flow": SIGMAS, "trigonometric": ANGLES}.get(schedule.kind, TIMESTEPS)


@pytest.fixture(params=[(kind, output) for kind, outputs in PREDICTED.items() for output in outputs], ids="-".join)
def any_schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    """Each schedule with each prediction type that it has."""
    kind, prediction_type = request.param
    return exact_schedule(prediction_type) if kind == "variance_preserving" else NoiseSchedule(kind, prediction_type)


def test_perfect_output_gives_back_x0_and_noise(any_schedule: NoiseSchedule):
    x0, noise, _ = draws()
    t = times_of(any_schedule)
    x_t, target = any_schedule.add_noise(x0, noise, t), any_schedule.training_target(x0, noise, t)
    torch.testing.assert_close(any_schedule.predict_x0(x_t, target, t), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(any_schedule.predict_noise(x_t, target, t), noise, rtol=1e-10, atol=1e-10)


def test_any_output_stands_for_an_x0_and_a_noise_that_make_x_t(any_schedule: NoiseSchedule):
    x_t, output, _ = draws()
    t = times_of(any_schedule)
    x0, noise = (f(x_t, output, t) for f in (any_schedule.predict_x0, any_schedule.predict_noise))
    torch.testing.assert_close(any_schedule.add_noise(x0, noise, t), x_t, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(any_schedule.training_target(x0, noise, t), output, rtol=1e-10, atol=1e-10)


def test_a_rectified_flow_is_that_of_flow_match_euler():
    x0, noise, velocity = (x[:4] for x in draws())
    scheduler = FlowMatchEulerDiscreteScheduler()
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert (schedule.kind, schedule.prediction_type) == ("rectified_flow", "velocity")
    t = schedule.times([1.0, 0.75, 0.5, 0.25])
    x_t = schedule.add_noise(x0, noise, t)
    found = schedule.predict_x0(x_t, velocity, t)
    for i, sigma in enumerate(t.tolist()):
        scheduler.set_timesteps(sigmas=[sigma])  # a step to the end
        time, rows = scheduler.timesteps, slice(i, i + 1)
        torch.testing.assert_close(x_t[rows], scheduler.scale_noise(x0[rows], time, noise[rows]), rtol=1e-6, atol=1e-6)
        end = scheduler.step(velocity[rows], time[0], x_t[rows]).prev_sample
        torch.testing.assert_close(found[rows], end, rtol=1e-6, atol=1e-6)
    a, b = schedule.coefficients(t[:2], torch.zeros(2, dtype=torch.float64))
    assert a.tolist() == [0.0, 0.25] and b.tolist() == [1.0, 0.75]


def test_a_trigonometric_schedule_is_that_of_scm():
    x0, noise, output = draws()
    scheduler = SCMScheduler(sigma_data=1.0)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert (schedule.kind, schedule.prediction_type) == ("trigonometric", "trigflow")
    scheduler.set_timesteps(2)
    first, second, _ = scheduler.timesteps
    x_t = schedule.add_noise(x0, noise, ANGLES)
    cosines, sines = (f(ANGLES.double()).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
    torch.testing.assert_close(x_t, cosines * x0 + sines * noise)
    step = scheduler.step(output[:1], first, x_t[:1], generator=torch.Generator().manual_seed(0))
    found = schedule.predict_x0(x_t[:1], output[:1], first[None])
    torch.testing.assert_close(step.pred_original_sample, found, rtol=1e-6, atol=1e-6)
    eps = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(step.prev_sample, schedule.add_noise(found, eps, second[None]), rtol=1e-6, atol=1e-6)


def test_epsilon_with_zero_terminal_snr_is_refused_and_v_is_not():
    for kind in (DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler):
        options = dict(BETAS, rescale_betas_zero_snr=True)
        with pytest.raises(ValueError, match=r"predicts epsilon and .* pure noise .*rescale_betas_zero_snr is false"):
            NoiseSchedule.from_scheduler(kind(**options))
        NoiseSchedule.from_scheduler(kind(**options, prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="divides by zero"):
        NoiseSchedule(torch.tensor([0.9, 0.5, 0.0]), "epsilon")
    ended = NoiseSchedule(torch.tensor([0.9, 0.5, 0.0]), "v_prediction")
    assert ended.reaches_pure_noise and not exact_schedule().reaches_pure_noise
    assert torch.equal(
        ended.predict_x0(torch.ones(1), torch.full((1,), -3.0), torch.tensor([2])), torch.full((1,), 3.0)
    )


def test_a_scheduler_of_no_known_kind_is_refused_and_a_prediction_type_can_be_given():
    distilled = NoiseSchedule.from_scheduler(DDIMScheduler(**BETAS), prediction_type="sample")
    assert distilled.prediction_type == "sample"
    assert NoiseSchedule.from_scheduler(UniPCMultistepScheduler(**BETAS)).kind == "variance_preserving"
    with pytest.raises(ValueError, match="the scheduler is a Generator; expected one that is built from betas"):
        NoiseSchedule.from_scheduler(torch.Generator())
    with pytest.raises(ValueError, match=r"is 'epsilon'; expected one of .* rectified-flow schedule"):
        NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(), prediction_type="epsilon")
    with pytest.raises(ValueError, match="the schedule is rectified_flow and has no alphas_cumprod"):
        _ = NoiseSchedule("rectified_flow", "velocity").alphas_cumprod


def test_timesteps_are_never_rounded():
    indices = exact_schedule().times([999, 749.0, 0])
    assert indices.dtype == torch.int64 and indices.tolist() == [999, 749, 0]
    sigmas = NoiseSchedule("rectified_flow", "velocity").times([1, 0.967, 0.9375])
    assert sigmas.dtype == torch.float32 and torch.equal(sigmas, torch.tensor([1.0, 0.967, 0.9375]))
    assert NoiseSchedule("trigonometric", "trigflow").read_timesteps([1.5708, 1.3]) == (1.5708, 1.3)
    latent = torch.ones(1, dtype=torch.bfloat16)
    a, b = NoiseSchedule("rectified_flow", "velocity").coefficients(torch.tensor([0.999]), latent)
    assert a.item() == pytest.approx(0.001, rel=4e-3) and b.dtype == torch.bfloat16  # 0.999 in bfloat16 is 1


@pytest.mark.parametrize("numbers", [[], [249, 749], [999, 999], [1000, 500], [499, -1], [999, 0.75]])
def test_timesteps_that_a_table_lacks_are_refused(numbers: list[float]):
    with pytest.raises(ValueError, match=r"generator.timesteps is .*; expected falling indices from 999 to 0 such as"):
        exact_schedule().read_timesteps(numbers, "generator.timesteps")


@pytest.mark.parametrize("numbers", [[], [0.5, 0.75], [999, 749], [1.0, 0.0], [1.0, -0.5]])
def test_timesteps_that_a_flow_lacks_are_refused(numbers: list[float]):
    with pytest.raises(ValueError, match=r"timesteps is .*; expected falling numbers from 1 to above 0, such as 1"):
        NoiseSchedule("rectified_flow", "velocity").read_timesteps(numbers)


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
