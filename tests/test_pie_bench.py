"""PIE-Bench from the folder to the page: golden values, several processes, rows that run and rows that cannot."""

import csv
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from data.scene_pie_bench import write_pie_bench
from data.world.edits import EDIT_KINDS
from eval.metrics.config import MetricConfig
from eval.metrics.measures import PIE_MEASURES
from eval.metrics.pixels import MAX_PSNR
from eval.pie.cases import in_turn, read_pie_bench
from eval.pie.config import TeacherConfig
from eval.pie.edits import read_pixels
from eval.pie.figures import reference_checks
from eval.pie.metrics import FORMS
from eval.pie_bench import evaluate_pie_bench
from tests.processes import finish, start, start_ranks
from tests.slow_metrics import SlowModels, save_random_networks, slow_measures
from tests.tiny_editing import tiny_pipeline

NUM = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pie")
    write_pie_bench(folder, 2)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> SlowModels:
    return save_random_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def theirs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edits that something else has made: a share of the true edit and some noise."""
    folder = tmp_path_factory.mktemp("theirs")
    rng = np.random.default_rng(0)
    for case in read_pie_bench(data)[0]:
        assert case.truth is not None
        source, truth = (read_pixels(path).astype(float) for path in (case.image, case.truth))
        edit = 0.3 * source + 0.7 * truth + rng.normal(0, 6, source.shape)
        Image.fromarray(edit.round().clip(0, 255).astype(np.uint8)).save(folder / f"{case.key}.png")
    return folder


@pytest.fixture(scope="module")
def export(tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tiny_pipeline(tiny_sd_backbone).save_pretrained(folder)
    return folder


def config(networks: SlowModels) -> MetricConfig:
    return MetricConfig(networks.lpips, str(networks.structure), str(networks.clip))


def table(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in results["rows"]}


@pytest.fixture(scope="module")
def golden(
    data: Path, theirs: Path, networks: SlowModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("golden")
    results = evaluate_pie_bench(data, out, external={"theirs": theirs}, num=NUM, metrics=config(networks), batch=5)
    assert results is not None
    return out, results


def test_every_value_is_that_of_the_slow_implementation(
    golden: tuple[Path, dict[str, Any]], data: Path, theirs: Path, networks: SlowModels
):
    out, results = golden
    cases = in_turn(read_pie_bench(data)[0], NUM)
    assert len(cases) == NUM and len({case.type_id for case in cases}) == 10
    expected: dict[tuple[str, str], list[float]] = {}
    found = {(line["row"], line["key"], line["form"]): line for line in table(out)}
    for case in cases:
        source, edit = read_pixels(case.image), read_pixels(theirs / f"{case.key}.png")
        slow = slow_measures(networks, source, edit, case.mask, case.source_prompt, case.target_prompt)
        for form in FORMS:
            for measure in PIE_MEASURES:
                cell, value = found["theirs", case.key, form][measure], slow[form][measure]
                expected.setdefault((form, measure), []).append(value)
                assert (cell == "") == np.isnan(value), (case.key, form, measure)
                if cell:
                    assert float(cell) == pytest.approx(value, rel=2e-4, abs=2e-6), (case.key, form, measure)
    for (form, measure), values in expected.items():
        figure = rows_of(results)["theirs"]["forms"][form][measure]
        kept = [value for value in values if not np.isnan(value)]
        assert figure["n"] == len(kept)
        assert figure["mean"] == pytest.approx(np.mean(kept), rel=2e-4, abs=2e-6)
        assert figure["se"] == pytest.approx(np.std(kept, ddof=1) / len(kept) ** 0.5, rel=1e-3, abs=2e-6)


def test_references_come_out_where_they_should(golden: tuple[Path, dict[str, Any]]):
    rows = rows_of(golden[1])
    for form in FORMS:
        for row in ("identity", "truth"):
            assert rows[row]["forms"][form]["psnr"]["mean"] == MAX_PSNR and rows[row]["forms"][form]["mse"]["mean"] == 0
        assert rows["noise"]["forms"][form]["psnr"]["mean"] < rows["theirs"]["forms"][form]["psnr"]["mean"] < MAX_PSNR
    assert rows["truth"]["truth"]["psnr"]["mean"] == MAX_PSNR
    assert rows["identity"]["truth"]["psnr"]["mean"] < rows["theirs"]["truth"]["psnr"]["mean"] < MAX_PSNR
    assert golden[1]["checks"] and all(check["holds"] for check in golden[1]["checks"])


def test_a_reference_that_comes_out_wrong_is_found():
    right = {form: {"mse": 0.0, "psnr": 100.0, "ssim": 1.0, "structure": 0.0, "clip_whole": 20.0} for form in FORMS}
    wrong = {**right, "published": {**right["published"], "mse": 1e-3}}
    values = {"identity": {"a": right, "b": wrong}, "noise": {"a": {"published": {}, "corrected": {"psnr": 16.0}}}}
    broken = [check for check in reference_checks(values) if not check.holds]
    assert [(check.row, "mse" in check.expectation, check.found) for check in broken] == [
        ("identity", True, "0.001"),
        ("noise", False, "16"),
    ]
    unsure = {
        row: {str(i): {"published": {"clip_whole": 20.0 + (i + shift) % 2}} for i in range(20)}
        for shift, row in enumerate(("identity", "truth"))
    }
    assert [check.row for check in reference_checks(unsure) if not check.holds] == ["truth"]


def test_the_same_command_makes_nothing_again(
    golden: tuple[Path, dict[str, Any]], data: Path, theirs: Path, networks: SlowModels
):
    out, results = golden
    files = [path for path in out.rglob("*") if path.parent.name != "masks" and path.suffix in (".png", ".json")]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "results.json"}
    again = evaluate_pie_bench(data, out, external={"theirs": theirs}, num=NUM, metrics=config(networks), batch=5)
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_measures_of_a_changed_picture_are_made_anew(data: Path, theirs: Path, networks: SlowModels, tmp_path: Path):
    options: dict[str, Any] = {"external": {"theirs": theirs}, "num": 4, "metrics": config(networks), "batch": 2}
    first = evaluate_pie_bench(data, tmp_path, **options)
    picture = next((tmp_path / "edits" / "theirs").glob("*.png"))
    Image.new("RGB", (64, 64)).save(picture)
    second = evaluate_pie_bench(data, tmp_path, **options)
    assert first and second
    assert rows_of(first)["theirs"]["forms"] != rows_of(second)["theirs"]["forms"]
    assert rows_of(first)["noise"]["forms"] == rows_of(second)["noise"]["forms"]


def test_jpeg_is_told_apart(data: Path, theirs: Path, networks: SlowModels, tmp_path: Path):
    options: dict[str, Any] = {"external": {"theirs": theirs}, "num": 2, "metrics": config(networks)}
    png, jpeg = (evaluate_pie_bench(data, tmp_path, jpeg=jpeg, **options) for jpeg in (False, True))
    assert png and jpeg and rows_of(jpeg)["theirs"]["forms"] != rows_of(png)["theirs"]["forms"]
    assert rows_of(jpeg)["truth"]["forms"] == rows_of(png)["truth"]["forms"]  # references are no runner's results
    compressed = tmp_path / "compressed"
    compressed.mkdir()
    for case in in_turn(read_pie_bench(data)[0], 2):
        Image.open(theirs / f"{case.key}.png").save(compressed / f"{case.key}.jpg")  # as the official runners
    once = evaluate_pie_bench(data, tmp_path, jpeg=True, **(options | {"external": {"theirs": compressed}}))
    assert once and rows_of(once)["theirs"]["forms"] == rows_of(jpeg)["theirs"]["forms"]  # not a second time


ROWS = ["turboedit_frozen", "turboedit", "turboedit_mask", "turboedit_given", "sdedit_turbo", "ddim", "sdedit"]


def words(export: Path, backbone: str, data: Path, networks: SlowModels, out: Path) -> list[str]:
    """The command, as people type it."""
    words = ["-m", "eval.pie_bench", "--encoder", str(export), "--data", str(data), "--out", str(out)]
    words += ["--num", "3", "--batch", "2", "--device", "cpu", "--editors", json.dumps(ROWS)]
    words += ["--teacher.path", backbone, "--teacher.num_steps", "4", "--teacher.clip", "null"]
    words += ["--metrics.lpips", str(networks.lpips), "--metrics.structure", str(networks.structure)]
    return [*words, "--metrics.clip", str(networks.clip)]


def test_two_processes_share_the_work_and_agree_to_the_last_digit(
    export: Path, tiny_sd_backbone: str, data: Path, networks: SlowModels, tmp_path: Path
):
    alone, two = (words(export, tiny_sd_backbone, data, networks, tmp_path / name) for name in ("alone", "two"))
    said = finish([start(*alone, fresh=True), *start_ranks(2, *two)])
    assert (tmp_path / "alone" / "cases.csv").read_bytes() == (tmp_path / "two" / "cases.csv").read_bytes()
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    rows = rows_of(results)
    assert list(rows)[: len(ROWS)] == ROWS and {row["n"] for row in rows.values()} == {3}
    assert rows["turboedit_frozen"]["prompts"] == "short" and rows["turboedit"]["prompts"] == "long"
    assert [rows[name]["mask"] for name in ROWS[1:4]] == ["none", "automatic", "given"]
    for name in ROWS:
        assert "report: " in said[1] and name in said[1]
    assert "report: " not in said[2]  # the first process alone writes the results
    # Eight evaluations invert and four edit; a frozen step has the source beside the edit.
    assert rows["turboedit"]["costs"]["nfe_invert"]["mean"] == 8 and rows["turboedit"]["costs"]["nfe_edit"]["mean"] == 4
    assert rows["turboedit_frozen"]["costs"]["nfe_edit"]["mean"] == 5
    assert list((tmp_path / "two" / "edits" / "turboedit_mask").glob("*.mask.png"))
    assert list((tmp_path / "two" / "edits" / "turboedit").glob("*.reconstruction.png"))


def test_edits_of_another_model_are_refused(data: Path, tiny_sd_backbone: str, networks: SlowModels, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(tiny_sd_backbone, other)
    weights = load_file(other / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_out.bias"] += 1
    save_file(weights, other / "unet" / "diffusion_pytorch_model.safetensors")
    options: dict[str, Any] = {"editors": ["sdedit"], "num": 2, "metrics": config(networks), "device": "cpu"}
    for path, refused in ((tiny_sd_backbone, None), (str(other), "model"), (tiny_sd_backbone, None)):
        teacher = TeacherConfig(path=path, num_steps=2, clip=None)
        with pytest.raises(ValueError, match=refused) if refused else nullcontext():
            evaluate_pie_bench(data, tmp_path / "out", teacher=teacher, **options)
    with pytest.raises(ValueError, match="dtypes"):
        evaluate_pie_bench(
            data,
            tmp_path / "out",
            teacher=TeacherConfig(path=tiny_sd_backbone, num_steps=2, clip=None),
            dtype="bfloat16",
            **options,
        )


def test_what_cannot_run_is_left_out_with_the_reason(
    golden: tuple[Path, dict[str, Any]], data: Path, networks: SlowModels, tmp_path: Path
):
    left_out = {item["row"]: item["reason"] for item in golden[1]["left_out"]}
    assert "--encoder" in left_out["turboedit and all few-step methods"]
    assert "--teacher.path" in left_out["all multi-step methods"]
    assert "--instruct" in left_out["instruct_pix2pix"]
    with pytest.raises(ValueError, match="instruct_pix2pix cannot run: no model"):
        evaluate_pie_bench(data, tmp_path, editors=["instruct_pix2pix"], metrics=config(networks))
    with pytest.raises(ValueError, match="the editor magic is unknown"):
        evaluate_pie_bench(data, tmp_path, editors=["magic"], metrics=config(networks))


def test_bad_annotations_are_in_the_results(data: Path, theirs: Path, networks: SlowModels, tmp_path: Path):
    broken = tmp_path / "data"
    write_pie_bench(broken, 1)
    mapping = json.loads((broken / "mapping_file.json").read_text())
    key = sorted(mapping)[2]
    mapping[key]["mask"] = [3]
    (broken / "mapping_file.json").write_text(json.dumps(mapping))
    results = evaluate_pie_bench(broken, tmp_path / "out", metrics=config(networks))
    assert results and [note["key"] for note in results["bad_annotations"]] == [key]
    assert {row["n"] for row in results["rows"]} == {9}


def test_bad_options_are_clear_errors(data: Path, export: Path, networks: SlowModels, tmp_path: Path):
    with pytest.raises(ValueError, match="batch is 0"):
        evaluate_pie_bench(data, tmp_path, batch=0)
    with pytest.raises(ValueError, match=r"\.\./x cannot be the name of a row"):
        evaluate_pie_bench(data, tmp_path, external={"../x": tmp_path})
    with pytest.raises(ValueError, match="not a PIE-Bench folder"):
        evaluate_pie_bench(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="not an exported encoder"):
        evaluate_pie_bench(data, tmp_path, encoder=data)
    with pytest.raises(ValueError, match="work at 64 and 512 px"):
        evaluate_pie_bench(data, tmp_path, encoder=export, teacher=TeacherConfig(path=large_backbone(export, tmp_path)))


def large_backbone(export: Path, folder: Path) -> str:
    """The export's generator, said to work at 512 px."""
    copy = folder / "large"
    copy.mkdir(parents=True)
    for part in export.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "unet").unlink()
    (copy / "unet").mkdir()
    for part in (export / "unet").iterdir():
        (copy / "unet" / part.name).symlink_to(part)
    unet = json.loads((export / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").unlink()
    (copy / "unet" / "config.json").write_text(json.dumps(unet | {"sample_size": 128}))
    return str(copy)


def test_types_take_turns(data: Path):
    cases = read_pie_bench(data)[0]
    chosen = in_turn(cases, 13)
    assert [case.key for case in chosen] == sorted(case.key for case in chosen)
    assert [sum(case.type_id == str(number) for case in chosen) for number in range(10)] == [2] * 3 + [1] * 7
    assert in_turn(cases, None) == cases and len(EDIT_KINDS) == 9
