"""Ctrl-C in a stage leaves nothing that looks finished, a word instead of a traceback, and work that goes on.

Trainings save at Ctrl-C: tests/test_resume.py.
"""

import signal
from pathlib import Path

import psutil
import pytest

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import encode_shards
from data.scenes import write_scenes
from data.shards.encode_config import EncodeConfig
from tests.processes import Process, start, wait_for

NUM = 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, NUM)
    return folder


def interrupt(process: Process) -> str:
    """What a process says when a terminal's Ctrl-C comes to it and all that it has started."""
    for started in psutil.Process(process.pid).children(recursive=True):
        started.send_signal(signal.SIGINT)
    process.send(signal.SIGINT)
    return process.finished(130).stderr


def test_stages_go_on_after_ctrl_c(scenes: Path, tiny_backbone: str, tmp_path: Path):
    captioned, out = tmp_path / "captioned", tmp_path / "latents"
    caption_folder(scenes, captioned, CaptionConfig(backbone=tiny_backbone, resolution=64, unit_size=2))
    process = start("-m", "data.encode", captioned, out, f"--backbone={tiny_backbone}", "--device=cpu")
    wait_for(lambda: (out / "unit-000000.json").is_file(), process)
    said = interrupt(process)
    assert "data.encode: stopped" in said and "Traceback" not in said
    assert not (out / "manifest.json").exists()
    assert encode_shards(captioned, out, EncodeConfig(tiny_backbone, device="cpu"))["count"] == NUM


def test_scenes_by_several_processes_end_with_a_word(tmp_path: Path):
    out = tmp_path / "scenes"
    process = start("-m", "data.scenes", out, "--num=20000", "--workers=2")
    wait_for(lambda: len(list(out.glob("00000/*.png"))) > 10, process)
    said = interrupt(process)
    assert "data.scenes: stopped" in said and "Traceback" not in said
    assert not (out / "metadata.jsonl").exists()
