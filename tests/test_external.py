"""Rows of PIE-Bench whose pictures something else has edited: what is found, taken, listed and said of them."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.scene_pie_bench import write_pie_bench
from eval.external.options import ExternalRow, external_rows, gathered_external
from eval.external.pictures import take_external
from eval.pie.cases import PieCase, read_pie_bench
from eval.pie.edits import read_pixels, read_record
from eval.pie.figures import row_figures
from eval.pie.measures import units_of
from eval.pie.rows import refuse_built_in


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[PieCase]:
    folder = tmp_path_factory.mktemp("pie") / "annotation_images" / "here"  # a name that the benchmark's own folder has
    write_pie_bench(folder, 1)
    return read_pie_bench(folder)[0][:4]


def take(folder: Path, cases: Sequence[PieCase], tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    """The records of the cases after `folder` was taken."""
    take_external("theirs", ExternalRow(folder, **options), cases, tmp_path / "edits")
    return [read_record(tmp_path / "edits" / "theirs", case.key) for case in cases]


def edit(tmp_path: Path, case: PieCase) -> np.ndarray:
    return read_pixels(tmp_path / "edits" / "theirs" / f"{case.key}.png")


def save(path: Path, colour: Any, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_pictures_are_found_under_both_names_with_any_suffix(cases: list[PieCase], tmp_path: Path):
    theirs = tmp_path / "theirs"
    places = [theirs / f"{cases[0].key}.WebP"]
    places.append((theirs / "annotation_images" / cases[1].image_path).with_suffix(".jpg"))
    places.append((theirs / cases[2].image_path).with_suffix(".jpg"))
    for path in places[:2]:
        save(path, (250, 10, 10))
    strip = Image.new("RGB", (256, 64), "white")
    strip.paste((0, 0, 255), (192, 0, 256, 64))
    places[2].parent.mkdir(parents=True, exist_ok=True)
    strip.save(places[2], quality=95)
    records = take(theirs, cases, tmp_path)
    assert [record.get("error") for record in records] == [None] * 3 + ["there is no picture of this case"]
    assert [record.get("jpeg") for record in records] == [None, True, True, None]
    assert np.median(np.abs(edit(tmp_path, cases[2]).astype(int) - (0, 0, 255))) < 4  # a strip's last picture
    save(theirs / f"{cases[0].key}.png", "white")
    assert "several pictures of this case" in take(theirs, cases, tmp_path)[0]["error"]
    assert not (tmp_path / "edits" / "theirs" / f"{cases[0].key}.png").exists()


def test_pictures_of_another_size_are_listed_or_resized(
    cases: list[PieCase], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    theirs = tmp_path / "theirs"
    for case, size in zip(cases, ((64, 64), (128, 128), (96, 64), (66, 64)), strict=True):
        save(theirs / f"{case.key}.png", "red", size)
    records = take(theirs, cases, tmp_path)
    assert "128x128 px, expected 64x64" in records[1]["error"] and "96x64" in records[2]["error"]
    assert "1 of 4 pictures" in caplog.text and cases[3].key in caplog.text
    records = take(theirs, cases, tmp_path, resize=True)
    assert [record.get("resized_from") for record in records] == [None, [128, 128], None, [66, 64]]
    assert "another aspect" in records[2]["error"]
    assert (edit(tmp_path, cases[1]) == (255, 0, 0)).all() and edit(tmp_path, cases[1]).shape == (64, 64, 3)
    assert "128x128" in take(theirs, cases, tmp_path)[1]["error"]  # asked for no longer


def test_another_folder_is_taken_under_the_same_name(
    cases: list[PieCase], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of the 4 cases; expected KEY"):
        take(tmp_path / "empty", cases, tmp_path)
    save(tmp_path / "wrong" / f"{cases[0].key}.png", "red", (80, 80))
    with pytest.raises(ValueError, match=r"no picture of .*wrong can be used; .*80x80"):
        take(tmp_path / "wrong", cases, tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    save(first / f"{cases[0].key}.png", "red")
    save(first / f"{cases[1].key}.png", "red")
    assert "error" not in take(first, cases, tmp_path)[0]
    save(second / f"{cases[0].key}.png", "white")
    with caplog.at_level(logging.INFO):
        records = take(second, cases, tmp_path)
    assert (edit(tmp_path, cases[0]) == 255).all() and "error" in records[1]
    assert f"from {second}, before from {first}" in caplog.text
    (tmp_path / "edits" / "theirs" / "settings.json").write_text('{"editor": {}}')
    with pytest.raises(ValueError, match="holds edits that this evaluation has made itself"):
        take(second, cases, tmp_path)


def test_a_row_says_what_is_given_of_it(cases: list[PieCase], tmp_path: Path):
    save(tmp_path / "theirs" / f"{cases[0].key}.png", "red")
    said = {"title": "Theirs, v2", "prompts": "instructive", "mask": "given", "steps": 8, "seconds_edit": 1.5}
    words = ["--external.theirs.title", "Theirs, v2", "--num", "2", f"--external.theirs={tmp_path / 'theirs'}"]
    words += ["--external.theirs.steps", "8", "--external.other", "/x", "--external.theirs.resize", "true"]
    assert gathered_external(words) == [
        *(
            "--external.theirs",
            f'{{"title": "Theirs, v2", "folder": "{tmp_path / "theirs"}", "steps": 8, "resize": true}}',
        ),
        *("--num", "2", "--external.other", '{"folder": "/x"}'),
    ]
    rows = external_rows({"theirs": ExternalRow(tmp_path / "theirs", **said), "plain": tmp_path})
    assert rows["plain"] == ExternalRow(tmp_path)
    row = take_external("theirs", rows["theirs"], cases, tmp_path / "edits")
    figures = row_figures(row, cases, {}, tmp_path / "edits")
    assert {name: figures[name] for name in ("title", "prompts", "mask", "steps")} == {
        name: said[name] for name in ("title", "prompts", "mask", "steps")
    }
    assert figures["costs"]["seconds_edit"]["mean"] == 1.5 and figures["costs"]["nfe_edit"]["mean"] is None
    assert figures["failed"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--external.a.titel", "x"], "titel is no option of an external row; expected one of folder, title"),
        (["--external.a.title", "x"], "a has no folder; give it as --external.a FOLDER"),
        (["--external.a", "--num", "2"], "external.a has no value"),
    ],
)
def test_wrong_words_are_told(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        gathered_external(words)


def test_names_and_folders_are_checked_before_anything_else(tmp_path: Path):
    for name in ("turboedit", "turboedit_2", "ddim_turbo", "null_text", "vae", "truth"):
        with pytest.raises(ValueError, match=f"{name} is the name of a built-in row"):
            refuse_built_in(["mine", name])
    refuse_built_in(["theirs", "instruct_pix2pix", "flux_2"])
    with pytest.raises(ValueError, match=r"--external\.a .*: there is no such file or folder"):
        external_rows({"a": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        external_rows({"a": save(tmp_path / "a.png", "red")})
    with pytest.raises(ValueError, match=r"external\.a\.steps is -1"):
        external_rows({"a": ExternalRow(tmp_path, steps=-1)})


def test_pictures_of_several_sizes_are_measured_apart(cases: list[PieCase], tmp_path: Path):
    wide = [replace(case, mask=np.zeros((64, 96), bool)) for case in cases[:2]]
    units = units_of([cases[0], wide[0], cases[1], wide[1], cases[2]], 2)
    assert [[case.mask.shape[1] for case in unit] for unit in units] == [[64, 64], [64], [96, 96]]
    assert [case.key for unit in units_of(cases, 3) for case in unit] == [case.key for case in cases]
