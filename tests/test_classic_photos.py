"""Editors without an export on one photograph, or on a picture from noise, and exports of StyleDiffusion."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval.edit import edit_pictures, main
from eval.editors.options import ImagicConfig, NullTextSchedule
from eval.photo_edits.loading import load_photo_editor
from eval.photo_edits.options import Aim, MethodOptions, PhotoEditOptions
from eval.photo_edits.photographs import Photograph, open_photograph
from models.backbone import Backbone
from models.options import FitSchedule
from tests.tiny_editing import save_tiny_judges, save_tiny_style_export

STEPS, SOURCE, TARGET = 3, "a red star", "a blue star"
TEACHER = "models/miniature/teacher"
SHORT = {
    "null_text": NullTextSchedule(iterations=2),
    "imagic": ImagicConfig(embedding_steps=2, unet_steps=2),
    "fit": FitSchedule(iterations=2),
}


@pytest.fixture(scope="module")
def clip(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_judges(tmp_path_factory.mktemp("judges"), backbone.text.tokenizers[0])[1])


@pytest.fixture(scope="module")
def export(clip: str, tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StyleDiffusion of a random network."""
    return save_tiny_style_export(tiny_sd_backbone, clip, tmp_path_factory.mktemp("style") / "export", STEPS)


@pytest.fixture(scope="module")
def photo() -> Photograph:
    levels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    return open_photograph(Image.fromarray(levels), "photo.png")


@pytest.mark.parametrize("name", ["null_text", "imagic", "stylediffusion", "prompt_to_prompt", "direct", "sdedit"])
def test_editors_edit_a_photograph_of_any_shape(tiny_sd_backbone: str, clip: str, photo: Photograph, name: str):
    found = load_photo_editor(MethodOptions(editor=name, backbone=tiny_sd_backbone, clip=clip, device="cpu", **SHORT))
    inverted = found.invert(photo, SOURCE, STEPS)
    edit = found.edit(inverted, [Aim(TARGET, 0.5)])
    assert edit.seen.size == found.seen(photo).size == (80, 48) and edit.cost.nfe > 0
    assert edit.picture.size == inverted.start.cutout.crop[2:]
    mask = Image.new("L", (130, 90))
    ImageDraw.Draw(mask).rectangle((40, 20, 80, 60), fill=255)
    masked = found.edit(inverted, [Aim(TARGET, 0.5)], mask)
    outside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(masked.picture)[outside], np.asarray(photo.picture)[outside])
    if name != "sdedit":  # which has no reconstruction
        assert inverted.reconstruction is not None and inverted.reconstruction.size == (80, 48)


def test_what_a_user_says_of_words_counts():
    """On the miniature's teacher: a local blend keeps what stands beside the star, weights and word swap change it."""
    source = "a large solid plain upright red star at the left and a small solid plain upright blue circle at the right"
    found, changes = {}, {}
    for name, words in {
        "plain": {},
        "weights": {"weights": ("green=4",)},
        "blend": {"blend": ("green", "red")},
        "swap": {"swap": True},
    }.items():
        options = MethodOptions(
            editor="prompt_to_prompt", backbone=TEACHER, guidance=3.0, seed=1, device="cpu", **words
        )
        editor = load_photo_editor(options)
        inverted = editor.sample(f"{source}, sunset background, natural style", 10)
        target = inverted.prompt.replace("red", "green")
        found[name] = np.asarray(editor.edit(inverted, [Aim(target, 0.4)]).seen).astype(int)
        changes[name] = np.abs(found[name] - np.asarray(inverted.reconstruction))
    assert len({picture.tobytes() for picture in found.values()}) == 4
    assert changes["blend"][:, 32:].mean() < 0.8 * changes["plain"][:, 32:].mean()
    assert changes["blend"][:, :32].mean() > 0.9 * changes["plain"][:, :32].mean() > 10


def test_a_picture_from_noise_is_edited_too(tiny_sd_backbone: str, tmp_path: Path):
    words = ["--editor=prompt_to_prompt", f"--backbone={tiny_sd_backbone}", "--device=cpu", f"--steps={STEPS}"]
    main([*words, "--prompt", SOURCE, "--target", TARGET, "--seed=3", "--strengths=0.2", f"--out={tmp_path}"])
    record = json.loads((tmp_path / "noise_edited.json").read_text())
    assert record["image"] is None and record["size"] == [64, 64]
    settings = tmp_path / "noise_edited_1.json"
    assert "image" not in json.loads(settings.read_text())
    main([f"--config={settings}", "--device=cpu", f"--out={tmp_path / 'again'}"])
    main([f"--config={settings}", "--device=cpu", "--seed=4", f"--out={tmp_path / 'other'}"])
    first, again, other = ((tmp_path / place / "noise_edited_1.png").read_bytes() for place in ("", "again", "other"))
    assert first == again != other


def test_an_export_of_stylediffusion_edits_with_its_own_steps(export: Path, photo: Photograph, tmp_path: Path):
    editor = load_photo_editor(MethodOptions(encoder=str(export), device="cpu"))
    inverted = editor.invert(photo, SOURCE)
    assert inverted.cost.nfe == STEPS
    edit = editor.edit(inverted, [Aim(TARGET)])
    assert edit.cost.nfe == 4 * STEPS and edit.settings["encoder"] == str(export)
    with pytest.raises(ValueError, match=r"--steps is 7; the export's network was trained for 3"):
        editor.invert(photo, SOURCE, 7)
    photo.picture.save(tmp_path / "photo.png")
    texts = {"image": (str(tmp_path / "photo.png"),), "prompt": (SOURCE,), "target": (TARGET,)}
    [path] = edit_pictures(PhotoEditOptions(encoder=str(export), **texts, device="cpu", out=tmp_path / "out"))
    with Image.open(path) as alone:
        assert np.array_equal(np.asarray(alone), np.asarray(edit.picture))


def test_what_an_editor_does_not_do_is_told(tiny_sd_backbone: str, photo: Photograph):
    def loaded(name: str, **words: object) -> object:
        return load_photo_editor(MethodOptions(editor=name, backbone=tiny_sd_backbone, device="cpu", **words))

    for name, words, told in (
        ("magic", {}, "--editor is magic, which is unknown; expected one of prompt_to_prompt"),
        ("imagic", {"blend": ("star",)}, "--weights, --blend and --swap need an editor with Prompt-to-Prompt"),
        ("stylediffusion_amortised", {}, "needs --encoder, an export of a train.stylediffusion run"),
    ):
        with pytest.raises(ValueError, match=told):
            loaded(name, **words)
    editor = loaded("null_text", null_text=SHORT["null_text"], blend=("moon",))
    inverted = editor.invert(photo, SOURCE, STEPS)
    for aims, mask, told in (
        ([Aim(TARGET), Aim("night")], None, r"null_text takes one target; several at once \(--also\) are TurboEdit's"),
        ([Aim(TARGET)], "auto", "--mask auto is TurboEdit's; null_text takes a picture whose white may change"),
        ([Aim(TARGET)], None, "--blend names moon, which neither 'a red star' nor 'a blue star' has"),
    ):
        with pytest.raises(ValueError, match=told):
            editor.edit(inverted, aims, mask)
    weighted = loaded("prompt_to_prompt", weights=("blue=2",))
    for prompt, target, told in (
        (SOURCE, "a green star", r"the word 'blue' is not in the prompt 'a green star'"),
        (SOURCE, " ", "the target is empty"),
    ):
        with pytest.raises(ValueError, match=told):  # before an inversion
            weighted.check(prompt, [Aim(target, 0.5)])
    with pytest.raises(ValueError, match="swapping words"):
        loaded("prompt_to_prompt", swap=True).check(SOURCE, [Aim("a very blue star", 0.5)])
    with pytest.raises(ValueError, match="--weights and --swap act while cross attention is shared"):
        weighted.edit(weighted.invert(photo, SOURCE, STEPS), [Aim(TARGET, 1.0)])
    for name in ("sdedit", "ddpm", "masactrl", "blended", "direct"):
        with pytest.raises(
            ValueError, match=r"strength is 1\.5; expected a share of the steps, --strengths from 0 to 1"
        ):
            loaded(name).check(SOURCE, [Aim(TARGET, 1.5)])
    loaded("pix2pix_zero").check(SOURCE, [Aim(TARGET, 1.5)])
    with pytest.raises(ValueError, match=r"strength is 1\.5; expected a share"):
        weighted.edit(weighted.invert(photo, SOURCE, STEPS), [Aim(TARGET, 1.5)])
    with pytest.raises(ValueError, match="sdedit edits photographs alone: give --image"):
        loaded("sdedit").sample(SOURCE, STEPS)
