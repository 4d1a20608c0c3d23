"""Edits of PIE-Bench cases on disk: made once, by any number of processes, under the settings that the folder says."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.scene_pie_bench import write_pie_bench
from eval.editors.editor import EditRequest, InvertedImages
from eval.editors.guided import EncodedSource, usual_sharing
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.null_text import NullText
from eval.editors.options import NullTextSchedule
from eval.editors.references import NoisePicture, TruePicture, UnchangedPicture
from eval.editors.sdedit import Sdedit
from eval.pie.cases import PieCase, read_pie_bench
from eval.pie.costs import cost_words, expected_costs, in_groups
from eval.pie.edits import PieRow, edit_all, read_pixels, read_record
from eval.pie.prompts import benchmark_prompts, long_prompts
from models.backbone import Backbone
from models.ddim import Ddim
from models.generator import FewStepGenerator
from models.prompt_to_prompt import Trajectory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[PieCase]:
    folder = tmp_path_factory.mktemp("pie")
    write_pie_bench(folder, 1)
    return read_pie_bench(folder)[0][:4]


@pytest.fixture(scope="module")
def sdedit(tiny_sd_backbone: str) -> Sdedit:
    return Sdedit(FewStepGenerator(Backbone.load(tiny_sd_backbone)))


def run(row: PieRow, cases: Sequence[PieCase], folder: Path, seed: int = 7) -> dict[str, bytes]:
    edit_all(row, cases, benchmark_prompts(cases), folder, seed, CPU)
    return pictures(folder / row.name)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


class Refusing(UnchangedPicture):
    """Refuses the edits of some targets."""

    name = "refusing"

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def edit(self, inversion: InvertedImages, request: EditRequest) -> torch.Tensor:
        if self.refused in request.prompt[0]:
            raise ValueError(f"no {self.refused} here")
        return super().edit(inversion, request)


def test_references_give_what_is_known(cases: list[PieCase], tmp_path: Path):
    for editor in (UnchangedPicture(), TruePicture(), NoisePicture()):
        assert len(run(PieRow(editor.name, editor, reference=True), cases, tmp_path)) == len(cases)
    for case in cases:
        assert case.truth is not None
        found = {name: read_pixels(tmp_path / name / f"{case.key}.png") for name in ("identity", "truth", "noise")}
        assert np.array_equal(found["identity"], read_pixels(case.image))
        assert np.array_equal(found["truth"], read_pixels(case.truth))
        assert 100 < found["noise"].mean() < 155 and found["noise"].std() > 60


def test_records_say_what_an_edit_cost(cases: list[PieCase], sdedit: Sdedit, tmp_path: Path):
    run(PieRow("sdedit", sdedit), cases, tmp_path)
    records = [read_record(tmp_path / "sdedit", case.key) for case in cases]
    assert [record["warm"] for record in records] == [False, True, True, True]
    for case, record in zip(cases, records, strict=True):
        assert record["costs"]["edit"]["nfe"] == 3 and record["costs"]["invert"]["nfe"] == 0
        assert (record["source_prompt"], record["target_prompt"]) == (case.source_prompt, case.target_prompt)


def test_what_is_there_is_not_made_again(cases: list[PieCase], sdedit: Sdedit, tmp_path: Path):
    whole = run(PieRow("sdedit", sdedit), cases, tmp_path / "whole")
    folder = tmp_path / "parts"
    run(PieRow("sdedit", sdedit), cases[:2], folder)
    marked = folder / "sdedit" / f"{cases[0].key}.png"
    Image.new("RGB", (64, 64)).save(marked)
    (folder / "sdedit" / f"{cases[1].key}.json").unlink()  # as if killed before the record was written
    again = run(PieRow("sdedit", sdedit), cases, folder)
    assert again.pop(marked.name) != whole.pop(marked.name)
    assert again == whole


def test_ranks_divide_the_cases_and_nothing_changes(
    cases: list[PieCase], sdedit: Sdedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone = run(PieRow("sdedit", sdedit), cases, tmp_path / "alone")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(PieRow("sdedit", sdedit), cases, tmp_path / "second") == alone
    order = sorted((tmp_path / "second" / "sdedit").glob("[0-9]*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert order[0].stem == cases[1].key


def test_other_settings_are_refused_with_the_difference(cases: list[PieCase], sdedit: Sdedit, tmp_path: Path):
    run(PieRow("sdedit", sdedit), cases[:1], tmp_path)
    with pytest.raises(ValueError, match="seed: 7 -> 8"):
        run(PieRow("sdedit", sdedit), cases[:1], tmp_path, seed=8)
    with pytest.raises(ValueError, match="other settings"):
        run(PieRow("sdedit", sdedit, settings={"strength": 1}), cases[:1], tmp_path)


class Counted(NullText):
    """Counts its inversions."""

    inverted = 0

    def trajectory(self, source: EncodedSource) -> Trajectory:
        self.inverted += 1
        return super().trajectory(source)


def test_rows_that_invert_alike_invert_once(cases: list[PieCase], tiny_sd_backbone: str, tmp_path: Path):
    """Null-text inversion, its other sharing and SDEdit on top of it: pictures and costs are those of each alone."""
    backbone = Backbone.load(tiny_sd_backbone)
    ddim = Ddim(backbone.schedule, 2)
    fit = Counted(backbone, ddim, 3.0, schedule=NullTextSchedule(1))
    other = Counted(backbone, ddim, 3.0, usual_sharing(cross=0.0), schedule=NullTextSchedule(1))
    rows = [
        PieRow(name, editor)
        for name, editor in {
            "fit": fit,
            "sdedit": GuidedSdedit(backbone, ddim, 3.0, fit),
            "plain": GuidedSdedit(backbone, ddim, 3.0),
            "other": other,
        }.items()
    ]
    groups = in_groups(rows)
    assert [[row.name for row in group.others] for group in groups] == [["sdedit", "other"], ["other"], [], []]
    pairs = benchmark_prompts(cases)
    for row in rows:
        edit_all(row, cases[:2], pairs, tmp_path / "alone", 7, CPU)
    assert (fit.inverted, other.inverted) == (4, 2)
    run(rows[0], cases[:1], tmp_path / "together")  # one case is there already: the others find it themselves
    for group in groups:
        edit_all(group.row, cases[:2], pairs, tmp_path / "together", 7, CPU, group.others)
    assert fit.inverted + other.inverted == 4 + 2 + 3  # of the first case once more, for both others
    for row in rows:
        alone, together = (tmp_path / way / row.name for way in ("alone", "together"))
        assert pictures(alone) == pictures(together)
        for case in cases[:2]:
            records = [read_record(folder, case.key) for folder in (alone, together)]
            counts = [[record["costs"][part]["nfe"] for part in ("invert", "edit")] for record in records]
            assert counts[0] == counts[1]
    left = expected_costs(groups, cases, tmp_path / "together")
    assert [(cost.name, cost.missing, cost.sharing) for cost in left] == [
        ("fit", 2, None),
        ("sdedit", 2, "fit"),
        ("plain", 2, None),
        ("other", 2, "fit"),
    ]
    assert left[0].seconds > left[3].seconds > 0
    assert "2 cases of" in cost_words(left, 2) and "for each of 2 processes" in cost_words(left, 2)


FORMER = {  # as settings.json held them at commit 6cc5e20
    "Ddim": {"generator": {"class": "FewStepGenerator", "schedule": "backbone", "timesteps": [999, 749, 499, 249]}},
    "TurboEdit": {
        "frozen_steps": 1,
        "last_mask": None,
        "mask": None,
        "name": "turboedit_frozen",
        "num_steps": 4,
        "pipeline": {
            "_internal_dict": {
                "attention_resolution": 8,
                "timesteps": "999 749 499 249",
                "text_encoder_2": [None, None],
            },
            "_progress_bar_config": {"disable": True},
            "class": "TurboEditPipeline",
            "encoder": "2bd1708659a82cd6",
            "tokenizer": "CLIPTokenizer",
        },
        "threshold": 0.3,
    },
    "GuidedSdedit": {
        "ddim": {
            "_levels": {},
            "class": "Ddim",
            "schedule": "backbone",
            "stride": 250,
            "timesteps": [750, 500, 250, 0],
        },
        "guidance": 7.5,
        "inversion": {
            "class": "NullText",
            "ddim": {"class": "Ddim", "timesteps": [750, 500, 250, 0]},
            "guidance": 7.5,
            "schedule": {"class": "NullTextSchedule", "iterations": 10, "lr": 0.01},
        },
        "name": "null_text_sdedit",
    },
}
STATED = {  # the same as editors state them today
    "Ddim": {"class": "DdimInversion", "timesteps": [999, 749, 499, 249]},
    "TurboEdit": {
        "class": "TurboEdit",
        "encoder": "2bd1708659a82cd6",
        "attention_resolution": 8,
        "timesteps": (999, 749, 499, 249),
        "mask": None,
        "threshold": 0.3,
        "num_steps": 4,
        "frozen_steps": 1,
    },
    "GuidedSdedit": {
        "class": "GuidedSdedit",
        "timesteps": [750, 500, 250, 0],
        "guidance": 7.5,
        "inversion": {
            "class": "NullText",
            "timesteps": [750, 500, 250, 0],
            "guidance": 7.5,
            "schedule": {"iterations": 10, "lr": 0.01},
        },
    },
}


@pytest.mark.parametrize("name", FORMER)
def test_a_folder_of_before_is_taken_up(cases: list[PieCase], tmp_path: Path, name: str):
    """Its settings are rewritten and nothing is made again; what differs is refused as ever."""
    rest = {"model": {"networks": ["a"]}, "dtypes": ["torch.float32"]}
    row = PieRow("row", UnchangedPicture(), settings={"editor": STATED[name], **rest})
    run(row, cases[:1], tmp_path)
    record = tmp_path / "row" / f"{cases[0].key}.json"
    former = {"editor": {"backbone": "backbone", "class": name, **FORMER[name]}, **rest}
    (tmp_path / "row" / "settings.json").write_text(
        json.dumps({"prompts": "short", "mask": "none", "seed": 7, **former}, indent=1)
    )
    before = record.stat().st_mtime_ns
    leaf = next(key for key in ("guidance", "threshold", "timesteps") if key in STATED[name])
    other = {"editor": {**STATED[name], leaf: [9] if leaf == "timesteps" else 9.0}, **rest}
    with pytest.raises(ValueError, match="other settings"):
        run(replace(row, settings=other), cases[:1], tmp_path)
    run(row, cases[:1], tmp_path)
    assert record.stat().st_mtime_ns == before
    stated = json.loads((tmp_path / "row" / "settings.json").read_text())["editor"]
    assert stated == json.loads(json.dumps(STATED[name]))


def test_a_refused_case_is_failed_and_the_rest_goes_on(cases: list[PieCase], tmp_path: Path):
    word = cases[0].target_prompt.split()[-1]
    assert not all(word in case.target_prompt for case in cases)
    run(PieRow("refusing", Refusing(word)), cases, tmp_path)
    for case in cases:
        record = read_record(tmp_path / "refusing", case.key)
        assert ("error" in record) == (word in case.target_prompt)
        assert (tmp_path / "refusing" / f"{case.key}.png").is_file() != ("error" in record)
    assert not list((tmp_path / "refusing").glob(".*.tmp"))


def test_failed_cases_are_tried_again(cases: list[PieCase], tmp_path: Path):
    word = cases[0].target_prompt.split()[-1]
    editor = Refusing(word)
    run(PieRow("refusing", editor), cases, tmp_path)
    editor.refused = "nothing of the kind"  # its cause is mended
    assert len(run(PieRow("refusing", editor), cases, tmp_path)) == len(cases)


def test_a_changed_case_that_fails_leaves_no_old_picture(cases: list[PieCase], tmp_path: Path):
    editor = Refusing("nothing of the kind")
    run(PieRow("refusing", editor), cases, tmp_path)
    changed = replace(cases[0], target_prompt="nothing of the kind")
    assert set(run(PieRow("refusing", editor), [changed, *cases[1:]], tmp_path)) == {f"{c.key}.png" for c in cases[1:]}


@pytest.mark.parametrize("change", ["prompts", "instruction", "blended", "mask", "picture"])
def test_a_changed_case_is_edited_anew(cases: list[PieCase], tmp_path: Path, change: str):
    row = PieRow("identity", UnchangedPicture(), mask="given")
    run(row, cases, tmp_path)
    before = {case.key: (tmp_path / "identity" / f"{case.key}.json").stat().st_mtime_ns for case in cases}
    picture = tmp_path / "another.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    changes: dict[str, Any] = {
        "prompts": {"target_prompt": "something else"},
        "instruction": {"instruction": "make it red"},
        "blended": {"blended": ("one", "two")},
        "mask": {"mask": ~cases[0].mask},
        "picture": {"image": picture},
    }
    run(row, [replace(cases[0], **changes[change]), *cases[1:]], tmp_path)
    after = {case.key: (tmp_path / "identity" / f"{case.key}.json").stat().st_mtime_ns for case in cases}
    assert [after[case.key] != before[case.key] for case in cases] == [True, False, False, False]
    if change == "picture":
        assert (read_pixels(tmp_path / "identity" / f"{cases[0].key}.png") == (255, 0, 0)).all()


def test_an_editor_that_refuses_everything_is_an_error(cases: list[PieCase], tmp_path: Path):
    with pytest.raises(ValueError, match="refusing failed on every case: no a here"):
        run(PieRow("refusing", Refusing("a")), cases, tmp_path)


def test_cases_without_prompts_of_the_setting_are_failed(cases: list[PieCase], tmp_path: Path):
    pairs = dict(long_prompts(cases))
    del pairs[cases[1].key]
    edit_all(PieRow("identity", UnchangedPicture(), "long"), cases, pairs, tmp_path, 0, CPU)
    assert "long prompts" in read_record(tmp_path / "identity", cases[1].key)["error"]
    assert read_record(tmp_path / "identity", cases[0].key)["target_prompt"] == pairs[cases[0].key][1]
