"""Reconstruction of captioned images: from folders and from shards, with a table for each image and number of steps."""

import csv
import json

import pytest
import torch
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.scenes import write_scenes
from eval.editors.catalogue import Command, available
from eval.editors.editor import counted_evaluations
from eval.editors.models import FewStepModel
from eval.editors.options import NullTextSchedule
from eval.harness.captioned import captioned_images, each_captioned_image, stacked
from eval.harness.exports import checked_steps, load_encoder, with_steps
from eval.metrics.distribution import Distances, load_features
from eval.metrics.pixels import psnr
from eval.reconstruction import evaluate_reconstruction
from eval.reconstructions.fidelity import by_step, pixel_mse
from eval.reconstructions.page import published
from tests.tiny_editing import save_tiny_judges, save_tiny_style_export, tiny_pipeline

EDITORS = ("turboedit", "ddim", "ddpm_residual")
ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def pipeline(tiny_backbone):
    return tiny_pipeline(tiny_backbone)


@pytest.fixture(scope="module")
def places(pipeline, tmp_path_factory):
    """A folder with an export, a folder of scenes and shards of them, a CLIP and weights of AlexNet."""
    folder = tmp_path_factory.mktemp("reconstruction")
    pipeline.save_pretrained(folder / "export")
    write_scenes(folder / "scenes", num=5, split="test")
    caption_folder(folder / "scenes", folder / "shards", CaptionConfig(resolution=64))
    save_tiny_judges(folder, pipeline.tokenizer)
    draw = torch.Generator().manual_seed(3)
    weights = {}
    for layer, (out, channels, side) in ALEXNET.items():
        weights[f"features.{layer}.weight"] = 0.1 * torch.randn(out, channels, side, side, generator=draw)
        weights[f"features.{layer}.bias"] = torch.zeros(out)
    torch.save(weights, folder / "alexnet.pth")
    return folder


def settings(places, out, **change):
    options = {"batch": 3, "device": "cpu", "editors": EDITORS, "lpips": places / "alexnet.pth"}
    options |= {"features": str(places / "clip")}
    return {"encoder": places / "export", "data": places / "scenes", "out": places / out, **options, **change}


@pytest.fixture(scope="module")
def results(places):
    return evaluate_reconstruction(**settings(places, "report"))


@pytest.fixture(scope="module")
def rows(places, results):
    with (places / "report" / "reconstructions.csv").open() as file:
        return list(csv.DictReader(file))


def test_results_by_step(places, results):
    assert json.loads((places / "report" / "results.json").read_text())["reconstruction"].keys() == {"vae", *EDITORS}
    vae = results["reconstruction"]["vae"]
    assert vae["psnr"]["n"] == vae["ssim"]["n"] == vae["mse"]["n"] == 5
    ours = results["reconstruction"]["turboedit"]
    for measure in ("psnr", "psnr_to_vae", "ssim", "lpips", "latent_mse"):
        assert [entry["n"] for entry in ours[f"{measure}_by_step"]] == [5] * 4
    exact = results["reconstruction"]["ddpm_residual"]
    assert exact["latent_mse_by_step"][-1]["mean"] < 1e-9
    assert exact["psnr_by_step"][-1]["mean"] == pytest.approx(vae["psnr"]["mean"], abs=0.01)
    assert set(results["noise"]["turboedit"]) == {"999", "749", "499", "249"}


def test_every_number_of_steps_is_an_inversion_of_its_own(pipeline, places, results, rows):
    table = {(row["editor"], row["steps"]): row for row in results["table"]}
    assert list(table) == [("vae", None), *((editor, steps) for editor in EDITORS for steps in (1, 2, 4))]
    assert [table["turboedit", steps]["nfe"] for steps in (1, 2, 4)] == [2, 4, 8]
    assert [table["ddim", steps]["nfe"] for steps in (1, 2, 4)] == [2, 4, 8]
    samples = captioned_images(places / "scenes", 64)
    images, captions = stacked(samples), [sample.caption for sample in samples]
    for steps in (1, 2, 4):
        inversion = pipeline.invert(images, captions, num_steps=steps)
        made = pipeline.backbone.decode(inversion.reconstructions[-1]).clamp(-1, 1)
        found = table["turboedit", steps]
        assert found["psnr"]["mean"] == pytest.approx(psnr(made, images).mean().item(), abs=1e-3)
        assert found["mse"]["mean"] == pytest.approx(((made - images) / 2).square().mean().item(), rel=1e-4)
    # Two steps are 999 and 499: not what four steps have after their second, 749.
    halfway = by_step([row for row in rows if row["steps"] == "4"], "turboedit", "psnr")[1]
    assert sum(halfway) / 5 != pytest.approx(table["turboedit", 2]["psnr"]["mean"], abs=1e-3)


def test_table_has_a_row_for_each_image_editor_steps_and_step(places, results, rows):
    assert len(rows) == 5 * (1 + len(EDITORS) * (1 + 1 + 4))
    longest = [row for row in rows if row["editor"] == "turboedit" and row["steps"] == "4"]
    found = by_step(longest, "turboedit", "psnr")
    for values, entry in zip(found, results["reconstruction"]["turboedit"]["psnr_by_step"], strict=True):
        assert sum(values) / 5 == pytest.approx(entry["mean"], rel=1e-4)


def test_pixel_mse_fits_psnr():
    a, b = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(pixel_mse(a, b), 10 ** (-psnr(a, b) / 10))


def test_distances_are_those_of_all_pictures_together(places, results):
    """FID and KID of batches of 3 and 2 against all five at once."""
    samples = captioned_images(places / "scenes", 64)
    pipeline = load_encoder(places / "export")
    editor = available(Command.RECONSTRUCTION, FewStepModel(with_steps(pipeline, 2))).choose(["ddim"])[0]
    made = []
    for part in (samples[:3], samples[3:]):
        inversion = editor.invert(stacked(part), [sample.caption for sample in part])
        made.append(pipeline.backbone.decode(editor.reconstruct(inversion)[-1]))
    features, _ = load_features(str(places / "clip"))
    distances = Distances(features)
    for images, real in ((stacked(samples), True), (torch.cat(made).clamp(-1, 1), False)):
        distances.update(((images + 1) * 127.5).round().to(torch.uint8), real)
    expected = distances.compute()
    (found,) = [row for row in results["table"] if (row["editor"], row["steps"]) == ("ddim", 2)]
    assert found["fid"] == pytest.approx(expected.fid, rel=1e-3)
    assert found["kid"] == pytest.approx(expected.kid, rel=1e-3, abs=1e-6)
    assert "covariance is singular" in found["remark"]
    assert all("fid" in row for row in results["table"])


def test_page_has_published_rows_and_remarks(places, results):
    page = (places / "report" / "index.html").read_text()
    assert [(row.steps, row.values["psnr"]) for row in published()] == [
        (1, 13.8),
        (2, 14.8),
        (4, 16.2),
        (1, 17.5),
        (2, 21.7),
        (4, 23.7),
    ]
    for words in ("table 2", "5.87", "18.7", "4.33", "covariance is singular", "TurboEdit, 2 steps"):
        assert words in page
    assert "://" not in page.replace("http://www.w3.org", "")


def test_same_command_goes_on_where_it_was(places, results):
    """Finished batches are read; the last one, whose file is gone, is made again. Figures are the same to the digit."""
    batches = sorted((places / "report" / "batches").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(batches) == 2
    kept = json.loads((places / "report" / "results.json").read_text())
    times = batches[0].stat().st_mtime_ns
    batches[1].unlink()
    evaluate_reconstruction(**settings(places, "report"))
    assert json.loads((places / "report" / "results.json").read_text()) == kept
    assert batches[1].is_file() and batches[0].stat().st_mtime_ns == times
    evaluate_reconstruction(**settings(places, "report", editors=("ddim",), features=None))
    assert len(list((places / "report" / "batches").iterdir())) == 4, "other settings are other batches"


def test_what_cannot_be_had_is_left_out_with_a_reason(places, monkeypatch):
    monkeypatch.setattr("eval.metrics.lpips.is_offline_mode", lambda: True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(places / "nowhere"))
    found = evaluate_reconstruction(
        **settings(places, "bare", editors=("ddim",), steps=(2,), lpips=None, features=None, num=2)
    )
    assert [row["editor"] for row in found["table"]] == ["vae", "ddim"]
    assert all("lpips" not in row and "fid" not in row for row in found["table"])
    assert "left out" in found["about"]["lpips"] and "--features" in found["about"]["features"]
    assert "left out" in (places / "bare" / "index.html").read_text()


def test_a_pipeline_of_fewer_steps_shares_weights_and_counts(pipeline):
    shorter = with_steps(pipeline, 2)
    assert shorter.timesteps == (999, 499) and shorter.unet is pipeline.unet
    image = torch.zeros(1, 3, 64, 64)
    for _, editor in available(Command.RECONSTRUCTION, FewStepModel(shorter)).editors:
        with counted_evaluations(editor.networks) as sizes:
            inversion = editor.invert(image, ["a"])
            assert len(editor.reconstruct(inversion)) == 2
        assert sum(sizes) <= 4


def test_steps_that_the_encoder_does_not_have_are_refused(pipeline, places):
    assert checked_steps(pipeline, None) == (1, 2, 4)
    assert checked_steps(pipeline, (4, 1, 4)) == (1, 4)
    with pytest.raises(ValueError, match=r"num_steps is 3; .*1, 2, 4 steps"):
        evaluate_reconstruction(**settings(places, "wrong", steps=(2, 3)))
    with pytest.raises(ValueError, match="steps is empty"):
        checked_steps(pipeline, ())


def test_shards_give_the_images_of_their_folder(places):
    from_folder = captioned_images(places / "scenes", 64)
    from_shards = captioned_images(places / "shards", 64)
    assert sorted(s.caption for s in from_folder) == sorted(s.caption for s in from_shards)
    by_caption = {sample.caption: sample.image for sample in from_shards}
    for sample in from_folder:
        torch.testing.assert_close(by_caption[sample.caption], sample.image)


def test_pictures_keep_their_shapes_in_buckets(places, tmp_path):
    write_scenes(tmp_path / "scenes", num=6, split="test", canvases="all")
    options = CaptionConfig(resolution=64, shapes="buckets", min_size=48)
    caption_folder(tmp_path / "scenes", tmp_path / "shards", options)
    sizes = {Image.open(path).size for path in (tmp_path / "scenes").rglob("*.png")}
    assert len(sizes) > 1
    found = {}
    for name in ("scenes", "shards"):
        chosen = {"data": tmp_path / name, "editors": ("turboedit",), "shapes": "buckets", "batch": 2, "features": None}
        found[name] = evaluate_reconstruction(**settings(places, tmp_path / name / "report", **chosen))
    figures = [results["reconstruction"]["turboedit"]["psnr_by_step"] for results in found.values()]
    assert [step["n"] for step in figures[0]] == [6] * 4
    for one, other in zip(*figures, strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-4)
    shown = {tuple(sample.image.shape[:0:-1]) for sample in each_captioned_image(tmp_path / "shards", 64)}
    assert shown == sizes
    with pytest.raises(ValueError, match=r"pixels, expected squares: make its shards with --shapes square"):
        captioned_images(tmp_path / "shards", 64)


def test_limit_takes_the_first(places):
    everything = captioned_images(places / "scenes", 64)
    assert [s.key for s in captioned_images(places / "scenes", 64, 2)] == [s.key for s in everything[:2]]


def test_images_are_read_as_they_are_asked_for(places):
    """A table over ten thousand images does not hold them in memory."""
    images = each_captioned_image(places / "scenes", 64)
    (places / "scenes" / "00000" / "000004.png").rename(places / "later.png")
    try:
        assert len([next(images) for _ in range(4)]) == 4
    finally:
        (places / "later.png").rename(places / "scenes" / "00000" / "000004.png")
    assert len(list(images)) == 1


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


def test_unknown_editor_is_named(places):
    with pytest.raises(ValueError, match="renoise"):
        evaluate_reconstruction(**settings(places, "unknown", editors=("renoise",)))


def test_a_stylediffusion_export_and_many_step_editors(tiny_sd_backbone, places, tmp_path):
    """StyleDiffusion's table 3: its network beside null-text inversion and the others, in many guided steps."""
    export = save_tiny_style_export(tiny_sd_backbone, str(places / "clip"), tmp_path / "export", num_steps=2)
    options = settings(places, "many", encoder=str(export), editors=None)
    null_text = NullTextSchedule(iterations=1)
    found = evaluate_reconstruction(**options, num=2, null_text=null_text)
    table = {row["editor"]: row for row in found["table"]}
    assert list(table) == [
        *("vae", "stylediffusion_amortised", "stylediffusion_refined"),
        *("ddim", "null_text", "npi", "direct", "ddpm"),
    ]
    assert (found["about"]["num_steps"], found["about"]["guidance"]) == (2, 3.0)
    assert all(row["n"] == 2 and row["steps"] in (None, 2) for row in table.values())
    assert table["direct"]["psnr_to_vae"]["mean"] > table["ddim"]["psnr_to_vae"]["mean"]
    assert table["null_text"]["seconds_invert"]["mean"] > 0
    page = (places / "many" / "index.html").read_text()
    assert "table 3" in page and "280 ms" in page
    with pytest.raises(ValueError, match="which brings its generator"):
        evaluate_reconstruction(**settings(places, "both", backbone=tiny_sd_backbone, editors=None))
    with pytest.raises(ValueError, match="nothing to reconstruct with"):
        evaluate_reconstruction(**settings(places, "none", encoder=None))
