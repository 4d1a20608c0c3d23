"""The miniature's LLaVA writes what edits start from."""

from pathlib import Path

import pytest

from data.captioning.config import CaptioningConfig
from data.captioning.maker import CaptionMaker
from eval.scene_edits.edit_set import sample_edit_set
from eval.scene_edits.written_captions import write_captions
from scripts.miniature.measure_captioner import captioner_figures

MINIATURE = Path("models/miniature")


@pytest.fixture(scope="module")
def maker() -> CaptionMaker:
    student = str(MINIATURE / "student")
    return CaptionMaker(
        CaptioningConfig("transformers", model=str(MINIATURE / "llava"), backbone=student, device="cpu")
    )


def test_edits_get_captions_and_rewritten_ones(maker: CaptionMaker):
    edits = sample_edit_set("test", 3, seed=5)
    written, figures = write_captions(edits, maker)
    assert written.edits is edits.edits and written.sources is edits.sources
    assert all(written.source_prompts) and all(written.target_prompts)
    assert figures["rejected"] == 0
    assert figures["source"]["right"]["mean"] >= 0.9
    assert figures["rewritten"]["right"]["mean"] >= 0.9
    assert figures["target"]["right"]["mean"] >= 0.85
    assert written.target_prompts != written.source_prompts
    assert figures["seconds_caption"] > 0


def test_captioner_is_now_as_on_the_card():
    figures = captioner_figures(MINIATURE, 64)
    assert figures["described"]["right"] >= 0.95
    assert figures["rewritten"]["right"] >= 0.95
    assert figures["condensed"]["right"] >= 0.98
    assert figures["uncut"] >= 0.98
