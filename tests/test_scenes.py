"""Scenes: pictures are pure functions of descriptions, edits change only what they say, splits keep apart."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.scenes import write_scenes
from data.world.captions import long_caption, short_caption
from data.world.description import (
    ATTRIBUTE_VALUES,
    COLOURS,
    OBJECT_VALUES,
    PLACES,
    SHAPES,
    Scene,
    SceneObject,
    attribute_targets,
    has_heldout_pair,
)
from data.world.edits import EDIT_KINDS, changed_attributes, kept_attributes
from data.world.render import CANVASES, object_coverage, object_mask, render
from data.world.splits import SPLITS, sample_edits, sample_scene
from tests.processes import run

STAR = SceneObject("star", "red", "large", "solid", "plain", "upright", "left", seed=1)
CIRCLE = SceneObject("circle", "blue", "small", "striped", "stone", "upright", "right", seed=2)
PAIR = Scene((STAR, CIRCLE), "brick", "natural", seed=3)
EDITS = [(kind, index) for kind in EDIT_KINDS for index in range(12)]


def some_scenes(split: str = "train", num: int = 200) -> list[Scene]:
    return [sample_scene(split, 0, index) for index in range(num)]


def test_picture_depends_on_the_description_alone():
    for scene in some_scenes(num=30):
        again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
        assert again == scene
        picture = render(scene)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, render(again))


def test_every_nuisance_seed_changes_the_picture():
    other_object = replace(PAIR, objects=(replace(STAR, seed=9), CIRCLE))
    assert (render(other_object) != render(PAIR)).any()
    assert (render(replace(PAIR, seed=9)) != render(PAIR)).any()
    assert short_caption(other_object) == short_caption(PAIR)


def test_object_stays_inside_and_large_is_larger():
    for shape, place, seed in product(SHAPES, PLACES, range(5)):
        areas = []
        for size in OBJECT_VALUES["size"]:
            item = SceneObject(shape, "red", size, "solid", "plain", "upright", place, seed)
            coverage = object_coverage(item)
            areas.append(float(coverage.sum()))
            assert coverage.min() >= 0 and coverage.max() == 1
        assert 150 < areas[0] < 340 and areas[1] > 1.8 * areas[0]


@pytest.mark.parametrize("canvas", ["wide", "tall"])
def test_another_canvas_shows_the_same_scene(canvas: str):
    size = CANVASES[canvas]
    for kind, index in product(EDIT_KINDS, range(4)):
        edit = sample_edits("validation", 0, index, kind)
        source, target, mask = render(edit.source, size), render(edit.target, size), edit.mask(size)
        assert source.shape == (*size, 3) and mask.shape == size
        changed = (source != target).any(axis=2)
        assert not (changed & ~mask).any() and changed.sum() > 0.15 * mask.sum()
    for scene in some_scenes(num=60):
        for item in scene.objects:
            coverage, square = object_coverage(item, size), object_coverage(item)
            rim = np.concatenate([coverage[[0, -1]].ravel(), coverage[:, [0, -1]].ravel()])
            assert 0.7 < coverage.sum() / square.sum() < 0.8  # as the shorter side, 48 to 64
            assert (rim > 0).mean() < 0.1


def test_tilt_is_visible_and_circles_have_none():
    for shape in ("square", "triangle", "star"):
        upright = object_coverage(replace(STAR, shape=shape)) > 0.5
        tilted = object_coverage(replace(STAR, shape=shape, pose="tilted")) > 0.5
        assert (upright ^ tilted).sum() > 0.1 * upright.sum()
    with pytest.raises(ValueError, match="upright"):
        replace(CIRCLE, pose="tilted")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: replace(STAR, colour="orange"),
        lambda: replace(STAR, place="middle"),
        lambda: replace(STAR, seed=-1),
        lambda: replace(PAIR, background="sea"),
        lambda: replace(PAIR, style="noir"),
        lambda: replace(PAIR, objects=(CIRCLE, STAR)),
        lambda: replace(PAIR, objects=()),
        lambda: sample_scene("dev", 0, 0),
        lambda: sample_scene("train", 0, -1),
        lambda: sample_edits("train", 0, 0, "change_size"),
    ],
)
def test_wrong_values_are_refused(wrong: Callable[[], object]):
    with pytest.raises(ValueError, match="expected"):
        wrong()


def test_captions():
    assert short_caption(PAIR) == "a red star and a blue circle on a brick wall"
    assert long_caption(PAIR) == (
        "a large solid plain upright red star at the left and a small striped stone blue circle at the right, "
        "brick background, natural style"
    )


def test_long_caption_says_every_attribute_and_is_unique():
    by_caption: dict[str, dict[str, int]] = {}
    for scene in some_scenes(num=2000):
        caption = long_caption(scene)
        assert caption == caption.lower() and len(caption.split()) <= 40
        targets = attribute_targets(scene)
        assert by_caption.setdefault(caption, targets) == targets


def test_targets_follow_the_description():
    targets = attribute_targets(PAIR)
    assert set(targets) == set(ATTRIBUTE_VALUES)
    assert ATTRIBUTE_VALUES["layout"][targets["layout"]] == "left+right"
    assert ATTRIBUTE_VALUES["a_shape"][targets["a_shape"]] == "star"
    assert ATTRIBUTE_VALUES["b_colour"][targets["b_colour"]] == "blue"
    assert targets["a_pose"] == 0 and targets["b_pose"] == -1
    single = attribute_targets(replace(PAIR, objects=(CIRCLE,)))
    assert all(single[f"b_{name}"] == -1 for name in OBJECT_VALUES)


def test_every_value_occurs_and_a_third_are_pairs():
    scenes = some_scenes(num=1500)
    seen = {(name, value) for scene in scenes for name, value in attribute_targets(scene).items() if value >= 0}
    assert seen == {(name, number) for name, values in ATTRIBUTE_VALUES.items() for number in range(len(values))}
    assert sum(len(scene.objects) == 2 for scene in scenes) / len(scenes) == pytest.approx(1 / 3, abs=0.05)
    assert sum(scene.style == "natural" for scene in scenes) / len(scenes) == pytest.approx(0.6, abs=0.05)


def test_splits_do_not_overlap():
    seeds = [{scene.seed for scene in some_scenes(split, 300)} for split in SPLITS]
    assert len(set.union(*seeds)) == sum(len(part) for part in seeds) == 300 * len(SPLITS)
    for split in SPLITS:
        assert all(has_heldout_pair(scene) == (split == "heldout") for scene in some_scenes(split, 300))


def test_object_masks_are_disjoint_and_match_the_picture():
    pairs = [scene for scene in some_scenes() if len(scene.objects) == 2]
    for scene in pairs:
        first, second = object_mask(scene, 0), object_mask(scene, 1)
        assert not (first & second).any() and min(first.sum(), second.sum()) > 100
    with pytest.raises(IndexError):
        object_mask(replace(PAIR, objects=(STAR,)), 1)


@pytest.mark.parametrize(("kind", "index"), EDITS)
def test_edit_changes_only_what_its_mask_allows(kind: str, index: int):
    edit = sample_edits("validation", 0, index, kind)
    assert edit == sample_edits("validation", 0, index, kind)
    changed = (render(edit.source) != render(edit.target)).any(axis=2)
    mask = edit.mask()
    assert mask.shape == (64, 64) and mask.dtype == bool
    assert not (changed & ~mask).any()
    assert changed.sum() > 0.15 * mask.sum()
    assert edit.source.seed == edit.target.seed
    assert edit.instruction == edit.instruction.lower()


@pytest.mark.parametrize(("kind", "index"), EDITS)
def test_edited_captions_differ_in_edited_words_only(kind: str, index: int):
    edit = sample_edits("validation", 0, index, kind)
    source, target = (caption.replace(",", "").split() for caption in edit.captions())
    if kind in ("add_object", "delete_object"):
        short, long = sorted((source, target), key=len)
        extra = len(long) - len(short)
        starts = [n for n in range(len(short) + 1) if long[:n] + long[n + extra :] == short]
        assert starts and extra <= 11  # one phrase in one place
        return
    poses = set(OBJECT_VALUES["pose"])
    if kind == "change_object":  # a circle's pose is not said
        source, target = ([word for word in words if word not in poses] for words in (source, target))
    assert sum(a != b for a, b in zip(source, target, strict=True)) == 1


@pytest.mark.parametrize(("kind", "index"), EDITS)
def test_changed_and_kept_attributes_are_apart(kind: str, index: int):
    edit = sample_edits("validation", 0, index, kind)
    changed, kept = changed_attributes(edit), kept_attributes(edit)
    assert changed and not set(changed) & set(kept)
    source, target = attribute_targets(edit.source), attribute_targets(edit.target)
    assert all(source[before] == target[after] >= 0 for after, before in kept.items())
    assert all(target[name] >= 0 for name in changed)
    if kind not in ("add_object", "delete_object"):
        assert len(changed) == 1


def test_added_object_may_push_the_old_one_to_slot_b():
    edits = [sample_edits("test", 0, index, "add_object") for index in range(20)]
    pushed = [edit for edit in edits if edit.target.objects[1] == edit.source.objects[0]]
    assert 0 < len(pushed) < 20
    for edit in pushed:
        assert kept_attributes(edit)["b_colour"] == "a_colour"
        assert "a_colour" in changed_attributes(edit) and "layout" in changed_attributes(edit)


@pytest.mark.parametrize("split", SPLITS)
def test_edits_obey_the_rule_of_their_split(split: str):
    for kind, index in product(EDIT_KINDS, range(10)):
        edit = sample_edits(split, 0, index, kind)
        assert has_heldout_pair(edit.source) == has_heldout_pair(edit.target) == (split == "heldout")


def test_colour_edit_keeps_everything_but_colour():
    red, blue = (render(replace(PAIR, objects=(replace(STAR, colour=name), CIRCLE))) for name in ("red", "blue"))
    body = object_mask(PAIR, 0)
    assert red[body][:, 0].mean() > 1.5 * red[body][:, 2].mean()
    assert blue[body][:, 2].mean() > 1.5 * blue[body][:, 0].mean()
    outside = object_coverage(STAR) == 0
    np.testing.assert_array_equal(red[outside], blue[outside])
    assert len({render(replace(PAIR, objects=(replace(STAR, colour=name),))).tobytes() for name in COLOURS}) == len(
        COLOURS
    )


def test_written_folder_does_not_depend_on_workers(tmp_path: Path):
    write_scenes(tmp_path / "one", num=70, seed=5)
    run("-m", "data.scenes", tmp_path / "two", "--num=70", "--seed=5", "--workers=2")
    metadata = (tmp_path / "one" / "metadata.jsonl").read_bytes()
    assert metadata == (tmp_path / "two" / "metadata.jsonl").read_bytes()
    rows = [json.loads(line) for line in metadata.splitlines()]
    assert len(rows) == 70 and rows[0]["file_name"] == "00000/000000.png"
    for row in rows[::20]:
        scene = Scene.from_dict(row["scene"])
        assert row["text"] in (row["short"], row["long"]) and row["long"] == long_caption(scene)
        for folder in ("one", "two"):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / folder / row["file_name"])), render(scene))
    assert 0.5 < sum(row["text"] == row["long"] for row in rows) / len(rows) < 0.95


def test_writing_again_is_allowed_but_strange_files_are_refused(tmp_path: Path):
    write_scenes(tmp_path, num=3, captions="short")
    write_scenes(tmp_path, num=3, captions="long")
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert all(row["text"] == row["long"] for row in rows)
    with pytest.raises(ValueError, match="000002"):
        write_scenes(tmp_path, num=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes"):
        write_scenes(tmp_path, num=3)
    with pytest.raises(ValueError, match="num"):
        write_scenes(tmp_path / "none", num=0)
