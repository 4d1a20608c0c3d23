"""InstructPix2Pix beside TurboEdit on scenes: the claim on made-up sweeps, and the command on the miniature."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

from data.world.edits import EDIT_KINDS
from eval.editors.titles import title_of
from eval.instructive import evaluate_instructive, main
from eval.scene_edits.edit_set import sample_edit_set
from eval.scene_edits.figures import choose_strengths
from eval.scene_edits.instructions import ENVELOPE, compare, judge_claim
from eval.scene_edits.instructive import OURS, choose_rival
from eval.scene_edits.judge import EditScores
from eval.scene_edits.result import EditorResult
from eval.scene_edits.sweeps import Sweep
from tests.browser import PHONE, Browser
from tests.tiny_editing import tiny_flow_pipeline, tiny_pipeline

pytest_plugins = ["tests.browser"]

MINIATURE = Path("models/miniature")
RIVALS = ("instruct_pix2pix_text_2", "instruct_pix2pix_text_7.5")
COUNT = 300


# --- the claim ------------------------------------------------------------------------------------------------------


def made_up(levels, psnrs, seed: int = 0) -> Sweep:
    """A sweep of edits that scatter around these means."""
    rng = np.random.default_rng(seed)
    level, psnr = (np.array(means, float)[:, None] for means in (levels, psnrs))
    return Sweep(level + rng.normal(0, 2, (1, COUNT)), psnr + rng.normal(0, 2, (len(psnrs), COUNT)))


OURS_SWEEP = made_up((20, 22, 24), (32, 30, 28))


def against(levels, psnrs):
    return compare(OURS_SWEEP, made_up(levels, psnrs, seed=1), 1, ENVELOPE, "clip")


@pytest.mark.parametrize(("gap", "verdict"), [(-3, "confirmed"), (0, "not confirmed"), (3, "contradicted")])
def test_claim_is_judged_at_equal_similarity(gap, verdict):
    found = against((21, 23, 25), (31 + gap, 29 + gap, 27 + gap))
    assert found.verdict == verdict and found.overlap
    assert found.level == pytest.approx(22, abs=0.5)
    assert found.gain.mean == pytest.approx(found.ours - found.baseline) == pytest.approx(-gap, abs=0.5)
    assert found.gain.low < found.gain.mean < found.gain.high and found.gain.n == COUNT


def test_level_is_one_that_both_reach():
    above = against((23, 25), (28, 26))  # never as little as our chosen 22
    assert above.overlap and above.level == pytest.approx(above.their_range[0])
    assert above.ours == pytest.approx(29, abs=0.5)  # ours there, not at 22
    below = against((18, 20.5), (28, 26))
    assert below.overlap and below.level == pytest.approx(below.their_range[1])


def test_without_overlap_the_nearest_points_meet_and_who_falls_short_wins_nothing():
    similar, weak = against((30, 32), (26, 24)), against((10, 12), (26, 24))
    assert not similar.overlap and not weak.overlap
    assert similar.gain.low > 0 and similar.verdict == "not confirmed"  # ours keeps more, as it obeys less
    assert similar.ours == pytest.approx(28, abs=0.5) and similar.baseline == pytest.approx(26, abs=0.5)
    assert weak.gain.low > 0 and weak.verdict == "confirmed"  # ours is better in both
    assert against((30, 32), (40, 38)).verdict == "contradicted"
    assert against((10, 12), (40, 38)).verdict == "not confirmed"


def made_up_trial(name: str, points: dict[float, tuple[float, float, float, float]]) -> EditorResult:
    """A trial whose edits at each strength have these means of changed, kept, PSNR outside and CLIP."""
    spread = np.random.default_rng(0).normal(0, 0.1, 50)
    verdicts = {
        s: [EditScores("add_object", changed, kept, 0, 20, psnr + x, clip + x, 0) for x in spread]
        for s, (changed, kept, psnr, clip) in points.items()
    }
    return EditorResult(name, tuple(points), scores=verdicts)


def test_envelope_takes_the_best_of_all_curves_and_decides():
    ours = made_up_trial(OURS, {1.0: (0.8, 0.95, 28, 22), 1.3: (0.9, 0.9, 26, 23)})
    rivals = {
        RIVALS[0]: made_up_trial(RIVALS[0], {2.0: (0.7, 0.9, 27, 21), 1.0: (0.9, 0.8, 25, 23)}),
        RIVALS[1]: made_up_trial(RIVALS[1], {2.0: (0.7, 0.9, 29.1, 21), 1.0: (0.9, 0.8, 28.9, 23)}),
    }
    found = {(c.against, c.measure): c for c in judge_claim(ours, 1.0, rivals, rivals, ["add_object"])}
    assert next(iter(found)) == (ENVELOPE, "clip") and len(found) == 6
    for measure in ("clip", "changed"):
        assert found[ENVELOPE, measure].verdict == found[RIVALS[1], measure].verdict == "contradicted"
        assert found[ENVELOPE, measure].gain.mean == pytest.approx(-1, abs=0.1)
        assert found[RIVALS[0], measure].verdict == "confirmed"
        assert found[RIVALS[0], measure].baseline == pytest.approx(26, abs=0.1)
    # Where validation prefers the other one, that one is compared, however good this one is on the test edits.
    other = made_up_trial(RIVALS[1], {2.0: (0.7, 0.9, 20, 21), 1.0: (0.9, 0.8, 20, 23)})
    mistaken = judge_claim(ours, 1.0, rivals, {RIVALS[0]: rivals[RIVALS[0]], RIVALS[1]: other}, ["add_object"])
    assert mistaken[0].verdict == "confirmed" and mistaken[0].baseline == pytest.approx(26, abs=0.1)
    assert found[ENVELOPE, "clip"].level == pytest.approx(22, abs=0.1)
    assert found[ENVELOPE, "changed"].level == pytest.approx(0.8)


def test_best_pair_of_guidances_is_that_of_the_rule_over_all_pairs():
    trials = {
        "ceiling": made_up_trial("ceiling", {1.0: (1, 1, 20, 20)}),
        RIVALS[0]: made_up_trial(RIVALS[0], {2.0: (0.6, 0.97, 27, 21), 1.0: (0.8, 0.93, 25, 23)}),
        RIVALS[1]: made_up_trial(RIVALS[1], {2.0: (0.7, 0.95, 27, 21), 1.0: (0.9, 0.7, 25, 23)}),
    }
    strengths = choose_strengths(trials)
    assert [strengths[name] for name in RIVALS] == [1.0, 2.0]
    assert choose_rival(trials, strengths) == {"name": RIVALS[0], "text_guidance": 2, "image_guidance": 1}


# --- the command on the miniature -----------------------------------------------------------------------------------


def save_widened(backbone: Path, folder: Path) -> Path:
    """An InstructPix2Pix pipeline before training: the backbone's, whose first convolution takes the picture too."""
    parts = DiffusionPipeline.from_pretrained(backbone).components
    unet = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 8})
    weights = parts["unet"].state_dict()
    first = weights["conv_in.weight"]
    unet.load_state_dict({**weights, "conv_in.weight": torch.cat([first, torch.zeros_like(first)], dim=1)})
    shared = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    without_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionInstructPix2PixPipeline(**shared, unet=unet, **without_checker).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Exports of the miniature: an untrained InstructPix2Pix and an untrained TurboEdit encoder."""
    root = tmp_path_factory.mktemp("exports")
    tiny_pipeline(str(MINIATURE / "student")).save_pretrained(root / "encoder")
    return {"instruct": save_widened(MINIATURE / "teacher", root / "instruct"), "encoder": root / "encoder"}


@pytest.fixture(scope="module")
def options(folders) -> dict:
    return {
        **folders,
        "captioner": str(MINIATURE / "llava"),
        "text_guidances": (7.5, 2.0),
        "image_guidances": (1.0, 2.0),
        "strengths": (0.25, 1.0),
        "num_steps": 2,
        "num": 1,
        "num_validation": 1,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def evaluated(options, tmp_path_factory) -> Path:
    """The folder of one evaluation, by the command line."""
    out = tmp_path_factory.mktemp("report")
    words = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    main([f"--out={out}", *(f"--{name}={value}" for name, value in words.items())])
    return out


@pytest.fixture
def results(evaluated) -> dict:
    return json.loads((evaluated / "results.json").read_text())


def rows_of(folder: Path) -> dict[tuple[str, float], list[dict[str, str]]]:
    """The rows of edits.csv by editor and strength."""
    found: dict[tuple[str, float], list[dict[str, str]]] = {}
    with (folder / "edits.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault((row["editor"], float(row["strength"])), []).append(row)
    return found


def test_figures_are_those_of_the_edits(evaluated, results):
    rows = rows_of(evaluated)
    points = {(name, p["strength"]): p for name, sweep in results["sweeps"].items() for p in sweep}
    assert set(results["sweeps"]) == {OURS, *RIVALS}
    assert [p["strength"] for p in results["sweeps"][RIVALS[0]]] == [2, 1]  # from weak to strong
    assert set(rows) == {*points, *((name, 1.0) for name in ("identity", "truth", "ceiling"))}
    types = results["changed_types"]["types"]
    for key, point in points.items():
        counted = [float(row["changed"]) for row in rows[key] if row["kind"] in types]
        assert point["changed"]["mean"] == pytest.approx(np.mean(counted))
        for measure in ("kept", "clip", "psnr_outside"):
            values = [float(row[measure]) for row in rows[key] if row[measure]]
            assert point[measure]["mean"] == pytest.approx(np.mean(values), rel=1e-4)
            assert point[measure]["n"] == len(values) == len(EDIT_KINDS) - (measure == "psnr_outside")
    for name, found in results["edits"].items():
        assert found["n"] == len(EDIT_KINDS)
        outside = [float(row["psnr_outside"] or "nan") for row in rows[name, results["strengths"][name]]]
        assert found["psnr_outside"]["mean"] == pytest.approx(np.nanmean(outside), rel=1e-4)
    assert [results["edits"][name]["nfe_edit"]["mean"] for name in (OURS, *RIVALS)] == [4, 6, 6]
    assert results["edits"]["truth"]["changed"]["mean"] == 1


def test_claim_is_about_the_sweeps(results):
    claim = results["claim"]
    assert claim["verdict"] == claim["comparisons"][0]["verdict"]
    assert [found["against"] for found in claim["comparisons"][::2]] == [ENVELOPE, *RIVALS]
    for found in claim["comparisons"]:
        means = [point[found["measure"]]["mean"] for point in results["sweeps"][OURS]]
        assert found["our_range"] == pytest.approx([min(means), max(means)])
        assert found["gain"]["mean"] == pytest.approx(found["ours"] - found["baseline"])
    assert results["captions"]["target"]["right"]["mean"] > 0.7


def test_choice_sees_validation_only_and_finished_results_are_read(options, evaluated, results, monkeypatch, caplog):
    seen = []

    def choose(trials):
        seen.append(trials)
        return choose_strengths(trials)

    kept = {path: path.stat().st_mtime_ns for path in (evaluated / "kept").glob("[!.]*")}  # a lock is touched
    (lost,) = [path for path in kept if path.name.startswith(f"{RIVALS[0]}-") and is_test(path, ".json")]
    lost.unlink()  # as if killed in the midst
    monkeypatch.setattr("eval.scene_edits.protocol.choose_strengths", choose)
    with caplog.at_level("INFO"):
        again = evaluate_instructive(out=evaluated, **options)
    others = len(results["edits"]) - 1
    there = f"pieces are there already ({evaluated / 'kept'})"
    assert f"validation, others: {others} of {others} {there}" in caplog.messages
    assert f"test, others: {others - 1} of {others} {there}; going on with the rest" in caplog.messages
    assert len([path for path in kept if path.suffix == ".json"]) == 2 * (len(results["edits"]) + 1)  # and captions
    written = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert written == {lost, lost.with_suffix(".npz")}

    assert len(seen) == 1
    assert again["strengths"] == results["strengths"] == choose_strengths(seen[0])
    assert again["chosen"]["instruct_pix2pix"] == choose_rival(seen[0], again["strengths"])
    validation = sample_edit_set("validation", 1)
    truth = seen[0]["identity"].scores[1.0]
    assert [verdict.kind for verdict in truth] == list(validation.kinds)
    judged = {row["psnr_inside"] for rows in rows_of(evaluated).values() for row in rows}
    assert not judged & {f"{verdict.psnr_inside:.6g}" for verdict in truth}
    assert json.dumps(again["claim"]) == json.dumps(results["claim"])


def is_test(path: Path, suffix: str) -> bool:
    """Whether a kept result is one of the test edits: its PSNR stands in edits.csv."""
    if path.suffix != suffix:
        return False
    result = json.loads(path.read_text())
    table = rows_of(path.parents[1])[result["name"], result["strengths"][0]]
    return f"{result['scores'][str(result['strengths'][0])][0]['psnr_inside']:.6g}" == table[0]["psnr_inside"]


def test_page_shows_both_methods_and_every_guidance(evaluated, results, browser: Browser):
    for size in ({"width": 1280, "height": 900}, PHONE):
        tab = browser.open(evaluated / "index.html", size)
        assert not tab.problems and not tab.requests
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    text = tab.page.inner_text("body")
    assert results["claim"]["verdict"] in text and "InstructPix2Pix, s_T 7.5" in text
    assert tab.page.locator(".chart svg:visible").count() == 2
    assert tab.page.locator(".chart svg:visible polyline").count() == 2 * 3
    assert tab.page.locator(".gallery img").count() == 4 * len(EDIT_KINDS) + 2 + 4
    hover = tab.page.locator(".chart circle title").first.text_content()
    assert "strength 0.25" in hover and "CLIP" in hover


def test_names_of_rivals_say_their_guidance():
    assert title_of(RIVALS[1]) == "InstructPix2Pix, s_T 7.5"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"instruct": Path("nowhere")}, "--instruct nowhere: there is no such folder of an InstructPix2Pix pipeline"),
        ({"instruct": MINIATURE / "clip"}, r"has no model_index\.json"),
        ({"instruct": MINIATURE / "teacher"}, "holds a StableDiffusionPipeline, expected the StableDiffusionInstruct"),
        ({"encoder": Path("nowhere")}, r"--encoder nowhere: there is no such folder made by train\.export"),
        ({"encoder": MINIATURE / "clip"}, r"has no model_index\.json; make one with train\.export"),
        ({"text_guidances": ()}, "text_guidances are .*expected at least one"),
        ({"image_guidances": ()}, "image_guidances .*expected at least one"),
        ({"text_guidances": (3.0, 1.0)}, "text_guidances has 1;"),
        ({"image_guidances": (2.0, 0.5)}, r"image_guidances has 0\.5;"),
        ({"strengths": (0.0, 1.0)}, r"strengths are \[0\.0, 1\.0\]; expected at least one, all above 0"),
        ({"num": 0, "num_steps": 0}, "num is 0, num_steps is 0; expected at least 1"),
        ({"attributes": Path("nowhere")}, "--attributes"),
        ({"instruct_variant": "fp8"}, "instruct cannot be loaded in the file variant 'fp8'"),
    ],
)
def test_what_cannot_be_is_refused(options, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate_instructive(out=tmp_path, **{**options, **wrong})


def test_pipelines_of_other_sizes_and_vaes_are_refused(options, tiny_sd_backbone, tmp_path):
    other = save_widened(Path(tiny_sd_backbone), tmp_path / "other")
    with pytest.raises(ValueError, match=r"has another VAE than the encoder's generator.* --instruct and --encoder"):
        evaluate_instructive(out=tmp_path, **{**options, "instruct": other})
    large = tmp_path / "large"
    shutil.copytree(options["instruct"], large)
    config = json.loads((large / "unet" / "config.json").read_text())
    (large / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 2 * config["sample_size"]}))
    with pytest.raises(ValueError, match=r"makes 128 px images; scenes have 64 px: .* --instruct"):
        evaluate_instructive(out=tmp_path, **{**options, "instruct": large})


@pytest.fixture
def transformer(tiny_flux, tmp_path) -> Path:
    """An export of an untrained encoder for a transformer."""
    tiny_flow_pipeline(tiny_flux, "1.0 0.5").save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_of_a_transformer_with_its_own_vae_is_refused(options, transformer, tmp_path):
    arguments = [f"--{name}={options[name]}" for name in ("instruct", "captioner")]
    with pytest.raises(SystemExit, match=r"eval.instructive: .* has another VAE than the encoder's generator"):
        main([*arguments, f"--encoder={transformer}", f"--out={tmp_path / 'out'}"])


@pytest.mark.long
def test_an_encoder_of_a_transformer_with_the_same_vae_is_compared(options, transformer, tmp_path):
    AutoencoderKL.from_pretrained(MINIATURE / "teacher", subfolder="vae").save_pretrained(transformer / "vae")
    few = {"text_guidances": (2.0,), "image_guidances": (1.0,), "strengths": (1.0,), "num_steps": 1}
    found = evaluate_instructive(out=tmp_path / "out", **{**options, **few, "encoder": transformer})
    assert found["edits"][OURS]["nfe_edit"]["mean"] == 2 and found["claim"]["comparisons"]


def test_a_captioner_that_is_not_there_ends_the_command_with_a_message(options, tmp_path):
    words = {**options, "captioner": "models/nowhere", "out": tmp_path}
    arguments = [f"--{name}={words[name]}" for name in ("instruct", "encoder", "captioner", "out")]
    with pytest.raises(SystemExit, match=r"eval.instructive: cannot load 'models/nowhere'"):
        main([*arguments, "--text_guidances=[2]", "--image_guidances=[2]", "--num=1"])


def test_command_line_ends_with_one_line(tmp_path):
    arguments = [f"--{name}={tmp_path}" for name in ("instruct", "encoder", "captioner", "out")]
    with pytest.raises(SystemExit, match=r"eval.instructive: text_guidances has 0\.5;"):
        main([*arguments, "--text_guidances=[0.5]"])
