"""`python -m eval.edit` as a user runs it: pictures, texts, figures, and messages instead of tracebacks."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.world.render import render
from data.world.splits import sample_scene
from eval.edit import edit_pictures, main
from eval.harness.exports import load_encoder
from eval.photo_edits.options import PhotoEditOptions
from models.options import FitSchedule
from tests.processes import run
from tests.tiny_editing import tiny_pipeline

WORDS = ("--prompt", "a red star", "--target", "a blue star")
MINIATURE = Path("models/miniature")


@pytest.fixture(scope="module")
def place(tiny_backbone, tmp_path_factory) -> Path:
    """A folder with an export and a picture."""
    folder = tmp_path_factory.mktemp("edit")
    tiny_pipeline(tiny_backbone).save_pretrained(folder / "export")
    Image.fromarray(render(sample_scene("test", 0, 0))).save(folder / "scene.png")
    return folder


def options(place: Path, **others: object) -> PhotoEditOptions:
    """Options of one edit of the scene, but for others."""
    usual = {"image": (str(place / "scene.png"),), "prompt": ("a red star",), "target": ("a blue star",)}
    return PhotoEditOptions(**{"encoder": str(place / "export"), **usual, "device": "cpu", **others})


def edit(*options: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "eval.edit", *options, status=status)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_command_writes_pictures_texts_and_figures_and_says_where(place):
    out = place / "new"
    done = edit("--encoder", place / "export", "--image", place / "scene.png", *WORDS, "--mask", "auto", "--out", out)
    assert str(out / "scene_edited.png") in done.stderr + done.stdout
    with Image.open(out / "scene_edited.png") as sheet, Image.open(out / "scene_edited_1.png") as alone:
        assert sheet.width > 4 * 256  # source, reconstruction, mask, edit
        assert alone.size == (64, 64)
    with Image.open(out / "scene_edited_1_mask.png") as mask:
        assert mask.size == (64, 64) and mask.mode == "L"
    record = json.loads((out / "scene_edited.json").read_text())
    assert record["prompt"] == "a red star" and record["inversion"]["nfe"] == 8
    [found] = record["edits"]
    assert found["nfe"] == 4 and found["seconds"] > 0 and found["mask"] == "auto" and not found["notes"]
    assert found["aims"][0]["text"] == "a blue star" and 0 < found["aims"][0]["distance"] < 1


def test_several_pictures_targets_and_strengths_come_of_models_that_are_loaded_once(place, tmp_path):
    """Each name of a folder's is there once; of the bad ones each is named, and the rest is made."""
    rng = np.random.default_rng(1)
    for name, size in (("tall", (90, 150)), ("wide", (130, 90))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "other" / "wide.jpg")
    names = ("tall.png", "text.png", "none.png", "wide.png", "other/wide.jpg")
    given = ("--image", *(tmp_path / name for name in names), "--strengths", "-0.5,1")
    targets = ("--prompt", "a red star", "--target", "a blue star", "a green star", "--also", "a star at night=0.5")
    done = edit("--encoder", place / "export", *given, *targets, "--out", tmp_path / "out", status=1)
    assert "not all edits were made" in done.stderr and "Traceback" not in done.stderr
    for bad in ("text.png", "none.png"):
        assert done.stderr.count(str(tmp_path / bad)) >= 2
    made = {path.name for path in (tmp_path / "out").iterdir()}
    for name in ("tall", "wide", "wide-2"):
        assert {f"{name}_edited.png", f"{name}_edited.json", *(f"{name}_edited_{i}.png" for i in range(1, 5))} <= made
    assert not [name for name in made if name.startswith(("text", "none"))]
    record = json.loads((tmp_path / "out" / "tall_edited.json").read_text())
    asked = [(one["aims"][0]["text"], one["aims"][0]["strength"], one["aims"][1]["text"]) for one in record["edits"]]
    assert asked == [(f"a {c} star", s, "a star at night") for c in ("blue", "green") for s in (-0.5, 1.0)]
    assert len({pixels(tmp_path / "out" / f"tall_edited_{i}.png").tobytes() for i in range(1, 5)}) == 4
    with Image.open(tmp_path / "out" / "tall_edited_1.png") as alone:
        assert alone.size == (90, 150)


def test_saved_settings_make_the_edit_again(place, tmp_path):
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).ellipse((10, 10, 40, 40), fill=255)
    mask.save(tmp_path / "drawn.png")
    words = {"strengths": (1.3,), "also": ("a star, at night=0.25",), "mask": str(tmp_path / "drawn.png"), "steps": 2}
    [first] = edit_pictures(options(place, **words, out=tmp_path / "first"))
    settings = json.loads(first.with_suffix(".json").read_text())
    assert settings["strengths"] == [1.3] and settings["steps"] == 2 and "device" not in settings
    main(["--config", str(first.with_suffix(".json")), "--device", "cpu", "--out", str(tmp_path / "second")])
    assert np.array_equal(pixels(first), pixels(tmp_path / "second" / first.name))
    assert json.loads((tmp_path / "second" / "scene_edited_1.json").read_text()) == settings


def test_the_papers_form_is_an_option_and_saved(place, tmp_path):
    words = {"strengths": (0.0,)}
    [usual] = edit_pictures(options(place, **words, out=tmp_path / "usual"))
    [paper] = edit_pictures(options(place, **words, outside="reconstruction", out=tmp_path / "paper"))
    assert "outside" not in json.loads(usual.with_suffix(".json").read_text())
    assert json.loads(paper.with_suffix(".json").read_text())["outside"] == "reconstruction"
    assert not np.array_equal(pixels(usual), pixels(paper))
    main(["--config", str(paper.with_suffix(".json")), "--device", "cpu", "--out", str(tmp_path / "again")])
    assert np.array_equal(pixels(paper), pixels(tmp_path / "again" / paper.name))


def test_nothing_is_overwritten(place, tmp_path, caplog):
    Image.open(place / "scene.png").save(tmp_path / "scene.png")
    image = (str(tmp_path / "scene.png"),)
    made = edit_pictures(options(place, image=image, strengths=(0.5, 1.0)))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    caplog.set_level("INFO")
    main(["--config", str(made[1].with_suffix(".json")), "--device=cpu"])
    assert {path: path.read_bytes() for path in before} == before
    assert (
        f"files of {tmp_path / 'scene_edited'} were there already and stay; these edits are scene_edited-2"
        in caplog.text
    )
    assert np.array_equal(pixels(tmp_path / "scene_edited-2_1.png"), pixels(made[1]))
    [third] = edit_pictures(options(place, image=image))
    assert third == tmp_path / "scene_edited-3_1.png"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"guidance": 3.0}, "--guidance is for --editor and exports of StyleDiffusion"),
        ({"seed": 1}, "--seed is for what an --editor draws"),
        ({"blend": ("star",)}, "--blend is for editors with Prompt-to-Prompt"),
        ({"fit": FitSchedule(iterations=2)}, "--fit is for --editor stylediffusion"),
    ],
)
def test_options_that_do_nothing_are_refused(place, tmp_path, words, told):
    with pytest.raises(ValueError, match=told):
        edit_pictures(options(place, **words, out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_one_unreadable_picture_stops_no_other(place, tmp_path):
    long = str(tmp_path / ("long" * 99))
    with pytest.raises(ValueError, match=r"not all edits were made; .*cannot be read"):
        edit_pictures(options(place, image=(long, str(place / "scene.png")), out=tmp_path))
    assert (tmp_path / "scene_edited_1.png").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        edit_pictures(options(place, image=(str(place / "scene.png"),) * 2, out=tmp_path / "file" / "out"))


def test_an_edit_goes_on_top_of_earlier_ones(place, tmp_path):
    earlier = '[{"aims": ["a green star=1.0"], "mask": "auto"}]'
    words = [f"--encoder={place / 'export'}", f"--image={place / 'scene.png'}", *WORDS, "--device=cpu"]
    main([*words, "--earlier", earlier, "--mask=noise", f"--out={tmp_path / 'two'}"])
    main([*words, "--mask=noise", f"--out={tmp_path / 'one'}"])
    assert not np.array_equal(pixels(tmp_path / "two/scene_edited_1.png"), pixels(tmp_path / "one/scene_edited_1.png"))
    main([f"--config={tmp_path / 'two' / 'scene_edited_1.json'}", "--device=cpu", f"--out={tmp_path / 'again'}"])
    again = pixels(tmp_path / "again" / "scene_edited_1.png")
    assert np.array_equal(again, pixels(tmp_path / "two" / "scene_edited_1.png"))


def test_a_captioner_writes_captions_and_changes_them_by_instructions(tmp_path):
    """From a photograph to its edit: with the miniature's LLaVA, from any folder."""
    tiny_pipeline(str(MINIATURE / "student")).save_pretrained(tmp_path / "export")
    scene = tmp_path / "scene.png"
    Image.fromarray(render(sample_scene("test", 1, 3))).save(scene)
    words = ["--encoder", str(tmp_path / "export"), "--captioner", str(MINIATURE / "llava"), "--device", "cpu"]
    main([*words, "--image", str(scene), "--instruction", "change the background to sky", "--out", str(tmp_path / "o")])
    record = json.loads((tmp_path / "o" / "scene_edited.json").read_text())
    [found] = record["edits"]
    assert found["instruction"] == "change the background to sky"
    assert len(record["prompt"].split()) > 4 and "sky" in found["aims"][0]["text"]
    assert "sky" not in record["prompt"]
    settings = json.loads((tmp_path / "o" / "scene_edited_1.json").read_text())
    assert settings["prompt"] == [record["prompt"]] and "captioner" not in settings and "instruction" not in settings
    main(["--config", str(tmp_path / "o" / "scene_edited_1.json"), "--device", "cpu", "--out", str(tmp_path / "again")])
    again = pixels(tmp_path / "again" / "scene_edited_1.png")
    assert np.array_equal(again, pixels(tmp_path / "o" / "scene_edited_1.png"))


def test_page_is_run_as_typed(place, tmp_path, monkeypatch):
    page = Path("docs/editing.md").read_text(encoding="utf-8")
    [typed] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Image.new("RGB", (120, 90), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(typed.replace("exports/turboedit-sdxl", str(place / "export")), names)
    assert (tmp_path / "edited.png").is_file() and len(names["again"].settings["earlier"]) == 1


def test_a_target_that_changes_nothing_is_said(place, tmp_path, caplog):
    edit_pictures(options(place, target=("a red star",), out=tmp_path))
    assert "the target 'a red star' changes nothing: it is the prompt itself" in caplog.text


def test_bad_input_ends_with_a_message_and_no_traceback(place):
    done = edit("--encoder", place / "nowhere", "--image", place / "scene.png", *WORDS, status=1)
    assert "there is no such folder made by train.export" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--image", "{place}/none.png", *WORDS), "eval.edit: there is no picture at"),
        (("--image", "{place}/none.png", "{place}/nor.png", *WORDS), "eval.edit: there is no picture at"),
        (("--image", "{place}/scene.png", *WORDS, "--mask", "autoo"), "eval.edit: --mask is autoo, expected auto"),
        (("--image", "{place}/scene.png", *WORDS, "--out", "x.png"), "eval.edit: --out is x.png, a file"),
        (("--image", "{place}/scene.png", *WORDS, "--captioner", "{place}/no"), "eval.edit: cannot load .*no"),
        (("--image", "{place}/scene.png", *WORDS, "--captioner", "http://127.0.0.1:9"), "eval.edit: .*no server"),
        (("--image", "{place}/scene.png", *WORDS, "--steps", "3"), "eval.edit: num_steps is 3"),
        (("--image", "{place}/scene.png", "--prompt", "a"), "2"),
        (("--image", "{place}/scene.png", "--target", "a"), "2"),
        (("--image", "{place}/scene.png", "--prompt", "a", "--instruction", "b"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--strengths", "much"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--strengths", "nan"), "2"),
        (("--image", "{place}/scene.png", "--prompt", "a", "red", "star", "--target", "b"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--also", "at night"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--threshold", "0.2"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--earlier", '[{{"aims": []}}]'), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--earlier", '[{{"aims": ["a=1"], "threshold": 2}}]'), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--also", "a star=nan"), "2"),
        (("--prompt", "a", "--target", "b"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--editor=null_text"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--editor=null_text", "--backbone=a/b", "--mask=auto"), "2"),
        (("--image", "{place}/scene.png", *WORDS, "--also", "a star=1", "a star=2"), "eval.edit: a target is given"),
    ],
)
def test_exit_status_of_bad_input(place, words, code):
    with pytest.raises(SystemExit) as stopped:
        main(["--encoder", f"{place}/export", "--device=cpu", *(word.format(place=place) for word in words)])
    assert re.match(code, str(stopped.value.code))  # a message becomes status 1


def test_backbone_is_no_encoder(place, tiny_backbone):
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
        edit_pictures(options(place, encoder=tiny_backbone))


def test_file_that_is_no_picture(place):
    (place / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        edit_pictures(options(place, image=(str(place / "text.png"),)))


def test_black_mask_leaves_the_photograph(place):
    """To the pixel, in its own size; what the networks made is the VAE's picture of it."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(noise).save(place / "wide.png")
    Image.new("L", (130, 90), 0).save(place / "black.png")
    [path] = edit_pictures(options(place, image=(str(place / "wide.png"),), mask=str(place / "black.png")))
    assert np.array_equal(pixels(path), noise)
    pipeline = load_encoder(str(place / "export"))
    inversion = pipeline.invert(place / "wide.png", "a red star")
    [seen] = pipeline.edit(inversion, "a blue star", mask=place / "black.png").images
    (trip,) = pipeline.decode(pipeline.backbone.encode_image(pipeline.preprocess(place / "wide.png")))
    assert seen.size == trip.size == (80, 48)
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(trip)).max() <= 1


def test_default_names_are_beside_the_picture(place):
    [path] = edit_pictures(options(place))
    assert path == place / "scene_edited_1.png" and path.is_file()
    assert (place / "scene_edited.png").is_file()
