"""The miniature is what its card says, and its recipe runs."""

import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from data.world.captions import long_caption, short_caption
from data.world.description import Scene, attribute_targets
from data.world.render import render
from data.world.splits import sample_scene
from eval.metrics.attributes import AttributeReader, agreement, stack_targets
from eval.metrics.pixels import psnr
from models.backbone import Backbone
from models.schedule import NoiseSchedule
from scripts.miniature import measure, parts
from scripts.miniature.make import make
from scripts.miniature.readers import round_trip, wrong_caption

MINIATURE = Path("models/miniature")
FILES = sorted(path for path in MINIATURE.rglob("*") if path.is_file())


def scenes(count: int) -> tuple[list[Scene], torch.Tensor]:
    """Test scenes and their pictures [count, 3, 64, 64]."""
    found = [sample_scene("test", 7, index) for index in range(count)]
    pixels = torch.stack([torch.from_numpy(render(scene)) for scene in found])
    return found, pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def test_weights_are_small_half_precision_safetensors():
    assert sum(path.stat().st_size for path in FILES) < 64e6
    assert {path.suffix for path in FILES} <= {".json", ".safetensors", ".md", ".jinja"}


def test_vae_round_trip_is_above_thirty_decibels():
    _, images = scenes(48)
    vae = Backbone.load(str(MINIATURE / "student"), parts=("vae",)).vae
    assert psnr(round_trip(vae, images), images).mean() >= 30


def test_reader_finds_every_attribute_on_renders_and_round_trips():
    found, images = scenes(160)
    reader = AttributeReader.load(MINIATURE / "attributes")
    targets = stack_targets(attribute_targets(scene) for scene in found)
    vae = Backbone.load(str(MINIATURE / "student"), parts=("vae",)).vae
    for pictures, required in ((images, 0.98), (round_trip(vae, images), 0.95)):
        shares = agreement(reader.read(pictures), targets)
        assert min(shares.values()) >= required, shares


def test_figures_of_the_card_meet_what_the_project_asks():
    figures = json.loads((MINIATURE / "figures.json").read_text())
    assert figures["vae_psnr"] >= 30
    assert min(figures["attributes_on_renders"].values()) >= 0.98
    assert min(figures["attributes_on_round_trips"].values()) >= 0.95
    teacher = figures["teacher_20_steps"]
    for name, share in teacher.items():
        assert share >= (0.80 if name == "shape" else 0.90), name
        assert figures["student_4_step"][name] >= share - 0.05, name
        assert figures["student_1_step"][name] >= share - 0.15, name
    captioner = figures["captioner"]
    assert captioner["described"]["right"] >= 0.95 and captioner["rewritten"]["right"] >= 0.95
    assert captioner["condensed"]["right"] >= 0.98 and captioner["uncut"] >= 0.98


def test_student_obeys_captions_now_as_on_the_card():
    found, _ = scenes(64)
    reader = AttributeReader.load(MINIATURE / "attributes")
    pictures = measure.student_images(Backbone.load(str(MINIATURE / "student")), [long_caption(s) for s in found], 4)
    shares = agreement(reader.read(pictures), stack_targets(attribute_targets(scene) for scene in found))
    assert min(shares.values()) >= 0.85, shares


def test_folders_are_stock_pipelines_of_the_said_kinds():
    teacher = StableDiffusionPipeline.from_pretrained(MINIATURE / "teacher")
    student = StableDiffusionXLPipeline.from_pretrained(MINIATURE / "student")
    assert teacher.unet.config.addition_embed_type is None
    assert student.unet.config.addition_embed_type == "text_time"
    for pipeline in (teacher, student):
        assert pipeline.scheduler.config.prediction_type == "v_prediction"
        schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
        assert schedule.alphas_cumprod[999] == pytest.approx(0.0046601, rel=1e-4)


def test_student_starts_as_its_teacher():
    """Before training: same output, whatever the second text encoder and the pooled text say."""
    teacher = parts.build_teacher_unet()
    student = parts.build_student_unet(teacher)
    torch.manual_seed(0)
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 7, parts.TEXT_WIDTH)
    added = {"text_embeds": torch.randn(2, parts.TEXT_WIDTH), "time_ids": torch.full((2, 6), 64.0)}
    both = torch.cat([text, torch.randn_like(text)], dim=-1)
    with torch.no_grad():
        expected = teacher(x, t, text).sample
        found = student(x, t, both, added_cond_kwargs=added).sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tokenizer_knows_the_captions_words_and_takes_any_text():
    tokenizer = CLIPTokenizer.from_pretrained(MINIATURE / "clip")
    for index in range(50):
        scene = sample_scene("test", 3, index)
        for caption in (long_caption(scene), short_caption(scene)):
            ids = tokenizer(caption).input_ids
            assert len(ids) == len(caption.replace(",", " ,").split()) + 2, caption
            assert len(ids) <= tokenizer.model_max_length
    assert tokenizer.decode(tokenizer("Photo of a café", add_special_tokens=False).input_ids) == "photo of a café"


def test_wrong_caption_changes_one_word_of_an_attribute():
    caption = long_caption(sample_scene("train", 0, 3))
    for seed in range(20):
        before, after = caption.split(), wrong_caption(caption, random.Random(seed)).split()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.long
def test_steps_of_the_recipe_are_taken_and_found_again_at_once(tmp_path: Path):
    """The first ones, in a few training steps each; a second call finds everything finished and changes nothing."""
    out, work = tmp_path / "miniature", tmp_path / "work"
    steps = ("scenes", "vae", "attributes")
    make(out, work, quick=True, steps=steps, processes=1)
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    names = [f"attributes/{name}" for name in ("config.json", "model.safetensors")]
    names += ["clip/tokenizer.json", "clip/tokenizer_config.json"]
    assert sorted(path.relative_to(out).as_posix() for path in first) == names
    trained = {path: path.stat().st_mtime_ns for path in work.rglob("runs/*/checkpoints/*/model.safetensors")}
    assert len(trained) == 2
    make(out, work, quick=True, steps=steps, processes=1)
    assert {path: path.read_bytes() for path in first} == first
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


@pytest.mark.long
def test_recipe_runs_to_a_complete_miniature_and_again_at_once(tmp_path: Path):
    """All steps in a few training steps each; a second call finds everything finished and changes nothing."""
    out, work = tmp_path / "miniature", tmp_path / "work"
    make(out, work, quick=True, processes=1)
    wanted = {path.relative_to(MINIATURE) for path in FILES}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == wanted
    first = (out / "student" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    make(out, work, quick=True, steps=("student",), processes=1)
    assert (out / "student" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == first


def test_unknown_step_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'vea'.*vae"):
        make(tmp_path, tmp_path, quick=True, steps=("vea",))
