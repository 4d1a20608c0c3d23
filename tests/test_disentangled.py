"""Pictures from one noise under a caption and an edited one: how they are made, measured and judged."""

import math

import numpy as np
import pytest
import torch

from data.world.description import LAYOUTS, POSES, SHAPES, SceneObject, attribute_targets
from data.world.edits import kept_attributes
from data.world.render import object_coverage, place_mask
from eval.ablations.bench import Bench, Setting
from eval.ablations.disentangled import (
    Teacher,
    disentangled_evidence,
    load_teacher,
    pair_values,
    pairs_of,
    samplers_of,
    says_target,
)
from eval.ablations.prompts import SAID_BRIEFLY
from eval.claims.judging import judged
from eval.claims.turboedit import CLAIMS
from eval.editors.few_steps import generator_of
from eval.scene_edits.edit_set import edit_set, sample_edit_set
from eval.scene_edits.judge import load_judge, scene_readings
from eval.scene_edits.run import RunSetup, kept_results
from models.backbone import Backbone
from models.ddim import Ddim
from tests.tiny_editing import one_edit_of_each_kind, save_tiny_judges, tiny_pipeline


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_objects_lie_within_the_mask_of_their_place(size):
    for seed, place in enumerate(LAYOUTS[:5] * 6):
        for shape in SHAPES:
            pose = "upright" if shape == "circle" else POSES[seed % 2]
            item = SceneObject(shape, "red", "large", "solid", "plain", pose, place, seed * 7919)
            assert not ((object_coverage(item, size) > 0) & ~place_mask(place, size)).any()
    assert all(0.3 < place_mask(place).mean() < 0.6 for place in LAYOUTS[:5])


@pytest.fixture(scope="module")
def bench(tiny_backbone, tmp_path_factory):
    pipeline = tiny_pipeline(tiny_backbone)
    folder = tmp_path_factory.mktemp("disentangled")
    judge = load_judge(*save_tiny_judges(folder, pipeline.tokenizer), torch.device("cpu"))
    edits = edit_set(one_edit_of_each_kind())
    setup = RunSetup(pipeline.backbone, judge, 4, kept_results(folder))
    return Bench(setup, edits, judge.references(edits, pipeline.backbone), (), pipeline, {})


@pytest.fixture(scope="module")
def teacher(tiny_sd_backbone):
    backbone = Backbone.load(tiny_sd_backbone)
    return Teacher(backbone, Ddim(backbone.schedule, 2), 3.0)


def test_each_way_samples_as_its_model_does_from_the_same_noises(bench, teacher):
    """Restated: the first noise alone is a generator's x_T and DDIM's; both captions have it, in any batch."""
    samplers = samplers_of(generator_of(bench.pipeline), teacher)
    assert list(samplers) == ["single", "student", "teacher", "guided"]
    noises = [torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    texts = bench.edits.source_prompts[:2]
    backbone = bench.pipeline.backbone
    abar = backbone.schedule.alphas_cumprod[999].item()
    x_t, t = (1 - abar) ** 0.5 * noises[0], torch.full((2,), 999)
    with torch.no_grad():
        x0 = backbone.schedule.predict_x0(x_t, backbone.predict(x_t, backbone.encode_text(texts), t), t)
        torch.testing.assert_close(samplers["single"].sample(noises, texts), x0)
        guided = samplers["guided"].sample(noises, texts)
        x, model = noises[0], teacher.backbone
        prompt, null = model.encode_text(texts), model.encode_text(["", ""])
        for step, t in enumerate(teacher.ddim.timesteps):
            at = torch.full((2,), t)
            with_text, without = (
                model.schedule.predict_noise(x, model.predict(x, text, at), at) for text in (prompt, null)
            )
            x = teacher.ddim.move(x, without + 3 * (with_text - without), step, step + 1)
        torch.testing.assert_close(guided, x, rtol=1e-4, atol=1e-4)
    alone = pairs_of(samplers["single"], bench.edits.first(1), (999,), seed=5)
    both = pairs_of(samplers["single"], bench.edits.first(2), (999,), seed=5)
    torch.testing.assert_close(alone[0], both[0][:1])
    assert not torch.equal(both[0], both[1])


def test_pairs_are_measured_where_nothing_was_to_change(bench):
    edits = [edit for edit in bench.edits.edits if edit.kind in SAID_BRIEFLY]
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.rand(len(edits), 3, 64, 64, generator=draw) * 2 - 1 for _ in range(2))
    found = pair_values(bench, edits, before, after)
    reader = bench.setup.judge.reader
    for row, edit in enumerate(edits):
        first, second = (scene_readings(reader, pictures[row : row + 1])[0] for pictures in (before, after))
        if (first["b_shape"] < 0) == (second["b_shape"] < 0):
            kept = [second[name] == first[name] for name in kept_attributes(edit).values()]
            assert found["kept"][row] == pytest.approx(np.mean(kept))
        before_edit, after_edit = set(edit.source.objects), set(edit.target.objects)
        changed = (before_edit - after_edit, after_edit - before_edit)
        if not any(changed):
            assert math.isnan(found["psnr_outside"][row])
            continue
        open_to_change = np.zeros((64, 64), bool)
        for objects, scene, reading in zip(changed, (edit.source, edit.target), (first, second)):
            for item in objects:
                places = LAYOUTS[reading["layout"]].split("+")
                number = scene.objects.index(item)
                open_to_change |= place_mask(places[number]) if number < len(places) else True
        if open_to_change.all():
            assert math.isnan(found["psnr_outside"][row])
        else:
            error = ((after[row] - before[row]) / 2).square().numpy()[:, ~open_to_change].mean()
            assert found["psnr_outside"][row] == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_what_the_target_says_is_asked_of_the_edited_picture_alone():
    for edit in sample_edit_set("test", 2).edits:
        target, source = attribute_targets(edit.target), attribute_targets(edit.source)
        assert says_target(edit, target) and (edit.kind == "change_pose" or not says_target(edit, source)), edit


def test_claims_follow_the_differences_of_pairs():
    """By hand: means of paired differences, each far beyond or within its own error."""
    rng = np.random.default_rng(0)
    base = rng.normal(30, 5, 60)

    def setting(shift, kept):
        noise = rng.normal(0, 0.3, 60)
        noise -= noise.mean()
        values = {"psnr_outside": list(base + shift + noise), "kept": list(kept + noise / 9)}
        return Setting(f"{shift} {kept}", {"changed": [1.0] * 60, **values})

    def outcomes(**shifts):
        ways = {"single": (3, 0.9), "student": (3, 0.9), "teacher": (1, 0.5), "guided": (1, 0.5), **shifts}
        found = {(way, "detailed"): setting(*values) for way, values in ways.items()}
        found |= {(way, "short"): setting(0, 0.2) for way in ways}
        results = judged(disentangled_evidence(found), CLAIMS)
        return {
            result.claim.id: (result.outcome, result.contradicted, len(result.tests))
            for result in results
            if result.claim.id in ("detailed_disentangle", "distillation_disentangles")
        }

    assert set(outcomes().values()) == {("confirmed", False, 3), ("confirmed", False, 4)}
    worse = outcomes(guided=(9, 0.5))
    assert worse["distillation_disentangles"] == ("not confirmed", True, 4)
    assert worse["detailed_disentangle"] == ("confirmed", False, 3)
    level = outcomes(teacher=(3, 0.9), student=(3, 0.9))
    assert level["distillation_disentangles"][:2] == ("not confirmed", False)


def test_a_teacher_of_other_latents_is_refused(bench, tiny_sd_backbone, tmp_path):
    with pytest.raises(ValueError, match=r"--teacher\.path nowhere: there is no such"):
        load_teacher("nowhere", bench.pipeline.backbone, 2, 3.0, torch.device("cpu"), "auto")
    found = load_teacher(tiny_sd_backbone, bench.pipeline.backbone, 2, 3.0, torch.device("cpu"), "float32")
    assert len(found.ddim) == 2
