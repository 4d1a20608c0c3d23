"""The demo on photographs: the main job, from a folder of captioned pictures to the report."""

import json
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from tests.processes import run

PHOTOGRAPHS = {
    "astronaut.png": "a woman in an orange suit before a flag",
    "chelsea.png": "a cat with a striped forehead",
    "coffee.png": "a cup of coffee on a wooden table",
    "rocket.jpg": "a rocket on its pad",
    "brick.png": "a brick wall",
    "grass.png": "grass from above",
}


def run_demo(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "scripts.demo", *words, status=status)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs that ship with scikit-image, captions beside them, as a person would have them."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, caption in PHOTOGRAPHS.items():
        with resources.files("skimage").joinpath("data", name).open("rb") as file:
            Image.open(file).convert("RGB").save(folder / Path(name).with_suffix(".jpg"))
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def test_photographs_become_an_encoder_and_a_report(photographs: Path, tmp_path: Path):
    out = tmp_path / "demo"
    run_demo(f"--images={photographs}", f"--out={out}", "--minutes=0.05")
    results = json.loads((out / "report" / "results.json").read_text())
    steps = results["reconstruction"]["turboedit"]["psnr_to_vae_by_step"]
    assert len(steps) == 4 and all(step["n"] == len(PHOTOGRAPHS) for step in steps)
    assert results["reconstruction"]["vae"]["psnr"]["mean"] > 15
    assert (out / "export" / "model_index.json").is_file()
    page = (out / "report" / "index.html").read_text()
    trained = results["about"]["training"]
    assert 0 < trained["taken"] < trained["planned"] == 900
    assert f"cut short after {trained['taken']} of 900 training steps, generator timesteps" in page
    assert "data:image/png;base64" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_a_folder_without_captions_stops_with_the_stages_message(photographs: Path, tmp_path: Path):
    for text in photographs.glob("*.txt"):
        text.unlink()
    done = run_demo(f"--images={photographs}", f"--out={tmp_path / 'demo'}", status=1)
    assert "no caption" in done.stderr and "data.caption ended with status 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_folder_is_named(tmp_path: Path):
    done = run_demo(f"--images={tmp_path / 'none'}", f"--out={tmp_path / 'demo'}", status=1)
    assert str(tmp_path / "none") in done.stderr
