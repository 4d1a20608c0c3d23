"""What PIE-Bench's page owns up to: what is not as published, exact pictures, failed edits, and what is missing."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from data.jobs.files import write_json
from eval.metrics.config import PUBLISHED_CLIP, PUBLISHED_DINO, MetricConfig
from eval.metrics.networks import load_metric_models
from eval.pie.about import differences_from_published
from eval.pie.cases import BadAnnotation, PieCase
from eval.pie.edits import PieRow
from eval.pie.evaluation import require_most, tell_left_out
from eval.pie.figures import row_figures, shared_figures
from eval.pie.rows import PieRows
from eval.pie.tables import figures_table
from tests.slow_metrics import SlowModels, save_random_networks


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowModels:
    """Networks of a folder, of which the hub's cache of this machine holds copies under the published names."""
    networks = save_random_networks(tmp_path / "mine")
    for name, folder in ((PUBLISHED_CLIP, networks.clip), (PUBLISHED_DINO, networks.structure)):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return networks


def found(networks: SlowModels) -> list[str]:
    """Words on each of these networks that is not the published one, but for LPIPS, which is random here."""
    config = MetricConfig(networks.lpips, str(networks.structure), str(networks.clip))
    lpips, *others = load_metric_models(config).differs
    assert "SqueezeNet 1.1" in lpips and "squeeze.pth" in lpips
    return others


def test_a_copy_of_the_right_networks_is_not_named_and_others_are(hub: SlowModels, tmp_path: Path):
    CLIPModel.from_pretrained(hub.clip, dtype=torch.float16).save_pretrained(hub.clip)
    assert found(hub) == []
    weights = load_file(hub.structure / "model.safetensors")
    weights["embeddings.cls_token"] += 0.1
    save_file(weights, hub.structure / "model.safetensors", {"format": "pt"})
    assert found(hub) == [
        f"structure distance by the ViT of {hub.structure}, which has other weights than {PUBLISHED_DINO}"
    ]
    shutil.rmtree(tmp_path / "hub")
    dino, clip = found(hub)
    assert f"{hub.clip}, which is not known to have the weights of {PUBLISHED_CLIP}" in clip and "not known" in dino


def test_there_is_no_warning_exactly_when_all_is_as_published():
    mask, small = np.zeros((512, 512), bool), np.zeros((512, 256), bool)
    types = "0" * 140 + "1238" * 80 + "4567" * 40 + "9" * 80
    case = PieCase("0", "0", Path("a.jpg"), "a", "b", "c", None, mask)
    cases = [replace(case, key=str(i), type_id=type_id) for i, type_id in enumerate(types)]
    assert differences_from_published(cases, [], jpeg=True) == []
    assert differences_from_published(cases, ["another CLIP"], jpeg=True) == ["another CLIP"]
    assert "--jpeg" in differences_from_published(cases, [], jpeg=False)[0]
    last = [*cases[:-1], replace(cases[-1], mask=small)]
    assert differences_from_published(last, [], jpeg=True) == ["1 pictures of 256x512 px, not 512x512"]
    assert "by type" in differences_from_published([*cases[:-1], cases[0]], [], jpeg=True)[0]
    assert "699 cases" in differences_from_published(cases[1:], [], jpeg=True)[0]


CASES = [PieCase(str(i), "1", Path("a.jpg"), "a", "b", "c", None, np.ones((8, 8), bool)) for i in range(4)]


def values(psnr: list[float]) -> dict[str, dict[str, dict[str, float]]]:
    """Values by key in both forms, of the first cases."""
    return {
        str(i): {form: {"psnr": x, "mse": 10 ** (-x / 10)} for form in ("published", "corrected")}
        for i, x in enumerate(psnr)
    }


def test_a_row_s_cells_tell_exact_pictures_missing_cases_and_n(tmp_path: Path):
    rows = [PieRow("whole", None), PieRow("torn", None)]
    measured = {"whole": values([20.0, 100.0, 30.0, math.nan]), "torn": values([110.0, 40.0])}
    for row in rows:
        (tmp_path / row.name).mkdir()
        for case in CASES:
            record = {} if case.key in measured[row.name] else {"error": "too small"}
            write_json(tmp_path / row.name / f"{case.key}.json", record)
    shared = shared_figures(rows, measured)
    assert shared["torn"] and shared["torn"]["n"] == 2
    found = [row_figures(row, CASES, measured[row.name], tmp_path) | {"shared": shared[row.name]} for row in rows]
    psnr = found[0]["forms"]["published"]["psnr"]
    assert (psnr["mean"], psnr["n"], psnr["exact"], psnr["others"]["mean"]) == (50.0, 3, 1, 25.0)
    assert found[1]["forms"]["published"]["psnr"]["exact"] == 0  # 110 dB is finite, and not cut
    lines = figures_table(found, "published", {}, published=False)
    cells = [" ".join(re.sub("<[^>]*>", "", line.cells[1]).split()) for line in lines.groups["methods"]]
    assert cells == ["50.00 ± 25.17 1 of 3 exact, others 25.00 n 3 shared 60.00", "75.00 ± 35.00 shared 75.00"]
    assert [note for _, note in lines.footnotes if "2 edits failed" in note and "too small" in note]


def test_what_is_left_out_is_said_beforehand_and_counts_where_it_is_most(caplog: pytest.LogCaptureFixture):
    bad = [BadAnnotation(str(i), "a torn mask") for i in range(5)]
    tell_left_out(PieRows([], {"imagic": "needs a UNet"}), CASES, bad, ["LPIPS is left out: offline", "a CLIP"])
    assert [record.getMessage() for record in caplog.records] == [
        "5 of 9 cases are left out. The first: 0, a torn mask",
        "LPIPS is left out: offline",
        "left out of the rows: imagic (needs a UNet)",
    ]
    row = {"row": "sdedit", "reference": False, "n": 2, "failed": 2}
    require_most([row], 5, bad, {"clip": "a CLIP"})
    with pytest.raises(ValueError, match="5 of 9 cases of the data, 3 of 5 edits, 1 of 1 networks"):
        require_most([{**row, "failed": 3}], 4, bad, {"clip": "left out"})
