"""Data sets of edits in every form in which they are passed on, and pictures that are not as the models take them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data.scene_pie_bench import write_pie_bench
from eval.metrics.config import MetricConfig
from eval.pie.about import data_words, differences_from_published
from eval.pie.cases import read_pie_bench
from eval.pie.edits import read_pixels
from eval.pie.measures import undefined_measures
from eval.pie_bench import evaluate_pie_bench
from tests.slow_metrics import save_random_networks

SIDE = 64
MASK = "0 4 64 4 128 4 192 4"  # the square of 4 pixels in the corner


def square() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:4, :4] = True
    return mask


def picture(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE), kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture of smooth colours, `size` its width and height."""
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size).save(stream, kind, **options)
    return stream.getvalue()


def row(key: str, **changes: Any) -> dict[str, Any]:
    """A row of PIE-Bench++ as the hub has it."""
    found = {
        "image": {"bytes": picture(int(key)), "path": f"{key}.png"},
        "id": key,
        "source_prompt": "a cat sitting on a wooden chair",
        "target_prompt": "a [red] [dog] [standing] on a [metal] chair",
        "edit_action": '{"red": {"position": 1, "edit_type": 6, "action": "+"}}',
        "aspect_mapping": '{"dog": ["red", "standing"], "chair": ["metal"]}',
        "blended_words": '["cat,dog", "chair,chair", "bird,bird"]',
        "mask": MASK,
    }
    return found | changes


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the extra `pictures`) is not installed")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=2)


def left_out(bad: Sequence[Any]) -> dict[str, str]:
    return {note.key: note.reason for note in bad if note.left_out}


def test_the_hubs_parquet_files(tmp_path: Path):
    keys = ["423000000002", "423000000001", "411000000000"]
    rows = [row(key) for key in keys]
    rows[2]["image"]["bytes"] = picture(3, kind="JPEG")
    write_parquet(tmp_path / "data" / "4_change_attribute_content_40" / "V1-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "data" / "0_random_140" / "V1" / "0000.parquet", [row("000000000007")])
    cases, bad = read_pie_bench(tmp_path / "data", SIDE, tmp_path / "pictures")
    assert [case.key for case in cases] == ["000000000007", *keys], "files by name, rows as they stand"
    assert [case.type_id for case in cases] == ["0", "4", "4", "4"]
    assert cases[0].image_path == "0_random_140/000000000007.png" and cases[0].origin is None
    assert cases[1].image_path == "4_change_attribute_content_40/2_natural/3_indoor/423000000002.png"
    assert cases[3].image_path.endswith("/1_artificial/1_animal/411000000000.jpg") and cases[3].origin == "artificial"
    assert cases[3].image.read_bytes() == rows[2]["image"]["bytes"], "the file itself, not another compression of it"
    for case in cases:
        assert np.array_equal(case.mask, square()) and case.masked and case.instruction == ""
        assert case.target_prompt == "a red dog standing on a metal chair"
        assert (case.blended, case.all_blended) == (("cat", "dog"), ("cat, chair", "dog, chair"))
    assert {note.reason for note in bad} == {"1 of its blended_words are not in the prompts"} and not left_out(bad)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").iterdir()}
    read_pie_bench(tmp_path / "data", SIDE, tmp_path / "pictures")
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 4


def test_bad_rows_and_files_are_named_and_set_aside(tmp_path: Path):
    small = io.BytesIO()
    Image.fromarray(square()[:32, :32]).save(small, "PNG")
    white = io.BytesIO()
    Image.fromarray(square()).save(white, "PNG")
    rows = [
        row("000000000000"),
        row("000000000001", image={"bytes": None, "path": None}),
        row("000000000002", image={"bytes": b"\xff\xd8\xff no picture", "path": "torn.jpg"}),
        row("000000000003", mask="0 10 4096 5"),
        row("000000000004", mask="every place"),
        row("000000000005", target_prompt=None),
        row("000000000000", target_prompt="a dog"),
        row("000000000007", mask=None),
        row("000000000008", id="../8"),
    ]
    write_parquet(tmp_path / "0_random_140" / "a.parquet", rows)
    write_parquet(tmp_path / "0_random_140" / "b.parquet", [row("000000000010", mask=small.getvalue())])
    write_parquet(
        tmp_path / "0_random_140" / "c.parquet",
        [row("000000000011", mask={"bytes": white.getvalue()}, editing_type_id=3)],
    )
    write_parquet(tmp_path / "1_change_object_80" / "d.parquet", [{"image": b"", "source_prompt": "a cat"}])
    (tmp_path / "2_add_object_80").mkdir()
    (tmp_path / "2_add_object_80" / "e.parquet").write_bytes(
        (tmp_path / "0_random_140" / "a.parquet").read_bytes()[:-9]
    )
    cases, bad = read_pie_bench(tmp_path, SIDE, tmp_path / "pictures")
    assert [case.key for case in cases] == ["000000000000", "000000000011"]
    assert np.array_equal(cases[1].mask, square()) and cases[1].type_id == "3"
    reasons = left_out(bad)
    for key, words in {
        "000000000001": "no picture",
        "000000000002": "cannot be read",
        "000000000003": "the mask has a run at pixel 4096, the picture 64x64 px",
        "000000000004": "no list of starts and lengths",
        "000000000005": "no text under editing_prompt or target_prompt",
        "000000000000": "same key",
        "000000000007": "no mask",
        "../8": "cannot be the name of a file",
        "000000000010": "the mask has 32x32 px, the picture 64x64",
        "1_change_object_80/d.parquet": "no column target_prompt or editing_prompt; its columns are image, source",
        "2_add_object_80/e.parquet": "cannot be read as Parquet",
    }.items():
        assert words in reasons.pop(key), key
    assert not reasons
    with pytest.raises(ValueError, match=r"no case of --data .* can be used; the first reason: e.parquet: .*Parquet"):
        read_pie_bench(tmp_path / "2_add_object_80", SIDE, tmp_path / "pictures")


def test_rows_may_do_without_masks_and_ids(tmp_path: Path):
    write_parquet(tmp_path / "8_change_background_80" / "V1.parquet", [row("000000000000", id=None, mask=None)])
    (case,), _ = read_pie_bench(tmp_path, SIDE, tmp_path / "pictures")
    assert (case.key, case.type_id, case.masked) == ("8_change_background_80-V1-000000", "8", False)
    assert case.image_path == "8_change_background_80/8_change_background_80-V1-000000.png"


def test_pie_bench_plus_plus_as_json(tmp_path: Path):
    places = {"000000000002": "0_random_140/000000000002.png", "111000000003": "1_change_object_80/111000000003.png"}
    entries = {}
    for key, name in places.items():
        path = tmp_path / "annotation_images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(picture())
        entries[key] = {**row(key), "image_path": name, "blended_words": ["cat,dog"], "image": None}
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    cases, bad = read_pie_bench(tmp_path, SIDE)
    assert not bad and [(case.key, case.type_id) for case in cases] == [("000000000002", "0"), ("111000000003", "1")]
    assert [case.image_path for case in cases] == list(places.values()), "pictures in the data's own folder stay there"
    assert all(case.all_blended == ("cat", "dog") and np.array_equal(case.mask, square()) for case in cases)


def test_lists_of_targets_have_no_masks(tmp_path: Path):
    (tmp_path / "panda").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "panda" / "cartoon_30.png").write_bytes(picture(1))
    (tmp_path / "data" / "a horse.png").write_bytes(picture(2))
    items = [
        {"init_img": "/ImageNetR-TI2I/panda/cartoon_30.png", "target_prompts": ["a panda", "a toy of a panda"]},
        {"init_img": "data/a horse.png", "source_prompt": "a horse", "target_prompts": ["a [white] horse"]},
        {"init_img": "data/none.png", "target_prompts": ["nothing"]},
        {"seed": 50, "target_prompts": ["generated, so without a picture"]},
    ]
    (tmp_path / "wild-ti2i-real.yaml").write_text(yaml.safe_dump(items))
    cases, bad = read_pie_bench(tmp_path, SIDE)
    assert [(case.key, case.source_prompt, case.target_prompt) for case in cases] == [
        ("000_0_cartoon_30", "", "a panda"),
        ("000_1_cartoon_30", "", "a toy of a panda"),
        ("001_0_a horse", "a horse", "a white horse"),
    ]
    assert len({case.image_path for case in cases}) == 3, "names that tell edits of one picture apart"
    assert all(not case.masked and case.mask.all() for case in cases)
    assert {key: reason.split(",")[0] for key, reason in left_out(bad).items()} == {
        "002_0_none": "no picture at data/none.png",
        "003": "expected init_img",
    }
    assert {"clip_edited", "psnr_edit"} == undefined_measures(cases[2]) & {"clip_edited", "psnr_edit", "clip_source"}
    assert {"clip_source", "clip_direction"} < undefined_measures(cases[0])
    words = data_words(cases)
    assert len(words) == 2 and words[0].startswith("without a mask: 3 of 3 cases; ") and "instead" in words[0]
    assert words[1] == "without a source prompt: 2 of 3 cases; editors are given an empty one"
    (tmp_path / "other.yaml").write_text("[]")
    with pytest.raises(ValueError, match=r"several lists of edits, other\.yaml, wild-ti2i-real\.yaml"):
        read_pie_bench(tmp_path, SIDE)
    assert len(read_pie_bench(tmp_path / "wild-ti2i-real.yaml", SIDE)[0]) == 3


def test_pie_benchs_own_mapping_of_ti2i(tmp_path: Path):
    (tmp_path / "annotation_images").mkdir()
    (tmp_path / "annotation_images" / "cat.png").write_bytes(picture())
    entry = {"image_path": "cat.png", "original_prompt": "", "editing_instruction": "", "editing_type_id": "0"}
    entries = {
        str(number): entry | {"editing_prompt": f"a {colour} cat"} for number, colour in enumerate(("red", "blue"))
    }
    path = tmp_path / "mapping_file_ti2i_benchmark.json"
    path.write_text(json.dumps(entries))
    cases, bad = read_pie_bench(path, SIDE)
    assert not bad and [case.image_path for case in cases] == ["0.png", "1.png"]
    assert [(case.target_prompt, case.masked) for case in cases] == [("a red cat", False), ("a blue cat", False)]


def test_without_masks_whole_pictures_are_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data, theirs = tmp_path / "data", tmp_path / "theirs"
    data.mkdir()
    theirs.mkdir()
    for number in range(2):
        (data / f"{number}.png").write_bytes(picture(number))
        (theirs / f"00{number}_0_{number}.png").write_bytes(picture(number + 5))
    items = [{"init_img": f"{number}.png", "target_prompts": ["a red star"]} for number in range(2)]
    (data / "list.yaml").write_text(yaml.safe_dump([*items, {"init_img": "none.png", "target_prompts": ["none"]}]))
    networks = save_random_networks(tmp_path)
    metrics = MetricConfig(networks.lpips, str(networks.structure), str(networks.clip))
    instruct = {"follows": "hub/id"}
    results = evaluate_pie_bench(
        data, tmp_path / "out", external={"theirs": theirs}, instruct=instruct, metrics=metrics, device="cpu"
    )
    assert results is not None
    (row,) = (row for row in results["rows"] if row["row"] == "theirs")
    for form, found in row["forms"].items():
        there = {name for name, estimate in found.items() if estimate["n"] == 2}
        assert there == {"structure", "clip_whole", "psnr_whole", "mse_whole", "ssim_whole", "lpips_whole"}, form
    assert {"row": "follows", "reason": "the data has no instructions"} in results["left_out"]
    assert [note["key"] for note in results["bad_annotations"]] == ["002_0_none"]
    assert results["about"]["differs"][1] == "2 pictures of 64x64 px, not 512x512"
    assert (
        "without a mask: 2 of 2 cases" in caplog.text and "1 of 3 cases are left out. The first: 002_0" in caplog.text
    )
    assert "without a mask: 2 of 2 cases" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.yaml", "- [", "is not YAML"),
        ("list.yaml", "init_img: a.png", "no list of pictures"),
        ("mapping.json", "[]", "no entries by key"),
        ("cases.txt", "", r"expected a folder, or a file \.json, \.parquet or \.yaml"),
    ],
)
def test_files_that_are_no_data_set_are_told(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pie_bench(tmp_path / name)


def own_pictures(folder: Path) -> Path:
    """A scene folder in which one picture is wide and one was held sideways; returns it."""
    write_pie_bench(folder, 1)
    entries = json.loads((folder / "mapping_file.json").read_text())
    first, second = sorted(entries)[:2]
    wide = np.zeros((96, 300), bool)
    wide[20:40, 150:200] = True
    for key, size, mask in ((first, (300, 96), wide), (second, (SIDE, SIDE), square())):
        runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(int), [0]])))
        entries[key]["mask"] = [int(n) for pair in zip(runs[::2], runs[1::2] - runs[::2]) for n in pair]
        for place, name in (("annotation_images", "image_path"), ("true_edits", "true_edit_path")):
            exif = Image.Exif()
            exif[0x0112] = 6 if key == second else 1
            path = folder / place / entries[key][name]
            path.write_bytes(picture(int(key[0]), size, exif=exif))
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder


def test_pictures_of_another_size_are_resized_and_said(tmp_path: Path):
    data = own_pictures(tmp_path / "data")
    cases, bad = read_pie_bench(data, SIDE, tmp_path / "pictures")
    wide, sideways = cases[:2]
    assert len(cases) == 10 and [(note.key, note.left_out) for note in bad] == [(wide.key, False)]
    assert bad[0].reason == "300x96 px, cropped at the centre and resized to 112x32"
    assert wide.cutout is not None and wide.cutout.crop == (0, 5, 300, 86) and wide.truth is not None
    for path in (wide.image, wide.truth):
        assert path.parent == tmp_path / "pictures" and read_pixels(path).shape == (32, 112, 3)
    rows, columns = (np.flatnonzero(wide.mask.any(axis)) for axis in (1, 0))
    assert wide.mask.shape == (32, 112)
    assert abs(rows[0] - 15 * 32 / 86) <= 1 and abs(columns[-1] + 1 - 200 * 112 / 300) <= 1
    assert sideways.turned and np.array_equal(sideways.mask, square()), "a mask is of the upright picture"
    stored = np.asarray(Image.open(sideways.image))
    assert np.array_equal(read_pixels(sideways.image), np.rot90(stored, -1))
    words = data_words(cases)
    assert f"1 of 10 pictures, the first {wide.key} from 300 x 96 to 112 x 32" in words[0] and len(words) == 2
    assert words[1].startswith("turned upright by EXIF") and words[1].endswith("1 of 10 pictures")
    assert "cropped and resized pictures: 1" in differences_from_published(cases, [], jpeg=True)
    kept = {case.key: case.image for case in read_pie_bench(data)[0]}
    assert all(kept[case.key] == case.image for case in cases[1:]), "what fits is edited where it lies"


def test_without_a_folder_for_them_resized_pictures_are_left_out(tmp_path: Path):
    cases, bad = read_pie_bench(own_pictures(tmp_path), SIDE)
    assert len(cases) == 9 and len(left_out(bad)) == 1
