"""The miniature's rectified flow: what it learned of the student, and as stock diffusers loads it."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from data.world.captions import long_caption
from data.world.description import attribute_targets
from data.world.render import render
from data.world.splits import sample_scene
from eval.metrics.attributes import AttributeReader, agreement, stack_targets
from models.backbone import Backbone
from models.fingerprints import same_weights, vae_fingerprint
from models.generator import FewStepGenerator
from models.pictures import from_pictures
from models.sd3 import T5_TOKENS
from scripts.miniature.flow import FlowTask, RepeatedTokenAttention, build_text, build_transformer, sigmas_of
from scripts.miniature.measure import student_images
from train.rng import StepRandom

FLOW, STUDENT = "models/miniature/student_flow", "models/miniature/student"
SIGMAS = (1.0, 0.8032, 0.6173, 0.4094)


@pytest.fixture(scope="module")
def student() -> Backbone:
    return Backbone.load(STUDENT)


@pytest.fixture(scope="module")
def flow() -> Backbone:
    return Backbone.load(FLOW)


def test_its_sigmas_have_as_much_noise_beside_the_picture_as_the_students_timesteps(student: Backbone):
    alphas = student.schedule.alphas_cumprod[[749, 499, 249]].double()
    noise_to_signal = ((1 - alphas) / alphas).sqrt()
    assert sigmas_of(student.schedule) == pytest.approx([1.0, *(noise_to_signal / (1 + noise_to_signal)).tolist()])
    assert sigmas_of(student.schedule) == pytest.approx(SIGMAS, abs=1e-4)


@torch.no_grad()
def test_one_token_stands_for_all_of_t5s_zeros():
    """As the stock attention with 256 of them: the pictures' states, in all layers."""
    torch.manual_seed(0)
    network = build_transformer().eval()
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    text = torch.cat([torch.randn(2, 48, 256), torch.zeros(2, T5_TOKENS, 256)], dim=1)
    words = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "pooled_projections": torch.randn(2, 256),
        "timestep": torch.tensor([1000.0, 409.4]),
    }
    stock: Tensor = network(encoder_hidden_states=text, **words).sample
    network.set_attn_processor(RepeatedTokenAttention(T5_TOKENS))
    folded: Tensor = network(encoder_hidden_states=text[:, :49], **words).sample
    assert stock.std() > 0.1 and (folded - stock).abs().max() < 1e-4


@torch.no_grad()
def test_it_is_asked_where_the_student_was(student: Backbone):
    """Its inputs are the student's x_t but for a factor, its targets the student's x0 there."""
    x0, rng = torch.randn(3, 4, 16, 16), StepRandom(0, 0, 3, torch.arange(3))
    task = FlowTask(build_transformer(), student, build_text(student))
    prompt = student.encode_text(["a red circle on a blue background"] * 3)
    x_s, target = (part.unflatten(0, (4, 3)) for part in task.points(x0, prompt, rng))
    generator = FewStepGenerator(student)
    alpha = student.schedule.alphas_cumprod[[749, 499, 249]].float()
    for step, (timestep, a2) in enumerate(zip(generator.timesteps[1:], alpha, strict=True), start=1):
        x_t = x_s[step] * (a2.sqrt() + (1 - a2).sqrt())
        said = generator.predict_x0(x_t, prompt, torch.full((3,), timestep))
        assert (said - target[step]).abs().max() < 1e-3


def test_latents_of_the_student_are_its_own(student: Backbone, flow: Backbone):
    assert same_weights(vae_fingerprint(student), vae_fingerprint(flow))


@torch.no_grad()
def test_it_predicts_what_the_student_predicts(student: Backbone, flow: Backbone):
    scenes = [sample_scene("test", 0, index) for index in range(16)]
    captions = [long_caption(scene) for scene in scenes]
    x0 = student.encode_image(from_pictures([render(scene) for scene in scenes]))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    one, other = FewStepGenerator(student), FewStepGenerator(flow, SIGMAS)
    errors = []
    for timestep, sigma in zip(one.timesteps[1:], SIGMAS[1:], strict=True):
        t = torch.full((len(x0),), timestep)
        a, b = student.schedule.coefficients(t, x0)
        x_t = a * x0 + b * noise
        said = other.predict_x0(x_t / (a + b), flow.encode_text(captions), torch.full((len(x0),), sigma))
        errors.append((said - one.predict_x0(x_t, student.encode_text(captions), t)).square().mean().item())
    assert errors[0] < 0.3 and max(errors[1:]) < 0.1, errors


@torch.no_grad()
def test_four_steps_obey_captions(flow: Backbone):
    scenes = [sample_scene("test", 7, index) for index in range(48)]
    reader = AttributeReader.load(Path("models/miniature/attributes"))
    targets = stack_targets(attribute_targets(scene) for scene in scenes)
    obeyed = agreement(reader.read(student_images(flow, [long_caption(scene) for scene in scenes], 4)), targets)
    assert min(obeyed.values()) >= 0.87, obeyed


@torch.no_grad()
def test_stock_diffusers_loads_it_and_paints_the_same_picture(flow: Backbone):
    stock = StableDiffusion3Pipeline.from_pretrained(
        FLOW, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    stock.set_progress_bar_config(disable=True)
    caption = long_caption(sample_scene("test", 0, 3))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    painted = stock(caption, latents=noise, sigmas=[1.0], guidance_scale=0.0, height=64, width=64, output_type="pt")
    ours = FewStepGenerator(flow, (1.0,)).sample([noise], flow.encode_text([caption]))[-1]
    assert (painted.images * 2 - 1 - flow.decode(ours).clamp(-1, 1)).abs().max() < 1e-3
