"""`python -m eval.edit` as a user runs it: pictures, and messages instead of tracebacks."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.world.render import render
from data.world.splits import sample_scene
from eval.edit import edit_picture, main
from eval.harness.exports import load_encoder
from tests.processes import run
from tests.tiny_editing import tiny_pipeline

WORDS = ("--prompt", "a red star", "--target", "a blue star")


@pytest.fixture(scope="module")
def place(tiny_backbone, tmp_path_factory) -> Path:
    """A folder with an export and a picture."""
    folder = tmp_path_factory.mktemp("edit")
    tiny_pipeline(tiny_backbone).save_pretrained(folder / "export")
    Image.fromarray(render(sample_scene("test", 0, 0))).save(folder / "scene.png")
    return folder


def edit(*options: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "eval.edit", *options, status=status)


def test_command_writes_the_picture_and_says_where(place):
    out = place / "new" / "result.png"
    done = edit("--encoder", place / "export", "--image", place / "scene.png", *WORDS, "--mask", "auto", "--out", out)
    assert str(out) in done.stderr + done.stdout
    with Image.open(out) as sheet, Image.open(out.with_name("result_alone.png")) as alone:
        assert sheet.width > 3 * 256
        assert alone.size == (64, 64)


def test_bad_input_ends_with_a_message_and_no_traceback(place):
    done = edit("--encoder", place / "nowhere", "--image", place / "scene.png", *WORDS, status=1)
    assert "there is no such folder made by train.export" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--encoder", "{place}/export", "--image", "{place}/none.png", *WORDS), "eval.edit: there is no picture at"),
        (("--encoder", "{place}/export", "--image", "{place}/scene.png", "--prompt", "a"), "2"),
        (("--encoder", "{place}/export", "--image", "{place}/scene.png", *WORDS, "--strength", "much"), "2"),
    ],
)
def test_exit_status_of_bad_input(place, options, code):
    with pytest.raises(SystemExit) as stopped:
        main([option.format(place=place) for option in options])
    assert str(stopped.value.code).startswith(code)  # a message becomes status 1


def test_backbone_is_no_encoder(place, tiny_backbone):
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
        edit_picture(Path(tiny_backbone), place / "scene.png", "a", "b", device="cpu")


def test_file_that_is_no_picture(place):
    (place / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        edit_picture(place / "export", place / "text.png", "a", "b", device="cpu")


def test_black_mask_leaves_the_picture(place):
    """As the VAE gives it back; also for a wide photograph, which keeps its aspect."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "wide.png")
    Image.new("L", (130, 90), 0).save(place / "black.png")
    common = dict(encoder=place / "export", image=place / "wide.png", prompt="a red star", target="b", device="cpu")
    edit_picture(**common, mask=str(place / "black.png"), out=place / "masked.png")
    pipeline = load_encoder(str(place / "export"))
    (trip,) = pipeline.decode(pipeline.backbone.encode_image(pipeline.preprocess(place / "wide.png")))
    with Image.open(place / "masked_alone.png") as masked:
        assert masked.size == trip.size == (80, 56)
        assert np.abs(np.asarray(masked).astype(int) - np.asarray(trip)).max() <= 1


def test_default_name_is_beside_the_picture(place):
    path = edit_picture(place / "export", place / "scene.png", "a red star", "a blue star", device="cpu")
    assert path == place / "scene_edited.png"
    assert path.is_file()
