"""Reconstruction of captioned images: from folders and from shards, with a table for each image."""

import csv
import json

import pytest
import torch
from PIL import Image

from data.caption import CaptionConfig, caption_folder
from data.scenes import write_scenes
from eval.captioned import captioned_images
from eval.fidelity import by_step
from eval.reconstruction import evaluate_reconstruction
from tests.tiny_editing import tiny_pipeline


@pytest.fixture(scope="module")
def places(tiny_backbone, tmp_path_factory):
    """A folder with an export, a folder of scenes and shards of them."""
    folder = tmp_path_factory.mktemp("reconstruction")
    tiny_pipeline(tiny_backbone).save_pretrained(folder / "export")
    write_scenes(folder / "scenes", num=5, split="test")
    caption_folder(folder / "scenes", folder / "shards", CaptionConfig(resolution=64))
    return folder


@pytest.fixture(scope="module")
def results(places):
    return evaluate_reconstruction(
        places / "export",
        places / "scenes",
        places / "report",
        batch=3,
        device="cpu",
        editors=("turboedit", "ddpm_residual"),
    )


def test_results_by_step(places, results):
    assert json.loads((places / "report" / "results.json").read_text())["reconstruction"].keys() == {
        "vae",
        "turboedit",
        "ddpm_residual",
    }
    vae = results["reconstruction"]["vae"]
    assert vae["psnr"]["n"] == vae["ssim"]["n"] == 5
    ours = results["reconstruction"]["turboedit"]
    for measure in ("psnr", "psnr_to_vae", "ssim", "latent_mse"):
        assert [entry["n"] for entry in ours[f"{measure}_by_step"]] == [5] * 4
    exact = results["reconstruction"]["ddpm_residual"]
    assert exact["latent_mse_by_step"][-1]["mean"] < 1e-9
    assert exact["psnr_by_step"][-1]["mean"] == pytest.approx(vae["psnr"]["mean"], abs=0.01)
    assert set(results["noise"]["turboedit"]) == {"999", "749", "499", "249"}


def test_table_has_a_row_for_each_image_editor_and_step(places, results):
    with (places / "report" / "reconstructions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * (1 + 4 + 4)
    found = by_step([row for row in rows if row["editor"] == "turboedit"], "turboedit", "psnr")
    for values, entry in zip(found, results["reconstruction"]["turboedit"]["psnr_by_step"], strict=True):
        assert sum(values) / 5 == pytest.approx(entry["mean"], rel=1e-4)
    assert (places / "report" / "index.html").is_file()


def test_shards_give_the_images_of_their_folder(places):
    from_folder = captioned_images(places / "scenes", 64)
    from_shards = captioned_images(places / "shards", 64)
    assert sorted(s.caption for s in from_folder) == sorted(s.caption for s in from_shards)
    by_caption = {sample.caption: sample.image for sample in from_shards}
    for sample in from_folder:
        torch.testing.assert_close(by_caption[sample.caption], sample.image)


def test_limit_takes_the_first(places):
    everything = captioned_images(places / "scenes", 64)
    assert [s.key for s in captioned_images(places / "scenes", 64, 2)] == [s.key for s in everything[:2]]


def test_pictures_without_caption_or_damaged_are_left_out_with_a_warning(tmp_path, caplog):
    for name in ("good", "silent"):
        Image.new("RGB", (80, 64), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("good", "broken"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    found = captioned_images(tmp_path, 64)
    assert [(sample.key, sample.caption, tuple(sample.image.shape)) for sample in found] == [
        ("good.png", "a caption", (3, 64, 64))
    ]
    assert "broken.png" in caplog.text
    assert "silent.png is left out: no caption" in caplog.text


def test_nothing_to_measure_is_an_error(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "silent.png")
    with pytest.raises(ValueError, match="no readable image with a caption"):
        captioned_images(tmp_path, 64)


def test_shards_of_another_resolution_are_refused(places):
    with pytest.raises(ValueError, match="64 px"):
        captioned_images(places / "shards", 128)


def test_unknown_editor_is_named(places, tmp_path):
    with pytest.raises(ValueError, match="renoise"):
        evaluate_reconstruction(places / "export", places / "scenes", tmp_path, editors=("renoise",), device="cpu")
