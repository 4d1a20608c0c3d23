"""The warning that figures do not compare with published ones: there exactly when something is not as published."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from eval.metrics.config import PUBLISHED_CLIP, PUBLISHED_DINO, MetricConfig
from eval.metrics.networks import load_metric_models
from eval.pie.about import differences_from_published
from eval.pie.cases import PieCase
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
