"""Benches on pictures whose truth nobody knows: PIE-Bench's cases and captioned photographs; what is left out."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

from data.scene_pie_bench import write_pie_bench
from eval.ablation import ablate
from eval.case_edits.cases import case_edits, read_cases
from eval.case_edits.subjects import most_missing
from eval.many_step import compare_many_step
from eval.metrics.config import MetricConfig
from eval.null_text_ablation import ablate_null_text
from eval.style_transfer import compare_style_transfer
from models.options import FitSchedule
from tests.slow_metrics import save_random_networks
from tests.tiny_editing import FLOW_TIMESTEPS, save_tiny_judges, tiny_flow_pipeline, tiny_pipeline

SIDE = 64
TYPES = ("1", "8")
"""Types of the cases that are taken: an object, whose mask is a part, and the background."""


@pytest.fixture(scope="module")
def places(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export and the networks that measure."""
    folder = tmp_path_factory.mktemp("cases")
    pipeline = tiny_pipeline(tiny_backbone)
    pipeline.save_pretrained(folder / "export")
    return folder


@pytest.fixture(scope="module")
def metrics(places: Path) -> MetricConfig:
    networks = save_random_networks(places / "networks")
    return MetricConfig(networks.lpips, str(networks.clip), str(networks.clip))


@pytest.fixture(scope="module")
def pie(places: Path) -> Path:
    """Two cases without true edits, and one whose picture is no square."""
    folder = places / "pie"
    write_pie_bench(folder, num=1)
    mapping = json.loads((folder / "mapping_file.json").read_text())
    kept = {key: entry for key, entry in mapping.items() if entry["editing_type_id"] in (*TYPES, "9")}
    for entry in kept.values():
        del entry["true_edit_path"]
        if entry["editing_type_id"] == "9":
            Image.new("RGB", (80, 64)).save(folder / "annotation_images" / entry["image_path"])
            entry["mask"] = []
    (folder / "mapping_file.json").write_text(json.dumps(kept))
    return folder


@pytest.fixture(scope="module")
def photographs(places: Path) -> Path:
    """Photographs that ship with scikit-image: one with target and mask, one with nothing, one without a caption."""
    folder = places / "photographs"
    folder.mkdir()
    for name in ("chelsea.png", "coffee.png", "astronaut.png"):
        with resources.files("skimage").joinpath("data", name).open("rb") as file, Image.open(file) as picture:
            small = picture.convert("RGB").resize((96, 64))
            small.save(folder / name)
    Image.fromarray(np.pad(np.full((32, 48), 255, np.uint8), ((16, 16), (24, 24)))).save(folder / "cat_mask.gif")
    rows: list[Mapping[str, Any]] = [
        {
            "file_name": "chelsea.png",
            "text": "a cat on a sofa",
            "target": ["a dog on a sofa", "a fox"],
            "kind": "animal",
        },
        {"file_name": "coffee.png", "text": "a cup of coffee"},
    ]
    rows[0] = {**rows[0], "mask": "cat_mask.gif"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(results: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {found["setting"]: found for found in results["parts"][part]["settings"]}


def test_ablation_of_pie_benchs_cases(places: Path, pie: Path, metrics: MetricConfig, tmp_path: Path):
    options = {"parts": ("steps", "prompts", "mask", "composed", "instructions"), "num": 1, "steps": (1,)}
    results = ablate(str(places / "export"), tmp_path, pie, metrics=metrics, batch=4, device="cpu", **options)
    assert list(results["parts"]) == ["steps", "prompts", "mask", "composed"]
    assert "captioner" in results["left_out"]["instructions"]
    assert results["about"]["cases"] == 2 and any("80x64" in reason for reason in results["about"]["left_out"].values())
    found = settings(results, "steps")["TurboEdit, 1 step"]
    assert found["psnr_outside"]["n"] == found["lpips_outside"]["n"] == 2 == found["direction"]["n"]
    assert not {"changed", "kept", "psnr_inside"} & set(found), "what needs a truth is not measured"
    assert {"short, none frozen", "detailed, 4 frozen"} <= set(settings(results, "prompts"))
    assert 0 <= settings(results, "mask")["prediction 0.4"]["covered"]["mean"] <= 1
    assert settings(results, "mask")["given mask"]["psnr_outside"]["mean"] > 0
    claims = {claim["id"]: claim for claim in results["claims"]}
    assert (
        claims["single_step_edits"]["outcome"] == "not testable here"
        and "changed" in claims["single_step_edits"]["reason"]
    )
    assert [test["n"] for test in claims["detailed_prompts"]["tests"]] == [2, 2]
    page = (tmp_path / "index.html").read_text()
    assert "What is not here" in page and "no true edits are given" in page
    assert "A classifier" not in page.partition("How it was measured")[2] and "LPIPS outside" in page
    assert "000" in (tmp_path / "edits.csv").read_text()


def test_ablation_of_photographs_on_a_transformer(
    tiny_sd3: str, places: Path, photographs: Path, metrics: MetricConfig, tmp_path: Path
):
    tiny_flow_pipeline(tiny_sd3, FLOW_TIMESTEPS["sd3"]).save_pretrained(tmp_path / "export")
    options = {"num": 2, "parts": ("prompts", "strength", "mask"), "metrics": metrics, "device": "cpu"}
    results = ablate(str(tmp_path / "export"), tmp_path / "out", photographs, target=("a cup of tea",), **options)
    assert results["about"]["left_out"].keys() == {"astronaut.png"}
    assert list(settings(results, "prompts")) == ["given, none frozen"]
    assert {"prediction 0.4", "given mask"} <= set(settings(results, "mask"))
    assert not any("attention" in name or "union" in name for name in settings(results, "mask"))
    found = settings(results, "strength")["strength 1"]
    assert found["psnr_whole"]["n"] == 3 and found["psnr_outside"]["n"] == 2, "one photograph has no mask"
    said = " ".join(sentence for part in results["parts"].values() for sentence in part["left_out"])
    assert "UNet's attention" in said and "do not have both" in said


def test_cases_of_a_folder(pie: Path, photographs: Path, tmp_path: Path):
    found = read_cases(photographs, SIDE, 1, targets=("a cup of tea",))
    assert [(case.key, case.target) for case in found.cases] == [
        ("chelsea.png#1", "a dog on a sofa"),
        ("coffee.png", "a cup of tea"),
    ], "the kinds take turns, a row's own target goes before the command's"
    edits = case_edits(found.cases, "cpu")
    assert edits.bounded.tolist() == [True, False] and not edits.has_truths
    assert edits.masks[0, 0].float().mean() == pytest.approx(0.5 * 0.75, abs=0.02), "the mask is cropped as the picture"
    assert found.left_out.keys() == {"astronaut.png"} and most_missing(found.cases, found.left_out) is None
    assert most_missing(found.cases, dict.fromkeys("abc", "")) == "3 of 5 cases"
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "plain.png")
    (tmp_path / "plain.txt").write_text("nothing")
    with pytest.raises(ValueError, match="no target and no instruction: give --target"):
        read_cases(tmp_path, SIDE, 1)
    with pytest.raises(ValueError, match=r"for photographs; .* is a PIE-Bench folder"):
        read_cases(pie, SIDE, 1, targets=("a dog",))


def test_many_step_editors_on_pie_benchs_cases(tiny_sd_backbone: str, pie: Path, metrics: MetricConfig, tmp_path: Path):
    options = {"num": 1, "num_steps": 2, "num_reconstructions": 2, "clip": None, "metrics": metrics, "device": "cpu"}
    results = compare_many_step(tiny_sd_backbone, tmp_path, ("npi", "sdedit", "blended"), data=pie, **options)
    assert list(results["edits"]) == ["npi", "sdedit", "blended", "identity", "ceiling"], "no true edit is a reference"
    for name, found in results["edits"].items():
        assert found["n"] == 2 and all(point["direction"]["n"] == 2 for point in found["sweep"]), name
    kept = results["edits"]["identity"]["sweep"][0]
    assert kept["psnr_whole"]["exact"] == 2 and kept["lpips_outside"]["mean"] == pytest.approx(0, abs=1e-6)
    assert kept["psnr_inside"]["n"] == 0
    assert results["reconstruction"]["npi"]["below_vae"]["n"] == 2
    with (tmp_path / "edits.csv").open() as file:
        assert len(file.readlines()) == 1 + sum(2 * len(found["sweep"]) for found in results["edits"].values())
    page = (tmp_path / "index.html").read_text()
    assert "What is not here" in page and page.count("<h2 id=") == 4


def test_null_text_ablation_of_photographs(tiny_sd_backbone: str, photographs: Path, tmp_path: Path):
    options = {"variants": ("null_text", "null_text_random_caption"), "iterations": (0, 1), "num_steps": 2}
    results = ablate_null_text(tmp_path, tiny_sd_backbone, photographs, device="cpu", **options)
    assert results["about"]["pictures"] == results["vae"]["psnr"]["n"] == 2, "one of the pictures has no caption"
    first = {name: points[0]["psnr"]["mean"] for name, points in results["variants"].items()}
    assert first["null_text"] != first["null_text_random_caption"]
    page = (tmp_path / "index.html").read_text()
    assert "2 pictures of" in page and "test scenes" not in page


def test_style_transfer_of_photographs(
    tiny_sd_backbone: str, places: Path, photographs: Path, pie: Path, tmp_path: Path
):
    options = {"num_steps": 2, "shares": (0.0, 1.0), "schedule": FitSchedule(iterations=1), "device": "cpu", "batch": 1}
    tokenizer = CLIPTokenizer.from_pretrained(places / "export" / "tokenizer")
    clip = str(save_tiny_judges(places / "judges", tokenizer)[1])
    results = compare_style_transfer(tiny_sd_backbone, tmp_path, 2, photographs, pie, clip=clip, **options)
    free, held = results["shares"]
    assert free["to_style"]["n"] == held["to_content"]["n"] == 2 and "style" not in free
    assert held["structure"]["mean"] < free["structure"]["mean"], "features of the content bring the picture nearer"
    page = (tmp_path / "index.html").read_text()
    assert "CLIP, to the style image" in page and "with style images of" in page
