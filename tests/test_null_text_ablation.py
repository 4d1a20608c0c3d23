"""The ablation of null-text inversion as a command: results, table and page."""

import csv
import json

import pytest

from eval.null_text_ablation import VARIANT_NAMES, ablate_null_text
from eval.studies.null_text import VARIANTS

SETTINGS = dict(num=3, iterations=(0, 1), num_steps=3, batch=2, device="cpu")


@pytest.fixture(scope="module")
def place(tiny_sd_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    ablate_null_text(folder, backbone=tiny_sd_backbone, **SETTINGS)
    return folder


def test_every_variant_has_points_with_n_and_standard_errors(place):
    results = json.loads((place / "results.json").read_text())
    assert tuple(results["variants"]) == tuple(VARIANTS) == VARIANT_NAMES
    for points in results["variants"].values():
        assert [(p["iterations"], p["updates"]) for p in points] == [(0, 0), (1, 3)]
        for point in points:
            for measure in ("psnr", "psnr_to_vae", "latent_mse"):
                assert point[measure]["n"] == 3 and point[measure]["se"] is not None
    assert results["vae"]["psnr"]["n"] == 3
    assert results["about"]["guidance"] == 3.0


def test_without_iterations_only_start_and_caption_matter(place):
    variants = json.loads((place / "results.json").read_text())["variants"]
    first = {name: points[0]["psnr"]["mean"] for name, points in variants.items()}
    ddim = first.pop("null_text")
    for name, found in first.items():
        differs = name in ("null_text_random_caption", "null_text_random_pivot")
        assert (abs(found - ddim) > 1e-3) == differs, name


def test_table_and_page(place):
    with (place / "reconstructions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(VARIANTS) * 2 * 3
    page = (place / "index.html").read_text()
    assert "<svg" in page and "null-text, global" in page and page.count("<table") == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num": 0}, "num is 0"),
        ({"iterations": (-1,)}, "iterations are"),
        ({"variants": ("null_txt",)}, "null_txt are unknown; expected some of null_text"),
    ],
)
def test_wrong_options_are_named(tiny_sd_backbone, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        ablate_null_text(tmp_path, backbone=tiny_sd_backbone, **{**SETTINGS, **change})


@pytest.mark.long
def test_every_variant_optimises_in_float16(tiny_sd_backbone, tmp_path):
    ablate_null_text(tmp_path, backbone=tiny_sd_backbone, dtype="float16", **SETTINGS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["about"]["dtype"] == "float16"
    for points in results["variants"].values():
        assert all(point["psnr"]["mean"] > 0 for point in points)
