"""Edits of scenes: judging by known readings, choice of strength, equal success, the whole on a tiny pipeline."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch

from data.world.description import attribute_targets
from data.world.edits import EDIT_KINDS, kept_attributes
from data.world.render import render
from data.world.splits import sample_edits
from eval.editors.ddim import DdimInversion
from eval.editors.ddpm import Ddpm
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import load_encoder
from eval.metrics.attributes import AttributeReader
from eval.metrics.pixels import MAX_PSNR, Estimate
from eval.scene_edits.edit_set import edit_set, sample_edit_set
from eval.scene_edits.figures import better_in_both, equal_in_both, standings
from eval.scene_edits.judge import EditJudge, EditScores, has_changed, kept_share
from eval.scene_edits.result import EditorResult
from eval.scene_edits.sweeps import Sweep, choose_strength, equal_success, psnr_at
from eval.scenes import evaluate_scenes
from tests.tiny_editing import one_edit_of_each_kind, save_tiny_judges, tiny_pipeline

EDITORS = {
    "turboedit",
    "turboedit_paper",
    "turboedit_mask",
    "turboedit_mask_paper",
    "ddim",
    "ddpm",
    "ddpm_residual",
    "sdedit",
    "identity",
    "truth",
    "ceiling",
}
ESTIMATES = {"changed", "kept", "kept_all", "psnr_inside", "psnr_outside", "clip"}
COSTS = {"nfe_invert", "nfe_edit", "seconds_invert", "seconds_edit"}


def some_edits(kind: str, count: int = 20):
    return [sample_edits("test", 1, index, kind) for index in range(count)]


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_true_edit_changes_and_keeps_everything(kind):
    for edit in some_edits(kind):
        source, target = attribute_targets(edit.source), attribute_targets(edit.target)
        assert has_changed(edit, target)
        assert kept_share(edit, target, source) == 1


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_untouched_source_keeps_everything_and_changes_nothing(kind):
    for edit in some_edits(kind):
        source = attribute_targets(edit.source)
        assert not has_changed(edit, source)
        assert kept_share(edit, source, source) == 1


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_each_lost_attribute_costs_its_share(kind):
    for edit in some_edits(kind):
        source, target = attribute_targets(edit.source), attribute_targets(edit.target)
        names = kept_attributes(edit)
        for name in names:
            if name == "b_shape":
                continue  # -1 there would say that the object is gone
            assert kept_share(edit, {**target, name: -1}, source) == pytest.approx(1 - 1 / len(names))


def test_new_object_counts_by_layout_alone():
    edit = some_edits("add_object")[0]
    target = attribute_targets(edit.target)
    wrong = {name: -1 if name in ("a_colour", "b_colour") else value for name, value in target.items()}
    assert has_changed(edit, wrong)
    assert not has_changed(edit, {**target, "layout": 0})


def test_edit_set_is_what_the_scenes_show():
    edits = one_edit_of_each_kind()
    found = edit_set(edits)
    assert found.kinds == EDIT_KINDS
    shown = ((found.truths[3] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(shown, render(edits[3].target))
    outside = ~found.masks[:-1].expand(-1, 3, -1, -1)  # the last kind, style, has no outside
    assert (found.sources[:-1] - found.truths[:-1])[outside].abs().max() < 0.02
    assert [len(part) for part in found.batches(4)] == [4, 4, 1]


def test_splits_have_their_own_edits():
    test, validation = (sample_edit_set(split, 1) for split in ("test", "validation"))
    assert len(test) == len(validation) == len(EDIT_KINDS)
    assert not set(test.source_prompts) & set(validation.source_prompts)


def test_perfect_pictures_have_perfect_verdicts(tiny_backbone, tmp_path):
    pipeline = tiny_pipeline(tiny_backbone)
    reader, _ = save_tiny_judges(tmp_path, pipeline.tokenizer)
    judge = EditJudge(AttributeReader.load(reader), clip=None)
    edits = edit_set(one_edit_of_each_kind())
    references = judge.references(edits, pipeline.backbone)
    for verdict in judge.scores(edits, references, references.sources):
        assert verdict.kept == verdict.kept_all == 1
        assert math.isnan(verdict.psnr_outside) if verdict.kind == "change_style" else verdict.psnr_outside == MAX_PSNR
        assert math.isnan(verdict.clip)
    for verdict in judge.scores(edits, references, references.truths):
        assert verdict.psnr_inside == MAX_PSNR


def at(mean: float, se: float = 0.01) -> Estimate:
    return Estimate(mean, se, 50)


def test_strength_changes_most_among_those_that_keep_enough():
    changed = {0.5: at(0.3), 1.0: at(0.7), 1.5: at(0.9)}
    assert choose_strength(changed, {0.5: at(0.99), 1.0: at(0.95), 1.5: at(0.8)}) == 1.0
    assert choose_strength(changed, {0.5: at(0.99), 1.0: at(0.905), 1.5: at(0.8)}) == 0.5  # within one standard error
    assert choose_strength(changed, {0.5: at(0.7), 1.0: at(0.6), 1.5: at(0.5)}) == 0.5  # none is eligible
    level = {0.5: at(0.7), 1.0: at(0.7), 1.5: at(0.7)}
    assert choose_strength(level, {0.5: at(0.95), 1.0: at(0.97), 1.5: at(0.93)}) == 1.0


def test_psnr_at_interpolates_between_unbeaten_points():
    changed, psnr = np.array([0.2, 0.4, 0.5, 0.8]), np.array([30.0, 20.0, 26.0, 20.0])
    assert psnr_at(0.2, changed, psnr) == 30
    assert psnr_at(0.35, changed, psnr) == pytest.approx(28)  # (0.4, 20) is beaten by (0.5, 26)
    assert psnr_at(0.65, changed, psnr) == pytest.approx(23)
    assert psnr_at(0.1, changed, psnr) == 30
    with pytest.raises(ValueError, match="at most"):
        psnr_at(0.9, changed, psnr)


def test_equal_success_finds_a_known_gain():
    rng = np.random.default_rng(0)
    thresholds = rng.random(400)
    changed = np.stack([thresholds < share for share in (0.3, 0.6, 0.9)]).astype(float)
    psnr = np.array([30.0, 26.0, 22.0])[:, None] + rng.normal(size=(3, 400))
    ours, worse = Sweep(changed, psnr), Sweep(changed, psnr - 5)
    found = equal_success(ours, worse, chosen=1)
    assert found.gain.mean == pytest.approx(5)
    assert found.gain.se < 0.01  # paired: the same edits for both
    assert found.changed == pytest.approx(changed[1].mean())
    weak = Sweep(changed[:1], psnr[:1] - 5)  # never reaches our success, so they meet at its own
    assert equal_success(ours, weak, chosen=1).changed == pytest.approx(changed[0].mean())


def test_equal_success_of_nothing_countable_is_none():
    sweep = Sweep(np.full((2, 5), np.nan), np.ones((2, 5)))
    assert equal_success(sweep, sweep, 0) is None


@pytest.fixture(scope="module")
def two_strengths():
    """What holds of the editors' usual four strengths holds of two."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (TurboEdit, DdimInversion, Ddpm):
            patch.setattr(kind, "strengths", kind.strengths[:2])
        yield


@pytest.fixture(scope="module")
def evaluated(two_strengths, tiny_backbone, tmp_path_factory):
    """Folder and results of one evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    pipeline = tiny_pipeline(tiny_backbone)
    pipeline.save_pretrained(folder / "export")
    reader, clip = save_tiny_judges(folder, pipeline.tokenizer)
    results = evaluate_scenes(
        folder / "export",
        folder / "report",
        num=1,
        num_validation=1,
        num_heldout=1,
        attributes=reader,
        clip=clip,
        device="cpu",
    )
    return folder, results


def test_results_hold_every_figure_with_its_error(evaluated):
    folder, _ = evaluated
    results = json.loads((folder / "report" / "results.json").read_text())
    assert set(results["edits"]) == set(results["heldout"]) == EDITORS
    for figures in results["edits"].values():
        assert {*ESTIMATES, *COSTS, "n", "by_type"} <= set(figures)
        for name in ESTIMATES | COSTS:
            apart = {"exact", "others"} if name.startswith("psnr") else set()
            assert set(figures[name]) == {"mean", "se", "n"} | apart
        assert figures["n"] == len(EDIT_KINDS)
        assert set(figures["by_type"]) == set(EDIT_KINDS)
    assert results["reconstruction"]["vae"]["psnr"]["n"] == 9
    for name in ("turboedit", "ddim", "ddpm", "ddpm_residual"):
        assert len(results["reconstruction"][name]["psnr_by_step"]) == 4
        assert len(results["reconstruction"][name]["psnr_to_vae_by_step"]) == 4
        assert set(results["noise"][name]) <= {"999", "749", "499", "249"}
    assert set(results["noise"]["turboedit"]) == {"999", "749", "499", "249"}
    assert set(results["strengths"]) == EDITORS
    assert set(results["equal_success"]["turboedit"]) == {"ddim", "ddpm", "ddpm_residual", "sdedit"}


def test_references_are_where_they_must_be(evaluated):
    edits = evaluated[1]["edits"]
    assert edits["identity"]["kept"]["mean"] == edits["identity"]["kept_all"]["mean"] == 1
    assert edits["identity"]["psnr_outside"]["mean"] == MAX_PSNR
    assert edits["truth"]["psnr_inside"]["mean"] == MAX_PSNR
    assert edits["identity"]["by_type"]["change_style"]["psnr_outside"]["mean"] is None
    assert edits["turboedit"]["nfe_invert"]["mean"] == 8
    assert edits["turboedit"]["nfe_edit"]["mean"] == 4
    exact = evaluated[1]["reconstruction"]["ddpm_residual"]["psnr_to_vae_by_step"]
    assert exact[-1]["mean"] > 60


def test_random_reader_is_said_to_count_too_few_types(evaluated):
    types = evaluated[1]["changed_types"]
    assert types["enough"] == (types["reached_by"] >= 5)
    page = (evaluated[0] / "report" / "index.html").read_text()
    assert ("with care" in page) == (not types["enough"])


def test_tables_have_a_row_for_everything(evaluated):
    folder, results = evaluated
    with (folder / "report" / "edits.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = sum(len(sweep) for sweep in results["sweeps"].values()) + 3  # and the references
    assert len(rows) == 9 * points + 9 * len(EDITORS)
    with (folder / "report" / "reconstructions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 9 * (1 + 4 * 4)


def test_masked_forms_stand_beside_the_plain_one(evaluated, tmp_path):
    """Asked for by name they get the true mask, and the picture's own latent outside of it keeps more."""
    folder, whole = evaluated
    shutil.copytree(folder / "report" / "kept", tmp_path / "kept")
    forms = ("turboedit_given", "turboedit_given_paper")
    found = evaluate_scenes(
        folder / "export",
        tmp_path,
        editors=forms,
        num=1,
        num_validation=1,
        num_heldout=0,
        attributes=folder / "attributes",
        clip=folder / "clip",
        device="cpu",
    )
    edits = found["edits"]
    outside = {name: figures["psnr_outside"]["mean"] for name, figures in (whole["edits"] | edits).items()}
    assert list(edits) == ["turboedit", *forms, "identity", "truth", "ceiling"]
    assert edits["turboedit"]["psnr_outside"] == whole["edits"]["turboedit"]["psnr_outside"]
    assert outside["turboedit_given"] > outside["turboedit_given_paper"]
    assert outside["turboedit_mask"] > outside["turboedit_mask_paper"]
    assert set(found["noise"]) == {"turboedit", "turboedit_mean"}
    assert set(found["reconstruction"]) == {"vae", "turboedit"}
    assert found["better_in_both"] == [] and found["equal_success"] == {}


def test_page_loads_nothing_from_elsewhere(evaluated):
    page = (evaluated[0] / "report" / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    assert "url(" not in page


def test_export_of_other_code_loads_with_ours(evaluated):
    """An export names its own copy of the pipeline's file; evaluation takes the parts and leaves that file alone."""
    folder = evaluated[0] / "export"
    index = folder / "model_index.json"
    entries = json.loads(index.read_text())
    index.write_text(json.dumps({**entries, "_class_name": ["turboedit_pipeline", "TurboEditPipeline"]}))
    (folder / "turboedit_pipeline.py").write_text("raise RuntimeError('this must not run')\n")
    assert load_encoder(folder).timesteps == (999, 749, 499, 249)


def test_missing_judges_are_named(evaluated, tmp_path):
    with pytest.raises(ValueError, match="--attributes"):
        evaluate_scenes(evaluated[0] / "export", tmp_path, attributes=tmp_path / "nowhere")


def test_edits_hold_no_figure_of_another_split(evaluated):
    """The choice of strengths sees validation edits only: none of them is in the table."""
    with (evaluated[0] / "report" / "edits.csv").open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"test", "heldout"}


def test_a_baseline_is_better_where_it_is_as_good_in_both_and_better_in_one():
    """Beyond the errors of differences edit by edit: one that keeps a decibel more is better, noise is not."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=40)

    def result(name: str, psnr: np.ndarray, changed: Callable[[int], float]) -> EditorResult:
        rows = [EditScores("recolour", changed(i), 0.9, 1, 20, float(psnr[i]), 80, 1) for i in range(40)]
        return EditorResult(name, (1.0,), scores={1.0: rows})

    base = 30 + noise
    found = {
        "turboedit": result("turboedit", base, lambda i: float(i % 2)),
        "ddpm": result("ddpm", base + 1, lambda i: float(i % 2)),
        "sdedit": result("sdedit", base + draw.normal(size=40), lambda i: float(i % 2)),
        "ddim": result("ddim", base + 1, lambda i: 0.0),
    }
    signs = standings(found, dict.fromkeys(found, 1.0), ["recolour"])["turboedit"]
    assert signs["ddpm"] == {"changed": 0, "psnr_outside": 1} and signs["ddim"] == {"changed": -1, "psnr_outside": 1}
    assert better_in_both(signs) == ["ddpm"] and equal_in_both(signs) == ["sdedit"]
