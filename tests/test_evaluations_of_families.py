"""Evaluations of encoders on transformers with a flow: which rows they have, what is refused, whole commands."""

import json
from pathlib import Path

import pytest
import torch

from data.scene_pie_bench import write_pie_bench
from eval.editors.catalogue import Command, available
from eval.editors.ddim import DdimInversion
from eval.editors.ddpm import Ddpm
from eval.editors.models import FewStepModel
from eval.editors.turboedit import TurboEdit
from eval.metrics.config import MetricConfig
from eval.photo_page.desk import load_desk
from eval.pie.rows import encoder_rows
from eval.pie_bench import evaluate_pie_bench
from eval.scenes import evaluate_scenes
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline
from tests.slow_metrics import save_random_networks
from tests.tiny_editing import FLOW_TIMESTEPS, save_tiny_judges, tiny_flow_pipeline

FROZEN = {f"turboedit_frozen{form}" for form in ("", "_mask", "_given", "_given_latent", "_given_pixels")}
ON_UNETS = FROZEN | {
    "turboedit_mask_attention",
    "renoise",
    "turboedit_deutch",
    "infedit",
    "chordedit",
    "chordedit_transport",
}
LONG = [pytest.param(name, marks=pytest.mark.long) for name in FLOW_TIMESTEPS if name != "sd3"]


@pytest.fixture(scope="module", params=["sd3", *LONG])
def pipeline(request: pytest.FixtureRequest) -> TurboEditPipeline:
    return tiny_flow_pipeline(request.getfixturevalue(f"tiny_{request.param}"), FLOW_TIMESTEPS[request.param])


@pytest.fixture(scope="module")
def export(pipeline: TurboEditPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    pipeline.save_pretrained(folder)
    return folder


def test_rows_that_need_a_unet_are_left_out_and_refused_by_name(pipeline: TurboEditPipeline):
    known = available(Command.SCENES | Command.PIE, FewStepModel(pipeline))
    assert known.left_out.keys() == ON_UNETS
    assert not ON_UNETS & {line.name for line, _ in known.editors}
    with pytest.raises(
        ValueError, match=f"infedit cannot run: InfEdit works on a UNet.*{type(pipeline.network).__name__}"
    ):
        known.choose(["infedit"])
    rows = encoder_rows(pipeline)
    assert {"turboedit_frozen", "turboedit_frozen_2", "renoise"} <= rows.left_out.keys()
    with pytest.raises(ValueError, match="turboedit_frozen_2 cannot run: freezing of attention works on a UNet"):
        rows.chosen(["turboedit_frozen_2"])


def test_the_page_for_photographs_takes_it(export: Path):
    desk = load_desk(str(export), device="cpu")
    with desk.editor() as editor:
        assert editor.method.backbone.image_size == 64 and desk.step_counts == (1, 2, 4)
    assert len(desk.offered) == 4


@pytest.fixture
def fewer_strengths(monkeypatch: pytest.MonkeyPatch):
    for kind in (TurboEdit, DdimInversion, Ddpm):
        monkeypatch.setattr(kind, "strengths", kind.strengths[:1])


@pytest.mark.parametrize("editors", [("ddim",), pytest.param(None, marks=pytest.mark.long)])
def test_scenes(
    export: Path, editors: tuple[str, ...] | None, tiny_backbone: str, tmp_path: Path, fewer_strengths: None
):
    tokenizer = Backbone.load(tiny_backbone, parts=["text"]).text.tokenizers[0]
    attributes, clip = save_tiny_judges(tmp_path, tokenizer)
    counts = {"editors": editors, "num": 1, "num_validation": 1, "num_heldout": 0, "num_reconstructions": 1}
    found = evaluate_scenes(str(export), tmp_path / "out", **counts, attributes=attributes, clip=clip, device="cpu")
    assert all(torch.tensor(figures["psnr_outside"]["mean"]).isfinite() for figures in found["edits"].values())
    page = (tmp_path / "out" / "index.html").read_text()
    if editors is None:
        assert {"turboedit_mask", "ddpm_residual", "sdedit", "ceiling"} <= found["edits"].keys()
        assert {item["row"] for item in found["left_out"]} == {"turboedit_mask_attention"}
    assert ("mask from attention works on a UNet" in page) == (editors is None)


def test_pie_bench(export: Path, tmp_path: Path):
    write_pie_bench(tmp_path / "data", num=1)
    networks = save_random_networks(tmp_path / "networks")
    metrics = MetricConfig(networks.lpips, str(networks.structure), str(networks.clip))
    found = evaluate_pie_bench(tmp_path / "data", tmp_path / "out", str(export), num=1, metrics=metrics, device="cpu")
    assert found is not None
    assert all(row["failed"] == 0 for row in found["rows"])
    left_out = {item["row"]: item["reason"] for item in found["left_out"]}
    assert "UNet" in left_out["turboedit_frozen"] and "pure noise" in left_out["renoise"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["left_out"] == found["left_out"]
