"""eval.compare: paired differences of two evaluations, what it refuses, and its page."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.compare import compare_evaluations, difference_table, main
from eval.metrics.measures import PIE_MEASURES
from eval.pie.compare_page import most_changed
from eval.pie.comparison import Difference, read_evaluation
from tests.browser import PHONE, Browser
from tests.pie_evaluation import write_evaluation
from tests.processes import run

pytest_plugins = ["tests.browser"]

COUNT = 18


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two evaluations of the same cases; the second one's TurboEdit has less of the true edit."""
    folder = tmp_path_factory.mktemp("compare")
    for name, sharpness in (("a", 0.9), ("b", 0.6)):
        write_evaluation(folder / name, COUNT, sharpness)
    return folder / "a", folder / "b"


def changed(folder: Path, out: Path, about: dict[str, Any] | None = None, keep: Any = None) -> Path:
    """A copy with other entries in `about`, or with those lines of cases.csv alone that `keep` takes."""
    out.mkdir()
    results = json.loads((folder / "results.json").read_text())
    results["about"] |= about or {}
    (out / "results.json").write_text(json.dumps(results))
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    with (out / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(line for line in lines if keep is None or keep(line))
    return out


def one(differences: list[Difference], row: str, measure: str, form: str = "published") -> Difference:
    (found,) = [d for d in differences if (d.row_b, d.measure.name, d.form) == (row, measure, form)]
    return found


def values(folder: Path, row: str, measure: str) -> dict[str, float]:
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if (line["row"], line["form"]) == (row, "published")]
    return {line["key"]: float(line[measure]) for line in lines if line[measure]}


def test_differences_are_those_of_the_cases(folders):
    found = compare_evaluations(*folders)
    assert {d.row_a for d in found} == {"turboedit", "turboedit_given", "sdedit"}  # no references
    assert all(d.row_a == d.row_b for d in found)
    for measure in ("clip_whole", "psnr", "structure"):
        first, second = (values(folder, "turboedit", measure) for folder in folders)
        expected = np.array([second[key] - first[key] for key in first])
        got = one(found, "turboedit", measure)
        assert got.interval.mean == pytest.approx(expected.mean()) and got.interval.n == len(expected)
        assert (got.mean_a, got.mean_b) == pytest.approx(
            (np.mean(list(first.values())), np.mean(list(second.values())))
        )
        sign = 1 if PIE_MEASURES[measure].higher else -1
        assert (got.better, got.worse) == ((sign * expected > 0).sum(), (sign * expected < 0).sum())
    assert not [d for d in found if d.measure.name == "lpips"]  # left out in both


def test_the_interval_is_that_of_the_paired_differences(folders):
    found = one(compare_evaluations(*folders), "turboedit", "clip_whole")
    first, second = (values(folder, "turboedit", "clip_whole") for folder in folders)
    differences = [second[key] - first[key] for key in first]
    draw = random.Random(7)
    means = sorted(math.fsum(draw.choices(differences, k=len(differences))) / len(differences) for _ in range(4000))
    low, high = means[99], means[3899]
    assert found.interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.interval.high == pytest.approx(high, abs=0.05 * (high - low))


def test_less_of_the_edit_is_worse_for_the_text_and_better_for_the_structure(folders):
    found = compare_evaluations(*folders)
    assert one(found, "turboedit", "clip_whole").verdict == "worse"
    assert one(found, "turboedit", "structure").verdict == "better"
    back = compare_evaluations(*folders[::-1])
    assert one(back, "turboedit", "clip_whole").verdict == "better"
    assert one(back, "turboedit", "structure").verdict == "worse"
    # What a given mask protects is equal in both.
    same = one(found, "turboedit_given", "psnr")
    assert (same.interval.mean, same.better, same.worse, same.verdict) == (0, 0, 0, "open")


def test_two_runs_agree_and_another_seed_moves_the_interval(folders):
    first, again, other = (compare_evaluations(*folders, seed=seed) for seed in (0, 0, 1))
    assert [d.to_row() for d in first] == [d.to_row() for d in again]
    assert one(first, "sdedit", "psnr").interval == one(other, "sdedit", "psnr").interval  # all equal
    assert one(first, "turboedit", "clip_whole").interval.low != one(other, "turboedit", "clip_whole").interval.low


def test_two_rows_of_one_folder(folders):
    found = compare_evaluations(folders[0], folders[0], row_a="sdedit", row_b="turboedit")
    assert {(d.row_a, d.row_b) for d in found} == {("sdedit", "turboedit")}
    psnr = one(found, "turboedit", "psnr")
    assert psnr.verdict == "better" and psnr.interval.mean > 10
    mse = one(found, "turboedit", "mse")
    assert mse.verdict == "better" and mse.interval.mean < 0
    references = compare_evaluations(folders[0], folders[0], row_b="noise", row_a="identity")
    assert one(references, "noise", "psnr").worse == psnr.interval.n


def test_only_cases_that_both_have_are_compared(folders, tmp_path):
    fewer = changed(folders[1], tmp_path / "fewer", keep=lambda line: int(line["key"]) < 9)
    found = one(compare_evaluations(folders[0], fewer), "turboedit", "clip_whole")
    assert found.interval.n == 9 and set(found.by_key) == {f"{number:012d}" for number in range(9)}
    psnr = one(compare_evaluations(folders[0], fewer), "turboedit", "psnr")
    assert psnr.interval.n == 8  # one is a style's, which leaves no background


def test_equal_networks_in_other_places_are_the_same(folders, tmp_path):
    def words(place: str, digest: str) -> dict[str, Any]:
        clip = f"CLIP similarity ({place}/clip (v1), {digest})"
        dino = f"structure distance (keys of the CLIP {place}, {digest}, not of DINO: not comparable)"
        lpips = f"LPIPS (SqueezeNet 1.1), {place}.pth, {digest}"
        return {"metrics": {"clip": clip, "structure": dino, "lpips": lpips}}

    digest = "0123456789abcdef"
    here = changed(folders[0], tmp_path / "here", words("openai/a", digest))
    assert compare_evaluations(here, changed(folders[1], tmp_path / "there", words("/my copy, of it", digest)))
    other = changed(folders[1], tmp_path / "other", words("openai/a", digest[::-1]))
    with pytest.raises(ValueError, match=r"(?s)metric clip: .* against .*metric structure.*metric lpips"):
        compare_evaluations(here, other)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"data": "other scenes"}, "data: .* against other scenes"),
        (
            {"metrics": {"clip": "another", "lpips": "left out: no network"}},
            "metric clip: brightness.* against another",
        ),
        ({"metrics": {}}, "metric lpips: left out: no network against None"),
        ({"jpeg": True}, "jpeg: None against True"),
    ],
)
def test_other_data_and_other_metrics_are_refused(folders, tmp_path, about, words):
    with pytest.raises(ValueError, match=f"cannot be compared, as they differ in\n(.*\n)*  {words}"):
        compare_evaluations(folders[0], changed(folders[1], tmp_path / "other", about))


def test_other_forms_are_refused(folders, tmp_path):
    other = changed(folders[1], tmp_path / "other", keep=lambda line: line["form"] == "published")
    with pytest.raises(ValueError, match=r"forms of the metrics: \['corrected', 'published'\] against \['published'\]"):
        compare_evaluations(folders[0], other)


def test_the_same_cases_may_lie_elsewhere_or_be_part_of_a_folder(folders, tmp_path):
    def folder(name: str, which: int, data: str, number: int, digest: str) -> Path:
        return changed(folders[which], tmp_path / name, {"data": data, "cases": {"number": number, "digest": digest}})

    here = folder("here", 0, "/here", COUNT, "x")
    assert compare_evaluations(here, folder("there", 1, "/there", COUNT, "x"))
    assert compare_evaluations(here, folder("part", 1, "/here", 9, "y"))
    with pytest.raises(ValueError, match="cases"):
        compare_evaluations(here, folder("changed", 1, "/here", COUNT, "z"))
    with pytest.raises(ValueError, match="data: /here against /other"):
        compare_evaluations(here, folder("other", 1, "/other", 9, "z"))


def test_unknown_rows_and_foreign_folders_are_errors_that_say_what_there_is(folders, tmp_path):
    with pytest.raises(ValueError, match=r"--row_b: .* has no row 'ddim', but turboedit, "):
        compare_evaluations(*folders, row_a="turboedit", row_b="ddim")
    with pytest.raises(ValueError, match=r"has no results\.json; give a folder that eval\.pie_bench has finished"):
        compare_evaluations(folders[0], tmp_path)
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "cases.csv").write_text("")
    with pytest.raises(ValueError, match=r"is not of eval\.pie_bench"):
        read_evaluation(tmp_path)
    apart = changed(folders[1], tmp_path / "apart", keep=lambda line: line["row"] == "sdedit")
    only = changed(folders[0], tmp_path / "only", keep=lambda line: line["row"] == "turboedit")
    with pytest.raises(ValueError, match="no method's row is in both; A has turboedit, B has sdedit"):
        compare_evaluations(only, apart)
    late = changed(folders[1], tmp_path / "late", keep=lambda line: int(line["key"]) >= 9)
    early = changed(folders[0], tmp_path / "early", keep=lambda line: int(line["key"]) < 9)
    with pytest.raises(ValueError, match="share no case in the form published"):
        compare_evaluations(early, late)


def test_the_table_is_in_the_scales_of_the_papers(folders):
    found = one(compare_evaluations(*folders), "turboedit", "structure")
    line = difference_table([found]).splitlines()[1].split()
    assert line[:6] == ["turboedit", "none", "published", "structure", "distance", "×10⁻³"]
    assert line[6:9] == [f"{1000 * x:.2f}" for x in (found.mean_a, found.mean_b, found.interval.mean)]
    assert line[-1] == "better"


def test_the_command_leaves_a_page_and_files(folders, tmp_path, browser: Browser):
    done = run("-m", "eval.compare", *folders, "--out", tmp_path / "out")
    assert "CLIP whole" in done.stdout and "report: " in done.stderr
    found = compare_evaluations(*folders)
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["settings"] == {
        "a": str(folders[0]),
        "b": str(folders[1]),
        "level": 0.95,
        "resamples": 10000,
        "seed": 0,
    }
    assert [entry["difference"] for entry in written["differences"]] == [d.interval.mean for d in found]
    with (tmp_path / "out" / "compare.csv").open(newline="", encoding="utf-8") as file:
        assert [line["verdict"] for line in csv.DictReader(file)] == [d.verdict for d in found]
    tab = browser.open(tmp_path / "out" / "index.html", PHONE)
    assert not tab.problems and not tab.requests
    assert tab.page.locator(".bar").count() == len(found)
    broken = "all => all.filter(one => !(one.complete && one.naturalWidth && one.alt)).length"
    assert tab.page.locator("img").count() and tab.page.locator("img").evaluate_all(broken) == 0
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_wrong_command_ends_with_its_reason(folders, tmp_path):
    with pytest.raises(SystemExit, match=r"eval.compare: .* has no results\.json"):
        main([str(folders[0]), str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main([str(folders[0])])
    assert stop.value.code == 2


def test_the_most_changed_cases_are_the_worst_and_the_best(folders):
    found = one(
        compare_evaluations(folders[0], folders[0], row_a="sdedit", row_b="turboedit"), "turboedit", "structure"
    )
    keys = most_changed(found)
    gains = {key: -value for key, value in found.by_key.items()}  # less distance is better
    ordered = sorted(gains, key=gains.__getitem__)
    lost = [key for key in ordered if gains[key] < 0]
    assert keys == lost[:4] + [key for key in ordered if gains[key] > 0][-4:]
