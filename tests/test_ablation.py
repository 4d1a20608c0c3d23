"""Ablations and the paper's claims: how a claim is judged, what parts measure, and the whole on a tiny pipeline."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from markupsafe import escape

from data.world.description import attribute_targets
from data.world.edits import kept_attributes
from eval.ablation import PARTS, ablate
from eval.ablations.bench import Setting, above, difference
from eval.ablations.composed import FIRST, composed_edits
from eval.ablations.editors import (
    ClippedMask,
    CombinedMask,
    FrozenAttention,
    MaskThresholds,
    WatchedNoise,
    clipped_mask,
)
from eval.ablations.kl_weight import load_lambda_encoders, read_lambda
from eval.ablations.mask import coverage
from eval.ablations.prompts import SAID_BRIEFLY, with_short_prompts
from eval.ablations.strength import rising
from eval.claims.judging import Claim, Comparison, judged
from eval.claims.turboedit import CLAIMS
from eval.editors.editor import EditRequest
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import with_steps
from eval.metrics.intervals import Interval
from eval.scene_edits.edit_set import sample_edit_set
from eval.scene_edits.judge import has_changed, kept_share
from models.noise_encoder import NoiseEncoder
from models.pictures import from_pictures
from tests.processes import ROOT
from tests.tiny_editing import save_tiny_judges, tiny_flow_pipeline, tiny_pipeline

CLAIM = Claim("right", "It is right.", "section 0")
DRAWS = np.random.default_rng(1).normal(size=200)


def judge_of(*values):
    (result,) = judged({"right": [Comparison("a, less b", "dB", column) for column in values]}, [CLAIM])
    return result


def test_interval_is_that_of_the_mean():
    interval = Interval.of(DRAWS)
    error = DRAWS.std(ddof=1) / math.sqrt(len(DRAWS))
    assert interval.mean == pytest.approx(DRAWS.mean())
    assert interval.low == pytest.approx(DRAWS.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(DRAWS.mean() + 1.96 * error, abs=0.1 * error)
    assert Interval.of(DRAWS) == interval, "the resamples are always the same"


def test_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [Interval.of(rng.exponential(size=40), num_resamples=500) for _ in range(300)]
    held = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
    assert 0.88 <= held <= 0.98


def test_interval_leaves_nan_out_and_needs_two_values():
    assert Interval.of([1.0, math.nan, 3.0]).n == 2
    for values in ([], [math.nan], [2.0]):
        assert math.isnan(Interval.of(values).low)
    assert Interval.of([2.0]).mean == 2.0


def test_claim_whose_differences_are_on_its_side_is_confirmed():
    result = judge_of(DRAWS + 1)
    assert (result.outcome, result.contradicted) == ("confirmed", False)
    assert result.tests[0][2].low > 0 and result.tests[0][2].n == 200


def test_claim_within_the_noise_is_not_confirmed():
    result = judge_of(DRAWS - DRAWS.mean())
    assert (result.outcome, result.contradicted) == ("not confirmed", False)


def test_claim_whose_differences_are_on_the_other_side_is_contradicted():
    result = judge_of(DRAWS - 1)
    assert (result.outcome, result.contradicted) == ("not confirmed", True)


def test_one_comparison_of_several_decides():
    assert judge_of(DRAWS + 1, DRAWS + 2).outcome == "confirmed"
    assert judge_of(DRAWS + 1, DRAWS - DRAWS.mean()).outcome == "not confirmed"
    assert judge_of(DRAWS + 1, DRAWS - 1).contradicted


def test_no_difference_at_all_confirms_nothing():
    result = judge_of(np.zeros(50))
    assert (result.outcome, result.contradicted) == ("not confirmed", False)


def test_without_edits_or_comparisons_a_claim_is_not_testable():
    assert judge_of([1.0, math.nan]).outcome == "not testable here"
    (result,) = judged({}, [Claim("right", "It is right.", "section 0", "a captioner")])
    assert (result.outcome, result.reason) == ("not testable here", "needs a captioner")


def test_evidence_that_nobody_claims_is_a_mistake():
    with pytest.raises(ValueError, match="wrong, which nobody claims"):
        judged({"wrong": [Comparison("", "", [1.0])]}, [CLAIM])


def test_claims_are_told_apart():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.sentence.endswith(".") and claim.source for claim in CLAIMS)


def test_commands_that_a_claim_names_are_there():
    said = " ".join(str(vars(claim)) for claim in CLAIMS)
    named = set(re.findall(r"\b(?:eval|scripts|train)\.\w+", said))
    assert {"eval.pie_bench", "scripts.bench_full_size", "train.plan"} <= named
    assert [name for name in named if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()] == []


def test_differences_are_paired_in_the_unit_of_the_table():
    better, worse = Setting("b", {"changed": [1, 1, math.nan]}), Setting("w", {"changed": [0, 1, 1]})
    found = difference("changed", better, worse)
    assert found.values[:2] == [100, 0] and math.isnan(found.values[2]) and found.unit == "%"
    assert difference("changed", better, worse, margin=0.25).values[:2] == [75, -25]
    assert above("changed", worse, 0.5).values == [-50, 50, 50]


def test_rank_correlation_with_the_strength():
    strengths = np.arange(5.0)
    columns = np.stack([strengths**3, -strengths, np.ones(5), [0, 0, 0, 1, 2]], 1)
    found = rising(columns)
    assert found[:3] == pytest.approx([1, -1, 0])
    assert 0.8 < found[3] < 1


def test_coverage_of_the_true_mask_and_of_the_rest():
    truth = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    truth[0, :, :4] = True
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :, :2] = 1
    covered, spilt = coverage(mask, truth)
    assert covered[0] == pytest.approx(0.5) and spilt[0] == pytest.approx(0.5)
    assert math.isnan(covered[1]) and spilt[1] == 0


def test_clipped_mask_is_swiftedits():
    """The published steps one by one: mean over channels, clipped at three times its mean, scaled to 1, thresholded."""
    difference = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    difference[0, :, 2:4, 2:4] *= 20
    for image, mask in zip(difference, clipped_mask(difference, 0.5), strict=True):
        heat = image.abs().mean(0)
        highest = 3 * heat.mean()
        torch.testing.assert_close(mask[0], (heat.clamp(0, highest) / highest > 0.5).float())
    assert not clipped_mask(torch.zeros(1, 4, 8, 8), 0.5).any()


def test_composed_edits_have_both_changes_and_keep_the_rest():
    composed = composed_edits(4, seed=0)
    edits = composed.both
    assert len(edits) == 4 * len(FIRST)
    for index, edit in enumerate(edits.edits):
        source, target = attribute_targets(edit.source), attribute_targets(edit.target)
        assert has_changed(edit, target) and kept_share(edit, target, source) == 1
        second = [name for name in ("background", "style") if source[name] != target[name]]
        assert len(second) == 1 and second[0] not in kept_attributes(edit)
        halves = {edits.source_prompts[index], composed.first[index], composed.second[index]}
        assert len({*halves, edits.target_prompts[index]}) == 4
    parts = list(composed.batches(5))
    assert [len(part.both) for part in parts] == [5, 5, 5, 1]
    assert sum((part.first for part in parts), ()) == composed.first
    assert parts[1].second == composed.second[5:10]


def test_short_prompts_say_the_edits_that_they_are_used_for():
    edits = sample_edit_set("test", 2)
    short = with_short_prompts(edits)
    for edit, source, target in zip(edits.edits, short.source_prompts, short.target_prompts, strict=True):
        assert (source != target) == (edit.kind in SAID_BRIEFLY), edit
    assert short.sources is edits.sources


@pytest.fixture(scope="module")
def pipeline(tiny_backbone):
    return tiny_pipeline(tiny_backbone)


@pytest.fixture(scope="module")
def places(pipeline, tmp_path_factory):
    """A folder with an export whose card says its lambda, and the judges."""
    folder = tmp_path_factory.mktemp("ablation")
    pipeline.save_pretrained(folder / "export")
    (folder / "export" / "README.md").write_text("objective:\n  kl_weight: 4.0e-05\n  own_share: 0.5\n")
    save_tiny_judges(folder, pipeline.tokenizer)
    return folder


def settings(places, **change):
    options = {"num": 1, "batch": 9, "device": "cpu", "attributes": places / "attributes", "clip": places / "clip"}
    return {"encoder": places / "export", "out": places / "report", **options, **change}


IN_FILES_OF_THEIR_OWN = ("one_step", "renoise", "reweighting")
"""Parts that tests/test_one_step.py runs."""


@pytest.fixture(scope="module")
def results(places):
    others = {"0": places / "export", "1e-3": places / "export"}
    parts = tuple(name for name in PARTS if name not in IN_FILES_OF_THEIR_OWN)
    return ablate(**settings(places, lambda_encoders=others, parts=parts))


def test_every_claim_has_an_outcome_with_n_and_interval(places, results):
    kept = json.loads((places / "report" / "results.json").read_text())
    assert [claim["outcome"] for claim in kept["claims"]] == [claim["outcome"] for claim in results["claims"]]
    assert [claim["id"] for claim in results["claims"]] == [claim.id for claim in CLAIMS]
    outcomes = {claim["id"]: claim["outcome"] for claim in results["claims"]}
    untested = {name for name, outcome in outcomes.items() if outcome == "not testable here"}
    assert {"seconds", "training", "instructions", "beats_many_steps", "beats_trained_instructions"} <= untested
    assert outcomes["evaluations"] == "confirmed"
    # One encoder under three lambdas: nothing differs between them.
    for name in ("kl_structure", "kl_prompts", "lambda_reconstruction"):
        (claim,) = [claim for claim in results["claims"] if claim["id"] == name]
        assert not claim["contradicted"] and outcomes[name] != "confirmed"
        assert all(test["mean"] == 0 for test in claim["tests"])
    for claim in results["claims"]:
        for test in claim["tests"]:
            assert test["n"] < 2 or test["low"] <= test["mean"] <= test["high"], claim


def test_every_part_has_its_settings(results):
    parts = results["parts"]
    assert list(parts) == [name for name in PARTS if name not in ("instructions", *IN_FILES_OF_THEIR_OWN)]
    assert [setting["setting"] for setting in parts["lambda"]["settings"]] == [
        "lambda 0",
        "lambda 4e-05",
        "lambda 0.001",
    ]
    assert len(parts["steps"]["settings"]) == 7 and len(parts["prompts"]["settings"]) == 10
    assert len(parts["strength"]["settings"]) == 9 and len(parts["mask"]["settings"]) == 30
    assert [parts[name]["n"] for name in ("steps", "prompts", "mask", "composed")] == [9, 5, 9, 4]
    by_name = {setting["setting"]: setting for setting in parts["strength"]["settings"]}
    assert by_name["strength 0"]["moved"]["mean"] == 0 < by_name["strength 1"]["moved"]["mean"]
    masks = {setting["setting"]: setting for setting in parts["mask"]["settings"]}
    for kind in ("prediction", "noise", "attention", "prediction, clipped", "noise, clipped"):
        covered = [masks[f"{kind} {threshold:g}"]["covered"]["mean"] for threshold in (0.2, 0.4, 0.6)]
        assert covered == sorted(covered, reverse=True)
    covered = [masks[f"{name} 0.4"]["covered"]["mean"] for name in ("union", "prediction", "product")]
    assert covered == sorted(covered, reverse=True)
    assert {"no mask", "true mask", "true mask, paper's form"} <= set(masks)
    by_words = {found["words"]: found for found in parts["mask"]["differences"]}
    less = by_words["of the mask covered: prediction 0.4, less prediction, clipped 0.5"]
    gap = masks["prediction 0.4"]["covered"]["mean"] - masks["prediction, clipped 0.5"]["covered"]["mean"]
    assert less["mean"] == pytest.approx(100 * gap) and less["low"] <= less["mean"] <= less["high"]
    ways = parts["composed"]["settings"]
    assert ways[0]["psnr_outside"] == ways[2]["psnr_outside"], "an edit on an edit is one with both changes"


def test_table_has_a_row_for_each_setting_and_edit(places, results):
    with (places / "report" / "edits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(part["n"] * len(part["settings"]) for part in results["parts"].values())
    chosen = [row for row in rows if row["part"] == "mask" and row["setting"] == "true mask"]
    values = [float(row["psnr_outside"]) for row in chosen if row["psnr_outside"]]
    (setting,) = [s for s in results["parts"]["mask"]["settings"] if s["setting"] == "true mask"]
    assert np.mean(values) == pytest.approx(setting["psnr_outside"]["mean"], rel=1e-4)


def test_page_says_what_became_of_each_claim(places, results):
    page = (places / "report" / "index.html").read_text()
    assert page.count("<tr><td>") > len(CLAIMS)
    for claim in CLAIMS:
        assert escape(claim.sentence) in page
    assert len(re.findall(r'class="outcome', page)) == len(CLAIMS)
    assert "://" not in page.replace("http://www.w3.org", "")
    assert "ablation_miniature.yaml" in page


def ablate_transformer(places, tiny_flux, folder, *parts):
    """The results and the page of an untrained encoder for a transformer."""
    tiny_flow_pipeline(tiny_flux, "1.0").save_pretrained(folder / "export")
    chosen = {"encoder": folder / "export", "out": folder / "report", "clip": None, "parts": parts}
    return ablate(**settings(places, **chosen)), (folder / "report" / "index.html").read_text()


def test_on_a_transformer_no_attention_is_frozen(places, tiny_flux, tmp_path):
    found, page = ablate_transformer(places, tiny_flux, tmp_path, "prompts", "composed")
    prompts, composed = (found["parts"][name]["settings"] for name in ("prompts", "composed"))
    assert [row["setting"] for row in prompts] == ["short, none frozen", "detailed, none frozen"] and len(composed) == 4
    claims = {claim["id"]: claim for claim in found["claims"]}
    for name in ("short_prompts_freeze", "detailed_beat_freezing", "freezing_restricts"):
        assert claims[name]["outcome"] == "not testable here" and "a generator with a UNet" in claims[name]["reason"]
    assert claims["detailed_prompts"]["tests"] and "Frozen attention needs a UNet&#39;s attention" in page


@pytest.mark.long
def test_on_a_transformer_no_mask_is_from_attention(places, tiny_flux, tmp_path):
    found, page = ablate_transformer(places, tiny_flux, tmp_path, "mask")
    names = [row["setting"] for row in found["parts"]["mask"]["settings"]]
    assert len(names) == 23 and not any("attention" in name or "union" in name for name in names)
    assert any(claim["tests"] for claim in found["claims"] if claim["id"] == "mask_keeps")
    assert "Masks from attention, and those made of two, need a UNet&#39;s attention" in page


def test_settings_are_those_of_the_pipeline(pipeline):
    """The ablated setting as a strength gives the pictures of the pipeline called with that setting."""
    edits = sample_edit_set("test", 1).first(2)
    request = EditRequest(edits.target_prompts)
    inverted = pipeline.invert(edits.sources, edits.source_prompts)

    def expected(**options):
        return from_pictures(pipeline.edit(inverted, edits.target_prompts, **options).images)

    frozen = FrozenAttention(pipeline, "frozen")
    inversion = frozen.invert(edits.sources, edits.source_prompts)
    assert frozen.counts == (0, 1, 2, 3, 4)
    for count in (0, 2):
        pictures = frozen.edit(inversion, EditRequest(request.prompt, strength=float(count)))
        torch.testing.assert_close(pictures, expected(frozen_steps=count, outside="reconstruction"))
    for kind in ("prediction", "noise", "attention"):
        masked = MaskThresholds(pipeline, kind)
        pictures = masked.edit(inversion, EditRequest(request.prompt, strength=0.7))
        torch.testing.assert_close(pictures, expected(mask=kind, threshold=0.7))
        assert masked.masks[0.7][0].shape == (2, 1, 16, 16)
    first = pipeline.edit(inverted, edits.target_prompts).inversion.first - inverted.reconstructions[0]
    latent, both = torch.cat([inverted.latent] * 2), (*edits.source_prompts, *edits.target_prompts)
    encoder, t = NoiseEncoder(pipeline.encoder, pipeline.backbone.schedule), torch.full((4,), inverted.timesteps[0])
    means = encoder.posterior(latent, 0 * latent, pipeline.backbone.encode_text(both), t).mean
    for kind, differing in (("prediction", first), ("noise", means[2:] - means[:2])):
        clipped = ClippedMask(pipeline, kind)
        pictures = clipped.edit(inversion, EditRequest(request.prompt, strength=0.5))
        torch.testing.assert_close(pictures, expected(mask=clipped_mask(differing, 0.5)))
    sharp = [
        pipeline.edit(inverted, edits.target_prompts, mask=kind, blur=0.0).mask for kind in ("prediction", "attention")
    ]
    union = CombinedMask(pipeline, torch.maximum, "union")
    torch.testing.assert_close(union.edit(inversion, request), expected(mask=torch.maximum(*sharp)))
    watched = WatchedNoise(TurboEdit(pipeline), "watched")
    drawn = torch.cat(list(watched.invert(edits.sources, edits.source_prompts).aggregate.values()), 1)
    assert watched.health["largest"] == pytest.approx(drawn.abs().amax((1, 2, 3)).tolist())
    for name, noises in (("std", drawn), ("noisiest_std", drawn[:, :4])):
        assert watched.health[name] == pytest.approx(noises.flatten(1).std(1, correction=0).tolist(), rel=1e-4)
    plain = TurboEdit(pipeline)
    torch.testing.assert_close(watched.edit(inversion, request), plain.edit(inversion, request))


def test_lambda_is_read_from_the_card(places, tmp_path):
    assert read_lambda(places / "export") == 4e-5
    assert read_lambda(tmp_path) is None


def test_without_a_known_lambda_the_kl_is_not_judged(places, tmp_path):
    silent = shutil.copytree(places / "export", tmp_path / "silent", ignore=shutil.ignore_patterns("README.md"))
    others = {"0": places / "export"}
    found = ablate(
        **settings(places, encoder=silent, out=tmp_path / "a", num=1, parts=("lambda",), lambda_encoders=others)
    )
    outcomes = {claim["id"]: claim["outcome"] for claim in found["claims"]}
    assert found["about"]["kl_weight"] is None and outcomes["kl_values"] == "not testable here"
    assert [s["setting"] for s in found["parts"]["lambda"]["settings"]] == ["this encoder", "lambda 0"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num": 0}, "num is 0"),
        ({"parts": ("step",)}, "parts step are unknown; expected some of steps"),
        ({"steps": (3,)}, "num_steps is 3"),
        ({"lambda_encoders": {"small": "export"}}, "names a lambda 'small'; expected kl_weight"),
        (
            {"lambda_encoders": {"1e-6": "nowhere"}},
            "--lambda_encoders nowhere: there is no such folder made by train.export",
        ),
        ({"encoder": "nowhere"}, "--encoder nowhere: there is no such folder made by train.export"),
    ],
)
def test_wrong_options_are_named(places, tmp_path, change, words):
    change = {**change, "out": tmp_path}
    with pytest.raises((ValueError, OSError), match=words):
        ablate(**settings(places, **change))


def test_encoders_of_other_timesteps_are_refused(pipeline, tmp_path):
    with_steps(pipeline, 2).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="lambda 1e-3 works at"):
        load_lambda_encoders({"1e-3": tmp_path / "two"}, pipeline, torch.device("cpu"), "auto")


def test_instructions_on_the_miniature(places, tmp_path):
    """With the miniature's captioner; edits of an untrained encoder, so that only the way is tested."""
    captioner = "models/miniature/llava"
    found = ablate(**settings(places, out=tmp_path, num=1, parts=("instructions",), captioner=captioner))
    measured = found["parts"]["instructions"]["settings"]
    assert [setting["setting"] for setting in measured] == ["true captions", "by instruction"]
    (claim,) = [claim for claim in found["claims"] if claim["id"] == "instructions"]
    assert claim["tests"][0]["n"] == len(found["about"]["changed_kinds"])
