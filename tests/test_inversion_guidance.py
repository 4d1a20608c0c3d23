"""The ablation of the inversion's guidance on a tiny backbone: its figures, its files, and what it refuses."""

import csv
import json

import pytest
import torch

from data.scenes import write_scenes
from data.world.captions import long_caption
from data.world.render import render
from data.world.splits import sample_scene
from eval.editors.few_steps import decode_latents
from eval.inversion_guidance import evaluate_inversion_guidance
from eval.metrics.pixels import psnr
from eval.studies.inversion_guidance import GAUSSIAN, guidance_table, log_likelihood
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, guided_noise, matching

WEIGHTS = (1.0, 4.0)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("inversion_guidance")


@pytest.fixture(scope="module")
def results(tiny_sd_backbone, out):
    return evaluate_inversion_guidance(
        tiny_sd_backbone, out, guidances=WEIGHTS, num=3, num_steps=4, batch=2, device="cpu"
    )


def test_log_likelihood_is_that_of_the_normal_distribution():
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0, 1).log_prob(noise).mean((1, 2, 3))
    torch.testing.assert_close(log_likelihood(noise), expected)
    many = torch.randn(1, 1_000_000, generator=torch.Generator().manual_seed(0))
    assert log_likelihood(many).item() == pytest.approx(GAUSSIAN, abs=3e-3)


def test_figures_are_those_of_an_image_by_itself(out, results, tiny_sd_backbone):
    backbone = Backbone.load(tiny_sd_backbone)
    scene = sample_scene("test", 0, 2)
    image = torch.from_numpy(render(scene)).permute(2, 0, 1)[None] / 127.5 - 1
    ddim, x0 = Ddim(backbone.schedule, 4), backbone.encode_image(image)
    prompt = backbone.encode_text([long_caption(scene)])
    null = matching(backbone.encode_text([""]), prompt)
    rows = list(csv.DictReader((out / "images.csv").open()))
    assert [(row["key"], float(row["guidance"])) for row in rows if row["key"] == "000002"] == [
        ("000002", weight) for weight in WEIGHTS
    ]
    for row in rows:
        if row["key"] != "000002":
            continue
        w = float(row["guidance"])
        with torch.no_grad():
            noise = ddim_pivots(backbone, ddim, x0, prompt, null, w)[0]
            x = noise
            for step, t in enumerate(ddim.timesteps):
                x = ddim.move(x, guided_noise(backbone, x, t, prompt, null, w), step, step + 1)
            expected = psnr(decode_latents(backbone, x), decode_latents(backbone, x0)).item()
        assert float(row["log_likelihood"]) == pytest.approx(log_likelihood(noise).item(), rel=1e-3)
        assert float(row["psnr_to_vae"]) == pytest.approx(expected, rel=1e-3)


def test_results_have_means_errors_and_a_page(out, results):
    rows = list(csv.DictReader((out / "images.csv").open()))
    assert len(rows) == 3 * len(WEIGHTS)
    for entry, weight in zip(results["guidances"], WEIGHTS, strict=True):
        values = [float(row["log_likelihood"]) for row in rows if float(row["guidance"]) == weight]
        assert entry["guidance"] == weight and entry["log_likelihood"]["n"] == 3
        assert entry["log_likelihood"]["mean"] == pytest.approx(sum(values) / 3, rel=1e-4)
        assert entry["psnr_to_vae"]["se"] > 0
    assert json.loads((out / "results.json").read_text()) == results
    page = (out / "index.html").read_text()
    assert page.count('<figure class="chart">') == 2 and "://" not in page
    assert "± " in guidance_table(results) and results["gaussian_log_likelihood"] == pytest.approx(-1.4189385)


def test_a_folder_of_images_can_be_measured(tiny_backbone, tmp_path):
    write_scenes(tmp_path / "scenes", num=2, split="test", captions="long")
    found = evaluate_inversion_guidance(
        tiny_backbone, tmp_path / "out", tmp_path / "scenes", guidances=(2.0,), num=5, num_steps=2, device="cpu"
    )
    assert found["guidances"][0]["psnr_to_vae"]["n"] == 2 and found["about"]["data"] == str(tmp_path / "scenes")


def test_wrong_options_are_refused(tiny_sd_backbone, tmp_path):
    for wrong in ({"num": 0}, {"batch": 0}, {"guidances": ()}):
        with pytest.raises(ValueError, match="expected at least 1"):
            evaluate_inversion_guidance(tiny_sd_backbone, tmp_path, **wrong)
    with pytest.raises(ValueError, match="steps_offset is 3"):
        evaluate_inversion_guidance(tiny_sd_backbone, tmp_path, steps_offset=3, device="cpu")
