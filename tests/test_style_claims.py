"""StyleDiffusion's claims: what is measured of keys and values, words and maps, how it is judged, and the whole."""

import json
import math

import numpy as np
import pytest
import torch
from markupsafe import escape

from data.world.description import ATTRIBUTE_VALUES
from eval.ablations.bench import Setting
from eval.ablations.fitted import closeness_evidence, on_object, one_word_evidence, with_one_word, word_map_evidence
from eval.ablations.swapped import swapped_pictures, swapped_values
from eval.claims.judging import judged
from eval.claims.stylediffusion import CLAIMS
from eval.editors.few_steps import decode_latents
from eval.editors.models import ManyStepModel
from eval.editors.options import NullTextSchedule
from eval.editors.randomness import image_keys, image_noise
from eval.scene_edits.edit_set import edit_set
from eval.style_claims import PARTS, judge_style_claims
from models.backbone import Backbone
from models.ddim import Ddim
from models.options import FitSchedule
from tests.slow_metrics import save_random_classifier
from tests.tiny_editing import one_edit_of_each_kind, save_tiny_judges


def test_pictures_have_the_values_of_their_own_prompt(tiny_sd_backbone):
    """Restated without control of attention: keys and values of one prompt are that prompt's guided sampling."""
    backbone = Backbone.load(tiny_sd_backbone)
    on = ManyStepModel(backbone, Ddim(backbone.schedule, 2), 3.0)
    part = edit_set(one_edit_of_each_kind()[:1])
    found = swapped_pictures(on, part, part.target_prompts, seed=3)
    x = image_noise(image_keys(part.sources), "same noise", 3, torch.zeros(1, 4, 16, 16))
    text, null = backbone.encode_text(part.target_prompts), backbone.encode_text([""])
    with torch.no_grad():
        for step, t in enumerate(on.ddim.timesteps):
            at = torch.tensor([t])
            with_text, without = (
                backbone.schedule.predict_noise(x, backbone.predict(x, prompt, at), at) for prompt in (text, null)
            )
            x = on.ddim.move(x, without + 3 * (with_text - without), step, step + 1)
        torch.testing.assert_close(found[1, 1], decode_latents(backbone, x), rtol=1e-4, atol=1e-4)
    pictures = list(found.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i]), "four pictures"


def test_keys_and_values_are_judged_where_the_prompts_differ():
    first = dict.fromkeys(ATTRIBUTE_VALUES, 0) | {"b_shape": -1}
    second = first | {"layout": 1, "a_size": 1, "a_colour": 3, "background": 2, "a_shape": 1, "b_shape": 2}
    as_claimed = {(0, 0): first, (1, 1): second}
    as_claimed |= {(0, 1): second | {"layout": 0, "a_size": 0}, (1, 0): first | {"layout": 1, "a_size": 1}}
    found = swapped_values(as_claimed)
    assert (found["where_keys"], found["what_values"]) == (1, 1) and found["shape_keys"] == -1
    other_way = {**as_claimed, (0, 1): first, (1, 0): second}
    assert swapped_values(other_way) == {"where_keys": 1, "what_values": -1, "shape_keys": 1}
    neither = {**as_claimed, (0, 1): second | {"layout": 5, "a_size": 0}}
    assert swapped_values(neither)["where_keys"] == pytest.approx((0.5 + 1) / 2)
    assert math.isnan(swapped_values(dict.fromkeys(as_claimed, first))["where_keys"])


def test_share_of_a_map_on_an_object():
    masks = torch.zeros(1, 64, 64)
    masks[:, :32] = 1
    heat = torch.ones(1, 1, 8, 8)
    heat[:, :, 4:] = 3
    assert on_object(heat, masks) == pytest.approx([0.25])


def test_one_word_is_the_shape_that_is_exchanged():
    edits = edit_set([edit for edit in one_edit_of_each_kind() if edit.kind == "change_object"])
    (source,), (target,) = with_one_word(edits).source_prompts, with_one_word(edits).target_prompts
    assert target == edits.edits[0].instruction.split()[-1] and source != target
    assert source in edits.source_prompts[0] and target in edits.target_prompts[0]


def outcomes(evidence):
    return {result.claim.id: (result.outcome, result.contradicted) for result in judged(evidence, CLAIMS)}


def test_claims_follow_the_tables_differences():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 40)

    def setting(**means):
        return Setting("", {m: list(base + mean + rng.normal(0, 0.05, 40)) for m, mean in means.items()})

    def table(style_structure):
        found = {
            "style": setting(structure=style_structure, clip=2, psnr=31, ssim=0.9, ns_lpips=1),
            "null": setting(structure=5, clip=1, psnr=30, ssim=0.2, ns_lpips=2),
            "ddim": setting(structure=9, clip=4, ns_lpips=4),
            "sdedit": setting(structure=6, clip=3, ns_lpips=3),
        }
        return outcomes(closeness_evidence(found, with_lpips=True))

    names = ("structure_kept", "region_kept", "fits_text", "swap_fits_text", "reconstructs")
    assert {table(1)[name] for name in names} == {("confirmed", False)}
    assert table(7)["structure_kept"] == ("not confirmed", True) and table(7)["region_kept"][0] == "confirmed"
    happened = Setting("ours", {"changed": [1.0] * 39 + [0.0], "psnr_outside": list(base + 1), "kept": list(base + 1)})
    worse = Setting("null", {"changed": [0.0] * 40, "psnr_outside": list(base), "kept": list(base - rng.random(40))})
    assert outcomes(one_word_evidence(happened, worse))["one_word"] == ("confirmed", False)
    assert outcomes(one_word_evidence(worse, happened))["one_word"] == ("not confirmed", True)
    maps = [Setting(name, {"on_object": list(base / 9 + mean)}) for name, mean in (("d", 0.2), ("w", 0.4), ("n", 0.4))]
    assert outcomes(word_map_evidence(*maps))["attention_map"] == ("not confirmed", False)


def test_every_claim_has_an_outcome_on_a_tiny_backbone(tiny_sd_backbone, tmp_path):
    attributes, clip = save_tiny_judges(tmp_path, Backbone.load(tiny_sd_backbone).text.tokenizers[0])
    options = {
        "num_steps": 2,
        "num": 1,
        "batch": 9,
        "schedule": FitSchedule(iterations=1),
        "null_text": NullTextSchedule(iterations=1),
        "lpips": save_random_classifier("alex", tmp_path / "alex.pth"),
    }
    found = judge_style_claims(
        str(tiny_sd_backbone), tmp_path / "out", attributes=attributes, clip=clip, device="cpu", **options
    )
    assert list(found["parts"]) == list(PARTS)
    assert [claim["id"] for claim in found["claims"]] == [claim.id for claim in CLAIMS]
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [claim["outcome"] for claim in kept["claims"]] == [claim["outcome"] for claim in found["claims"]]
    untested = {claim["id"] for claim in found["claims"] if not claim["tests"]}
    assert untested == {"users_prefer", "step_seconds", "keys_where", "values_what"}, "nothing is read of noise"
    ours = found["parts"]["closeness"]["settings"][0]
    assert 0 < ours["ns_lpips"]["n"] < 9, "an object that is added has no word in the source"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Li et al. 2023" in page and all(escape(claim.sentence) in page for claim in CLAIMS)
