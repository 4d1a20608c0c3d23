"""Claims of a single step, of ReNoise and of reweighted words: what is measured, and how it is judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter

from eval.ablations.bench import Bench, Setting
from eval.ablations.one_step import ablate_one_step, ablate_renoise, one_step_evidence, renoise_evidence
from eval.ablations.reweighting import ReweightedWords, ablate_reweighting, reweighting_evidence
from eval.claims.judging import judged
from eval.claims.turboedit import CLAIMS
from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents, generator_of
from eval.editors.turboedit import in_papers_form
from eval.metrics.pixels import lone_pixels
from eval.scene_edits.edit_set import edit_set
from eval.scene_edits.judge import load_judge
from eval.scene_edits.run import RunSetup, kept_results
from tests.tiny_editing import one_edit_of_each_kind, save_tiny_judges, tiny_pipeline


@pytest.fixture(scope="module")
def bench(tiny_backbone, tmp_path_factory):
    pipeline = tiny_pipeline(tiny_backbone)
    folder = tmp_path_factory.mktemp("one_step")
    judge = load_judge(*save_tiny_judges(folder, pipeline.tokenizer), torch.device("cpu"))
    edits = edit_set(one_edit_of_each_kind()[:4])
    setup = RunSetup(pipeline.backbone, judge, 4, kept_results(folder))
    return Bench(setup, edits, judge.references(edits, pipeline.backbone), ("change_object",), pipeline, {})


def test_lone_pixels_are_those_beyond_all_neighbours():
    """Restated with scipy's filters on a footprint without the middle."""
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[1] = images[1].round(decimals=0) / 10
    around = np.ones((3, 3))
    around[1, 1] = 0
    for image, found in zip(images, lone_pixels(images).tolist(), strict=True):
        grey = (image.mean(0).numpy() + 1) / 2
        high, low = maximum_filter(grey, footprint=around), minimum_filter(grey, footprint=around)
        alone = ((grey > high + 0.05) | (grey < low - 0.05))[1:-1, 1:-1]
        assert found == pytest.approx(alone.mean())
    smooth = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64).clone()
    assert lone_pixels(smooth).item() == 0
    smooth[:, :, 30, 30] = 1
    assert lone_pixels(smooth).item() == pytest.approx(1 / 62**2)


def outcome(evidence, name):
    (result,) = [result for result in judged(evidence, CLAIMS) if result.claim.id == name]
    return result.outcome, result.contradicted


def test_each_claim_of_one_step_follows_its_own_figures():
    """Means apart by many times their errors, so that signs alone decide, as a t statistic says."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 50)

    def setting(name, changed, **means):
        values = {measure: list(base + mean + rng.normal(0, 0.1, 50)) for measure, mean in means.items()}
        return Setting(name, {"changed": [float(i < 50 * changed) for i in range(50)], **values})

    found = {
        "one": setting("one", 0.9, psnr=24, psnr_outside=25, psnr_inside=22, lone_pixels=2),
        "frozen": setting("frozen", 0.2, psnr_inside=20),
        "ddpm": setting("ddpm", 0.9, psnr_outside=15),
        "residual": setting("residual", 0.1, psnr=34, psnr_inside=18),
        "all": setting("all", 0.9, lone_pixels=1),
    }
    truths = setting("truths", 1, lone_pixels=1.5)
    names = ("ddpm_resembles", "ddpm_overfits", "freezing_one_step", "salt_and_pepper")
    evidence = one_step_evidence(found, truths)
    for name in names:
        assert outcome(evidence, name) == ("confirmed", False)
        for test in evidence[name]:
            values = np.array(test.values)
            assert values.mean() > 4 * values.std(ddof=1) / 50**0.5 > 0
    # The sign of any one difference turned: that claim alone is contradicted.
    for key, measure, name in (("residual", "psnr", "ddpm_overfits"), ("all", "lone_pixels", "salt_and_pepper")):
        other = dict(found[key].values) | {
            measure: [2 * a - b for a, b in zip(found["one"].values[measure], found[key].values[measure])]
        }
        turned = one_step_evidence({**found, key: Setting(key, other)}, truths)
        assert outcome(turned, name) == ("not confirmed", True)
        assert all(outcome(turned, rest) == ("confirmed", False) for rest in names if rest != name)


def test_renoise_is_judged_by_28_evaluations_and_by_what_is_kept():
    def setting(name, nfe, psnr):
        draws = np.random.default_rng(nfe).normal(psnr, 0.1, 30)
        return Setting(
            name, {"nfe_invert": [nfe] * 30, **{m: list(draws) for m in ("psnr_outside", "kept", "psnr_inside")}}
        )

    ours = setting("ours", 8, 30)
    enough = renoise_evidence(ours, setting("ReNoise", 43, 20))
    assert enough["renoise_evaluations"][0].values == [43 - 8 - 28] * 30
    assert outcome(enough, "renoise_evaluations") == outcome(enough, "beats_renoise") == ("confirmed", False)
    fewer = renoise_evidence(ours, setting("ReNoise", 20, 31))
    assert outcome(fewer, "renoise_evaluations") == outcome(fewer, "beats_renoise") == ("not confirmed", True)


def test_interpolation_is_judged_by_how_steadily_figures_rise():
    def settings(columns):
        return [
            Setting(str(i), {"direction": list(row), "moved": list(row)}) for i, row in enumerate(np.transpose(columns))
        ]

    rising, shuffled = (
        [[0, 1, 2, 3, 4]] * 5,
        [[0, 3, 1, 4, 2], [0, 4, 1, 2, 3], [2, 1, 4, 0, 3], [0, 2, 1, 4, 3], [1, 0, 3, 2, 4]],
    )
    evidence = reweighting_evidence(settings(rising), settings(shuffled))
    ranks = [1 - 6 * np.sum((np.array(row) - np.arange(5)) ** 2) / (5 * 24) for row in shuffled]
    for test in evidence["interpolation_smoother"]:
        assert list(test.values) == pytest.approx([1 - rank for rank in ranks])
    assert outcome(evidence, "interpolation_smoother") == ("confirmed", False)
    assert outcome(reweighting_evidence(settings(shuffled), settings(rising)), "interpolation_smoother")[1]


def test_reweighted_words_are_the_targets_at_1_and_silent_at_0(bench):
    edits = bench.edits.first(1)
    editor, plain = ReweightedWords(bench.pipeline), in_papers_form(bench.pipeline)
    inversion = plain.invert(edits.sources, edits.source_prompts)
    request = EditRequest(edits.target_prompts, strength=1.0)
    rounding = {"rtol": 0, "atol": 1.01 / 127.5 / 2}
    torch.testing.assert_close(editor.edit(inversion, request), plain.edit(inversion, request), **rounding)
    generator, backbone = generator_of(bench.pipeline), bench.pipeline.backbone
    prompt = backbone.encode_text(edits.target_prompts)
    embeds = prompt.embeds.clone()
    for row, (before, after) in enumerate(zip(edits.source_prompts, edits.target_prompts, strict=True)):
        tokens = bench.pipeline.tokenizer(after, return_offsets_mapping=True, truncation=True, max_length=77)
        new = set(after.replace(",", " ").split()) - set(before.replace(",", " ").split())
        for place, (start, end) in enumerate(tokens.offset_mapping):
            if any(after[:start].count(" ") == number for number, word in enumerate(after.split(" ")) if word in new):
                embeds[row, place] *= 0.5 if end > start else 1
    half = decode_latents(backbone, generator.sample(inversion.state.noises, replace(prompt, embeds=embeds))[-1])
    torch.testing.assert_close(editor.edit(inversion, replace(request, strength=0.5)), half)
    assert not torch.equal(half, editor.edit(inversion, request))


def test_parts_run_on_a_tiny_encoder(bench):
    one = ablate_one_step(bench)
    assert [setting.name for setting in one.settings] == [
        "TurboEdit, 1 step",
        "TurboEdit, 1 step, attention frozen",
        "DDPM, 1 step",
        "DDPM and its residual, 1 step",
        "TurboEdit, 4 steps",
        "VAE round trip of the true edit",
    ]
    ddpm, residual = (setting.values["psnr"] for setting in one.settings[2:4])
    assert all(a < b for a, b in zip(ddpm, residual, strict=True)), "what is missed is added back"
    ours, theirs = ablate_renoise(bench).settings
    assert set(ours.values["nfe_invert"]) == {8} and set(theirs.values["nfe_invert"]) == {43}
    both = ablate_reweighting(bench)
    ends = both.settings[4].values["psnr_outside"], both.settings[9].values["psnr_outside"]
    assert ends[0] == pytest.approx(ends[1], abs=0.01), "with all of the weight both ways are the plain edit, unrounded"
