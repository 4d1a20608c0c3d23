"""The students of the miniature, of v and of epsilon, go the whole way: training, export, inversion; and its LoRA."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from data.world.captions import long_caption
from data.world.description import attribute_targets
from data.world.render import render
from data.world.splits import sample_scene
from eval.metrics.attributes import AttributeReader, agreement, stack_targets
from eval.metrics.pixels import psnr
from models.backbone import Backbone
from models.fingerprints import same_weights, unet_fingerprint, vae_fingerprint
from models.generator import FewStepGenerator
from models.pictures import from_pictures
from scripts.miniature.epsilon import build_epsilon_unet
from scripts.miniature.measure import student_images
from tests.processes import run
from tests.turboedit_runs import STEPS, command, losses, write_shards

STUDENTS = {"student": "v_prediction", "student_epsilon": "epsilon"}


def folder(name: str) -> str:
    return f"models/miniature/{name}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of the one VAE that both have."""
    return write_shards(tmp_path_factory.mktemp("data"), folder("student"))


@pytest.mark.long
@pytest.mark.parametrize("name", STUDENTS)
def test_the_whole_way(name: str, shards: Path, tmp_path: Path):
    options = ("--log.preview_every=8", "--log.preview_samples=1", "--ema.decay=0")
    run("-m", *command(tmp_path / "run", shards, folder(name), *options))
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    assert [path.name for path in sorted((tmp_path / "run/samples").iterdir())] == [
        "step-000000.png",
        f"step-{STEPS:06d}.png",
    ]
    run("-m", "train.export", tmp_path / "run", tmp_path / "export", "--dtype=float32")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True)
    assert pipeline.scheduler.config.prediction_type == STUDENTS[name]
    pipeline.set_progress_bar_config(disable=True)
    scenes = [sample_scene("test", 0, index) for index in range(4)]
    images = from_pictures([render(scene) for scene in scenes])
    inversion = pipeline.invert(images, [long_caption(scene) for scene in scenes])
    backbone = Backbone.load(folder(name), parts=("vae",))
    ceiling = backbone.decode(backbone.encode_image(images))
    quality = [psnr(backbone.decode(latent), ceiling).mean().item() for latent in inversion.reconstructions]
    assert quality[-1] > 15


def test_the_students_differ_in_their_unet_alone():
    one, other = (Backbone.load(folder(name)) for name in STUDENTS)
    assert same_weights(vae_fingerprint(one), vae_fingerprint(other))
    assert not same_weights(unet_fingerprint(one), unet_fingerprint(other))
    assert [backbone.schedule.prediction_type for backbone in (one, other)] == list(STUDENTS.values())
    stock = StableDiffusionXLPipeline.from_pretrained(folder("student_epsilon"))
    assert stock.scheduler.config.prediction_type == "epsilon"


@torch.no_grad()
def test_the_epsilon_student_predicts_what_the_student_predicts():
    student, epsilon = (FewStepGenerator(Backbone.load(folder(name))) for name in STUDENTS)
    scenes = [sample_scene("test", 0, index) for index in range(16)]
    x0 = student.backbone.encode_image(from_pictures([render(scene) for scene in scenes]))
    prompt = student.backbone.encode_text([long_caption(scene) for scene in scenes])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for timestep in student.timesteps:
        t = torch.full((len(x0),), timestep)
        x_t = student.schedule.add_noise(x0, noise, t)
        difference = epsilon.predict_x0(x_t, prompt, t) - student.predict_x0(x_t, prompt, t)
        errors.append(difference.square().mean().item())
    assert max(errors) < 0.3 and max(errors[2:]) < 0.1, errors


@torch.no_grad()
def test_four_steps_of_the_teacher_with_its_lora_obey_captions_as_diffusers_loads_it():
    stock = StableDiffusionPipeline.from_pretrained(folder("teacher"))
    backbone = Backbone.load(folder("teacher"), parts=("vae", "text", "network"))
    scenes = [sample_scene("test", 7, index) for index in range(48)]
    captions, targets = [long_caption(s) for s in scenes], stack_targets(attribute_targets(s) for s in scenes)
    reader = AttributeReader.load(Path(folder("attributes")))
    without = agreement(reader.read(student_images(backbone, captions, 4)), targets)
    stock.load_lora_weights(folder("teacher_lora"))
    backbone.network = stock.unet
    obeyed = agreement(reader.read(student_images(backbone, captions, 4)), targets)
    assert min(obeyed.values()) >= 0.93 and min(without.values()) < 0.9, (obeyed, without)


@torch.no_grad()
def test_the_latent_is_led_past_the_layers():
    """Before its training the epsilon UNet gives its input, and a share of the student's output."""
    student = Backbone.load(folder("student")).unet
    unet = build_epsilon_unet(student).eval()
    led = unet.conv_norm_out.weight == unet.conv_norm_out.weight.max()
    assert led.sum() == 16
    unet.conv_out.weight[:, ~led] = 0.0
    unet.conv_out.bias.zero_()
    draw = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(2, 48, 256, generator=draw), torch.randn(2, 128, generator=draw)
    added = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0)}
    for size in (1.0, 0.3):
        x_t = size * torch.randn(2, 4, 16, 16, generator=draw)
        output = unet(x_t, torch.tensor([999, 249]), text, added_cond_kwargs=added).sample
        assert (output - x_t).norm() / x_t.norm() < 0.02
