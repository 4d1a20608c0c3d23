"""Descriptions of scenes say everything, and captions of any kind are read back."""

import numpy as np
import pytest

from data.world.captions import describe_at_length, long_caption, read_caption, short_caption
from data.world.description import ATTRIBUTE_VALUES, Scene, SceneObject, attribute_targets
from data.world.splits import sample_scene
from eval.scene_edits.written_captions import caption_figures


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_what_was_written_is_read_back(split: str):
    draw = np.random.default_rng(0)
    for index in range(300):
        scene = sample_scene(split, 3, index)
        for text in (long_caption(scene), describe_at_length(scene), describe_at_length(scene, draw)):
            assert read_caption(text) == attribute_targets(scene), text


def test_wordings_differ():
    draw, scene = np.random.default_rng(0), sample_scene("train", 0, 0)
    assert len({describe_at_length(scene, draw) for _ in range(50)}) > 20
    assert describe_at_length(scene) == describe_at_length(scene)


def test_what_is_not_said_is_not_read():
    scene = sample_scene("train", 0, 0)
    said = {name for name, value in read_caption(short_caption(scene)).items() if value >= 0}
    assert not said & {"layout", "style", "a_size", "a_fill"}
    assert set(read_caption("I'm sorry, I cannot help with that.").values()) == {-1}
    assert set(read_caption("").values()) == {-1}


def test_mistakes_are_counted_where_they_are():
    item = SceneObject("star", "red", "small", "striped", "stone", "tilted", "left", 0)
    scene = Scene((item,), "brick", "night", 0)
    right = long_caption(scene)
    assert caption_figures([right], [scene])["right"]["mean"] == 1
    wrong = caption_figures([right.replace("red", "blue").replace("brick", "grass")], [scene])
    assert wrong["right"]["mean"] == pytest.approx(7 / 9)
    assert {name for name, found in wrong["by_attribute"].items() if found["mean"] == 0} == {"a_colour", "background"}
    doubled = right.replace("at the left", "at the left and a small striped stone tilted blue star at the right")
    found = caption_figures([doubled], [scene])["by_attribute"]
    assert found["layout"]["mean"] == 0 and found["b_shape"]["mean"] == 0 and found["a_shape"]["mean"] == 1
    assert set(found) == set(ATTRIBUTE_VALUES)
