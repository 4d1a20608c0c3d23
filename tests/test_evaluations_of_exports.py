"""Evaluations of what train.export writes: an encoder alone, whose training was cut short, with a captioner."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline

from data.captioning.tokens import TokenLimits
from data.scene_pie_bench import write_pie_bench
from eval.ablation import ablate
from eval.editors.ddim import DdimInversion
from eval.editors.ddpm import Ddpm
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import generator_place
from eval.instructive import evaluate_instructive
from eval.metrics.config import MetricConfig
from eval.pie_bench import evaluate_pie_bench
from eval.scenes import evaluate_scenes
from models.backbone import Backbone
from tests.exported_runs import STEPS
from tests.slow_metrics import save_random_networks
from tests.test_instruct_pix2pix import save_instructive
from tests.tiny_editing import save_tiny_judges
from train.export import export

TAKEN = 2
CUT_SHORT = f", cut short after {TAKEN} of {STEPS} training steps"
RUN = {"planned": STEPS, "run": "run", "began": datetime.now(UTC).date().isoformat(), "by_clock": False}
SHORT: dict[str, Any] = {"captioner": "models/miniature/llava", "num": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def alone(turboedit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder alone, as it was before the last step."""
    out = tmp_path_factory.mktemp("exported") / "alone"
    export(turboedit_run, out, encoder_only=True, checkpoint=TAKEN)
    return out


@pytest.fixture(scope="module")
def judges(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Options of evaluations on scenes that name the judges."""
    tokenizer = Backbone.load(tiny_backbone, parts=["text"]).text.tokenizers[0]
    attributes, clip = save_tiny_judges(tmp_path_factory.mktemp("judges"), tokenizer)
    return {"attributes": attributes, "clip": clip}


def check(found: dict[str, Any] | None, out: Path) -> str:
    """The page of a report, which has to say how long the training was, as its results do."""
    assert found is not None
    about = json.loads((out / "results.json").read_text())["about"]
    assert about["training"] == found["about"]["training"] == {"taken": TAKEN, **RUN}
    page = (out / "index.html").read_text()
    assert f"</code>{CUT_SHORT}" in page
    assert f"of the run <code>run</code>, begun on {RUN['began']}, step {TAKEN} of {STEPS}; not stopped" in page
    return page


def test_the_generator_of_an_encoder_alone_is_its_base(alone: Path, tiny_backbone: str, tmp_path: Path):
    assert generator_place(alone) == tiny_backbone
    assert TokenLimits.load(generator_place(alone)).identity() == TokenLimits.load(tiny_backbone).identity()
    whole = tmp_path / "whole"
    DiffusionPipeline.from_pretrained(alone, trust_remote_code=True).save_pretrained(whole)
    assert generator_place(whole) == str(whole)
    with pytest.raises(ValueError, match="expected the TurboEditPipeline of an exported encoder"):
        generator_place(tiny_backbone)


@pytest.mark.long
def test_scenes(alone: Path, judges: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for kind in (TurboEdit, DdimInversion, Ddpm):
        monkeypatch.setattr(kind, "strengths", kind.strengths[:2])
    counts = {"num_validation": 1, "num_heldout": 0, "num_reconstructions": 1}
    found = evaluate_scenes(str(alone), tmp_path, **SHORT, **counts, **judges)
    check(found, tmp_path)
    assert found["edits"]["turboedit_written"]["n"] == 9


def test_ablation(alone: Path, judges: dict[str, Path], tmp_path: Path):
    other = shutil.copytree(alone, tmp_path / "other")
    card = (other / "README.md").read_text()
    (other / "README.md").write_text(card.replace(f"of step {TAKEN},", "of step 1,"))
    others = {"0": str(other), "1e-3": str(alone)}
    parts = ("lambda", "instructions")
    found = ablate(str(alone), tmp_path / "out", parts=parts, lambda_encoders=others, **SHORT, **judges)
    page = check(found, tmp_path / "out")
    assert f"The encoder of lambda 0{CUT_SHORT.replace(str(TAKEN), '1', 1)}." in page
    assert found["about"]["lambda_training"]["1e-3"] == found["about"]["training"]


@pytest.mark.long
def test_instructive(alone: Path, judges: dict[str, Path], tiny_backbone: str, tiny_sd_backbone: str, tmp_path: Path):
    parts = DiffusionPipeline.from_pretrained(save_instructive(tiny_sd_backbone, tmp_path / "other")).components
    parts["vae"] = DiffusionPipeline.from_pretrained(tiny_backbone).vae
    StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "rival")
    card = (alone / "README.md").read_text()
    (tmp_path / "rival" / "README.md").write_text(card.replace(f"of step {TAKEN},", "of step 1,"))
    guidances: Any = {"text_guidances": (2.0,), "image_guidances": (1.0,), "strengths": (1.0,), "num_steps": 1}
    found = evaluate_instructive(
        str(tmp_path / "rival"), str(alone), out=tmp_path / "out", num_validation=1, **SHORT, **guidances, **judges
    )
    page = check(found, tmp_path / "out")
    assert found["about"]["instruct_training"] == {"taken": 1, **RUN}
    assert f"</code>{CUT_SHORT.replace(str(TAKEN), '1', 1)}, 1 Euler" in page


def test_pie_bench(alone: Path, tmp_path: Path):
    write_pie_bench(tmp_path / "data", num=1)
    networks = save_random_networks(tmp_path / "networks")
    metrics = MetricConfig(networks.lpips, str(networks.structure), str(networks.clip))
    found = evaluate_pie_bench(
        tmp_path / "data", tmp_path / "out", str(alone), editors=["turboedit_instructive"], metrics=metrics, **SHORT
    )
    check(found, tmp_path / "out")
    assert found["rows"][0]["row"] == "turboedit_instructive" and found["rows"][0]["failed"] == 0
