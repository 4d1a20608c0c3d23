"""Photographs edited with models that are loaded once: kept inversions, full size, edits on edits, threads."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval.photo_edits.editing import DRAWN, PhotoEdit, PhotoEditor
from eval.photo_edits.options import Aim, MethodOptions, PhotoEditOptions
from eval.photo_edits.photographs import Photograph, open_photograph
from eval.photo_edits.sheet import Tile, draw_sheet
from eval.photo_edits.sight import seen_change, unread_words
from eval.photo_edits.turboedit import TurboEditPhotos
from models.turboedit_pipeline import TurboEditPipeline
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET = "a red star", "a blue star"


@pytest.fixture(scope="module")
def pipeline(tiny_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_backbone)


@pytest.fixture
def editor(pipeline: TurboEditPipeline) -> PhotoEditor:
    return PhotoEditor(TurboEditPhotos(pipeline), MethodOptions(encoder="export"))


def photograph(width: int = 130, height: int = 90, name: str = "photo.png") -> Photograph:
    levels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return open_photograph(Image.fromarray(levels), name)


def drawn(width: int = 130, height: int = 90) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((width // 4, height // 4, width // 2, height // 2), fill=255)
    return mask


def test_a_photograph_is_inverted_once(editor: PhotoEditor):
    first = editor.invert(photograph(), SOURCE)
    assert first.cost.nfe == 8 and first.reconstruction.size == editor.seen(photograph()).size == (80, 48)
    again = editor.invert(photograph(name="copy.png"), SOURCE)
    assert again.start is first.start and again.photograph.name == "copy.png"
    assert editor.invert(photograph(), SOURCE, 2).start is not first.start
    assert editor.invert(photograph(), TARGET).start is not first.start
    assert editor.invert(photograph(131), SOURCE).start is not first.start
    assert list(first.noises) == [999, 749, 499, 249]


def test_only_some_inversions_are_kept(pipeline: TurboEditPipeline):
    editor = PhotoEditor(TurboEditPhotos(pipeline), MethodOptions(encoder="export"), kept=2)
    starts = [editor.invert(photograph(), text).start for text in "abc"]
    assert editor.invert(photograph(), "c").start is starts[2]
    assert editor.invert(photograph(), "a").start is not starts[0]


def test_edits_are_the_pipelines_own_at_full_size(editor: PhotoEditor, pipeline: TurboEditPipeline):
    photo, mask = photograph(), drawn()
    inverted = editor.invert(photo, SOURCE)
    inversion = pipeline.invert(photo.picture, SOURCE)
    for asked in (None, "auto", "noise", mask):
        edit = editor.edit(inverted, [Aim(TARGET, 1.2)], asked, 0.3)
        theirs = pipeline.edit(inversion, TARGET, 1.2, asked, 0.3)
        [full] = theirs.at_full_size(photo.picture, mask if asked is mask else None)
        assert edit.cost.nfe == (6 if asked == "noise" else 4)
        assert np.array_equal(np.asarray(edit.seen), np.asarray(theirs.images[0]))
        assert np.array_equal(np.asarray(edit.picture), np.asarray(full))
        assert (edit.mask_picture is None) == (asked is None)


def test_outside_of_the_mask_picture_every_pixel_is_the_photographs(editor: PhotoEditor):
    photo = photograph()
    for asked in ("auto", drawn()):
        edit = editor.edit(editor.invert(photo, SOURCE), [Aim(TARGET)], asked)
        assert edit.mask_picture is not None and edit.mask_picture.size == photo.picture.size
        kept = np.asarray(edit.mask_picture) == 0
        assert kept.any() and np.array_equal(np.asarray(edit.picture)[kept], np.asarray(photo.picture)[kept])


def test_settings_are_the_commands_options(editor: PhotoEditor):
    inverted = editor.invert(photograph(name="/photos/a.png"), SOURCE, 2)
    edit = editor.edit(inverted, [Aim(TARGET, 0.5), Aim("a star at night", -0.25)], drawn())
    assert edit.settings == {
        "encoder": "export",
        "image": ["/photos/a.png"],
        "prompt": [SOURCE],
        "target": [TARGET],
        "also": ["a star at night=-0.25"],
        "strengths": [0.5],
        "mask": DRAWN,
        "steps": 2,
    }
    assert edit.drawn is not None
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in edit.settings.items()}
    assert PhotoEditOptions(**lists).aims(TARGET, 0.5) == edit.aims


def test_settings_hold_whole_paths(pipeline: TurboEditPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is a file or a folder here; a hub id and a mask that was no file stay as they are."""
    (tmp_path / "export").mkdir()
    for name in ("drawn.png", DRAWN):
        drawn().save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    editor = PhotoEditor(TurboEditPhotos(pipeline), MethodOptions(encoder="export", clip="someone/clip"))
    first = editor.edit(editor.invert(photograph(), SOURCE), [Aim("a green star")], "drawn.png", 0.3)
    second = editor.edit(first, [Aim(TARGET)], drawn())
    assert second.settings["encoder"] == str(tmp_path / "export") and second.settings["clip"] == "someone/clip"
    assert first.settings["mask"] == second.settings["earlier"][0]["mask"] == str(tmp_path / "drawn.png")
    assert second.settings["mask"] == DRAWN and "threshold" not in first.settings


def test_an_edit_on_an_edit_keeps_what_the_first_has_made(editor: PhotoEditor):
    """Outside of its own mask: each pixel of the first edit, at the photograph's size."""
    inverted = editor.invert(photograph(), SOURCE)
    first = editor.edit(inverted, [Aim("a green star")], "auto")
    left = Image.new("L", (130, 90))
    ImageDraw.Draw(left).rectangle((0, 0, 40, 90), fill=255)
    second = editor.edit(first, [Aim(TARGET, 0.7)], left)
    outside = np.asarray(left) == 0
    assert np.array_equal(np.asarray(second.picture)[outside], np.asarray(first.base)[outside])
    assert not np.array_equal(np.asarray(second.picture), np.asarray(first.base))
    assert second.source is inverted and second.text == TARGET
    assert second.settings["earlier"] == [{"aims": ["a green star=1.0"], "mask": "auto", "threshold": 0.4}]
    whole = editor.edit(inverted, [Aim("a green star")])
    assert whole.base.size == (130, 90) and whole.picture.size == whole.source.start.cutout.crop[2:]


def test_what_cannot_be_done_is_told(editor: PhotoEditor, tmp_path: Path):
    inverted = editor.invert(photograph(), SOURCE)
    cases: list[tuple[list[Aim], object, str]] = [
        ([], None, "the target is empty"),
        ([Aim(" ")], None, "the target is empty"),
        ([Aim(TARGET), Aim(TARGET, 0.5)], None, "a target is given twice"),
        ([Aim(TARGET)], "autoo", "there is no picture at autoo"),
        ([Aim(TARGET)], Image.new("L", (40, 90)), "expected a mask of the same aspect"),
    ]
    for aims, mask, words in cases:
        with pytest.raises(ValueError, match=words):
            editor.edit(inverted, aims, mask)
    with pytest.raises(ValueError, match="the prompt is empty"):
        editor.invert(photograph(), "")
    with pytest.raises(ValueError, match="num_steps is 3"):
        editor.invert(photograph(), SOURCE, 3)
    with pytest.raises(ValueError, match="TurboEdit edits photographs: give --image"):
        editor.sample(SOURCE)
    (tmp_path / "empty.png").touch()
    for path, words in (
        ("none.png", "there is no picture at"),
        ("empty.png", r"cannot|can be read \(empty file\)"),
        ("long" * 99, r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(ValueError, match=words):
            open_photograph(tmp_path / path)


def test_threads_get_their_own_edits_and_counts(editor: PhotoEditor):
    """As one user after the other would."""
    photos = {name: photograph(100 + 10 * number, name=name) for number, name in enumerate("abcd")}

    def worked(name: str) -> PhotoEdit:
        return editor.edit(editor.invert(photos[name], SOURCE), [Aim(TARGET, 0.8)], "auto")

    found: dict[str, PhotoEdit] = {}
    threads = [threading.Thread(target=lambda name=name: found.update({name: worked(name)})) for name in photos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, edit in found.items():
        assert (edit.source.cost.nfe, edit.cost.nfe) == (8, 4)
        assert np.array_equal(np.asarray(edit.picture), np.asarray(worked(name).picture))
    assert len(found) == 4


# --- what the encoders see -------------------------------------------------------------------------------------------


def test_a_change_is_measured_by_the_embeddings(pipeline: TurboEditPipeline):
    near = seen_change(pipeline.backbone, SOURCE, "a red start")
    far = seen_change(pipeline.backbone, SOURCE, "forty-two blue circles in a dark wood at night")
    assert 0 < near.distance < far.distance and far.pooled is not None and far.pooled > 0
    assert not near.notes and not far.notes and not near.unread


def test_a_change_that_is_not_seen_is_said(pipeline: TurboEditPipeline):
    same = seen_change(pipeline.backbone, SOURCE, SOURCE)
    assert same.distance == 0 or same.distance < 1e-6
    assert same.notes == (f"the target {SOURCE!r} changes nothing: it is the prompt itself",)
    long = "a star " * 40  # each letter is a token here, of which 77 are read
    behind = seen_change(pipeline.backbone, long + "by day", long + "at night")
    assert behind.unread[-2:] == ("at", "night")
    assert "does not read" in behind.notes[0]
    assert behind.notes[1].endswith("changes nothing: all that changes stands behind the 77 tokens that are read")
    assert not seen_change(pipeline.backbone, long, "at night " + long).notes[1:]
    case = seen_change(pipeline.backbone, SOURCE, SOURCE.upper())
    assert not case.notes or "changes nothing" in case.notes[0]


def test_words_behind_the_limit_are_named(pipeline: TurboEditPipeline):
    readers = pipeline.backbone.readers
    assert unread_words(readers, "a red star") == ()
    words = ["star"] * 40
    unread = unread_words(readers, " ".join(words))
    assert 0 < len(unread) < 40
    assert unread_words(readers, " ".join(words[: 40 - len(unread)])) == ()


# --- the sheet -------------------------------------------------------------------------------------------------------


def test_a_sheet_has_a_row_for_each_target():
    tile = Tile("edit", Image.new("RGB", (80, 56), "red"), "many words " * 20)
    one, two = draw_sheet([[tile] * 2], (80, 56)), draw_sheet([[tile] * 3, [tile]], (80, 56))
    assert two.width > one.width > 2 * 256 and two.height > 1.9 * one.height
    assert two.getpixel((50, 100)) == (255, 0, 0)
