"""PIE-Bench folders: what is written of scenes, what is read, and what is wrong in one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.scene_pie_bench import write_pie_bench
from data.world.edits import EDIT_KINDS
from data.world.pie_layout import TYPE_FOLDERS, bracketed, run_lengths, short_prompts
from data.world.render import render
from data.world.splits import sample_edits
from eval.pie.cases import TYPE_NAMES, decode_mask, read_pie_bench, without_brackets
from models.words import changed_words

NUM = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pie")
    write_pie_bench(path, NUM)
    return path


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "mapping_file.json").read_text())


def test_the_folder_has_the_benchmarks_layout(folder: Path):
    found = entries(folder)
    assert len(found) == 10 * NUM
    assert [entry["editing_type_id"] for entry in found.values()] == [str(i) for i in range(10) for _ in range(NUM)]
    for key, entry in found.items():
        assert len(key) == 12 and key.isdigit()
        for name in ("original_prompt", "editing_prompt", "editing_instruction", "blended_word"):
            assert isinstance(entry[name], str)
        assert (folder / "annotation_images" / entry["image_path"]).is_file()


def test_cases_are_the_edits(folder: Path):
    cases, bad = read_pie_bench(folder, side=64)
    assert not bad and len(cases) == 10 * NUM
    by_key = {case.key: case for case in cases}
    for number, kind in enumerate(EDIT_KINDS, start=1):
        edit, case = sample_edits("test", 0, 0, kind), by_key[f"{number}00{0:09d}"]
        assert np.array_equal(np.asarray(Image.open(case.image)), render(edit.source))
        assert case.truth and np.array_equal(np.asarray(Image.open(case.truth)), render(edit.target))
        assert np.array_equal(case.mask, edit.mask())
        assert (case.source_prompt, case.target_prompt) == short_prompts(edit)
        assert case.long_prompts == edit.captions(long=True)
        assert case.instruction == edit.instruction
        assert TYPE_NAMES[case.type_id].split()[0] == TYPE_FOLDERS[number].split("_")[0]


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_short_prompts_say_what_the_edit_changes(kind: str):
    for index in range(30):
        edit = sample_edits("test", 0, index, kind)
        source, target = short_prompts(edit)
        assert source != target
        assert len(source) <= len(edit.captions(long=True)[0])


def test_random_edits_are_not_those_of_the_other_types(folder: Path):
    cases, _ = read_pie_bench(folder)
    pictures = [case.image.read_bytes() for case in cases]
    assert len(set(pictures)) == len(pictures)


def test_brackets_mark_the_words_that_differ(folder: Path):
    source, target = "a red star on teal, night style", "a blue star on grey, night style"
    only_source, only_target = changed_words(source, target)
    assert bracketed(source, only_source) == "a [red] star on [teal,] night style"
    assert without_brackets(bracketed(target, only_target)) == target
    assert bracketed("one two three", [0, 1, 2]) == "[one two three]"
    for entry in entries(folder).values():
        assert "[" in entry["original_prompt"] + entry["editing_prompt"]


def test_blended_words_are_in_their_prompts(folder: Path):
    cases, _ = read_pie_bench(folder)
    blended = [case for case in cases if case.blended]
    assert len(blended) >= NUM * 4
    for case in blended:
        assert case.blended and case.blended[0] in case.source_prompt and case.blended[1] in case.target_prompt


def test_masks_come_back():
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) > 0.5, np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        assert np.array_equal(decode_mask(run_lengths(mask), *mask.shape), mask)
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1]], dtype=bool)) == [1, 3, 5, 1]


def test_a_run_that_reaches_behind_the_picture_is_cut_off():
    assert decode_mask([7, 100, 9, 3, 50, 1], 3, 3).ravel().tolist() == [False] * 7 + [True] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": [1, 2, 3]}, "mask"),
        ({"mask": None}, "mask"),
        ({"mask": [-1, 3]}, "mask"),
        ({"editing_type_id": "12"}, "editing_type_id"),
        ({"editing_type_id": 1}, "editing_type_id"),
        ({"editing_prompt": "[ ]"}, "empty"),
        ({"original_prompt": None}, "original_prompt"),
        ({"image_path": "0/missing.jpg"}, "no picture"),
        ({"image_path": "0/torn.jpg"}, "cannot be read"),
        ({"image_path": "0/large.png"}, "96x80"),
    ],
)
def test_bad_annotations_are_listed_and_left_out(tmp_path: Path, change: dict[str, Any], reason: str):
    write_pie_bench(tmp_path, 1)
    pictures = tmp_path / "annotation_images" / "0"
    pictures.mkdir()
    (pictures / "torn.jpg").write_bytes(b"\xff\xd8\xff no picture")
    Image.new("RGB", (96, 80)).save(pictures / "large.png")
    found = entries(tmp_path)
    key = sorted(found)[3]
    found[key] |= change
    (tmp_path / "mapping_file.json").write_text(json.dumps(found))
    cases, bad = read_pie_bench(tmp_path, side=64)
    assert [note.key for note in bad] == [key] and reason in bad[0].reason and bad[0].left_out
    assert len(cases) == 9 and key not in {case.key for case in cases}


def test_strange_additions_are_mended_and_said(tmp_path: Path):
    write_pie_bench(tmp_path, 1)
    found = entries(tmp_path)
    first, second, third, fourth = sorted(found)[:4]
    found[first]["blended_word"] = "one two three"  # the official runner takes the first two
    found[second]["blended_word"] = "one"
    found[third]["true_edit_path"] = "0/missing.png"
    Image.new("RGB", (32, 32)).save(tmp_path / "true_edits" / found[fourth]["true_edit_path"])
    (tmp_path / "mapping_file.json").write_text(json.dumps(found))
    cases, bad = read_pie_bench(tmp_path)
    assert len(cases) == 10 and cases[0].blended == ("one", "two") and cases[1].blended is None
    assert [case.truth is None for case in cases[:4]] == [False, False, True, True]
    assert [note.key for note in bad] == [first, second, third, fourth] and not any(note.left_out for note in bad)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no mapping_file"), ("{", "not JSON"), ("[1]", "no entries"), ("{}", "no case")]
)
def test_a_folder_that_is_none_is_a_clear_error(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "mapping_file.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pie_bench(tmp_path)


def test_natural_and_artificial_pictures_are_told_apart_by_their_folders(folder: Path):
    case = read_pie_bench(folder)[0][0]
    for name, origin in {
        "1_change_object_80/1_artificial/1_animal/111000000000.jpg": "artificial",
        "4_change_attribute_content_40/2_natural/3_indoor/423000000000.jpg": "natural",
        "0_random_140/000000000000.jpg": None,
        "natural/000000000000.jpg": None,
    }.items():
        assert replace(case, image_path=name).origin == origin


def test_a_finished_folder_is_not_written_over(folder: Path):
    with pytest.raises(ValueError, match="already"):
        write_pie_bench(folder, NUM)
