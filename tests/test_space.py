"""The page of an export as a Space: a folder that starts where this project is not to be seen, offline, and answers."""

import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from huggingface_hub import RepoCard

from tests.browser import Browser
from tests.caption_servers import free_port
from tests.hub_server import complaints
from tests.processes import ROOT, start, wait_for
from tests.tiny_editing import tiny_pipeline
from train.export import export
from train.exports.base import Base
from train.exports.space import libraries, page_code, write_space

pytest_plugins = ["tests.browser"]

STUDENT = ROOT / "models" / "miniature" / "student"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export on the miniature, and its Space."""
    folder = tmp_path_factory.mktemp("machine_of_somebody")
    tiny_pipeline(str(STUDENT)).save_pretrained(folder / "encoder")
    write_space(folder / "space", folder / "encoder", None, Base.of(str(STUDENT)))
    return folder


@pytest.fixture(scope="module")
def space(folders: Path) -> Path:
    return folders / "space"


def test_it_is_what_a_space_has(space: Path):
    card = RepoCard.load(space / "README.md")
    assert card.data.sdk == "gradio" and card.data.sdk_version == version("gradio")
    assert card.data.app_file == "app.py" and (space / "app.py").is_file()
    assert str(card.data.python_version) == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert not complaints((space / "README.md").read_text())
    assert (space / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    pictures = sorted((space / "examples").glob("*.png"))
    assert len(pictures) == 6 and all(path.with_suffix(".txt").read_text() for path in pictures)


def test_its_requirements_are_the_versions_here(space: Path):
    pinned = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pinned.keys() >= {"accelerate", "diffusers", "gradio", "jsonargparse", "pillow", "torch", "transformers"}
    assert not pinned.keys() & {"deepspeed", "pytest", "wandb"}
    for name, pin in pinned.items():
        assert pin == version(name).partition("+")[0]


def test_its_code_is_the_projects_unchanged(space: Path):
    code = [path.relative_to(space) for path in space.rglob("*.py") if path.name != "app.py" or path.parent != space]
    assert {path.parts[0] for path in code} == {"data", "eval", "models"}
    assert {ROOT / path for path in code} == set(page_code(ROOT / "eval" / "app.py"))
    for path in code:
        assert (space / path).read_bytes() == (ROOT / path).read_bytes()


def test_it_names_no_path_of_this_machine(space: Path):
    for name in ("app.py", "README.md", "requirements.txt"):
        text = (space / name).read_text()
        assert "machine_of_somebody" not in text and str(ROOT) not in text
    assert "'../encoder'" in (space / "app.py").read_text()


def test_the_code_of_a_page_is_all_that_it_imports():
    code = {path.relative_to(ROOT).as_posix() for path in page_code(ROOT / "eval" / "reconstruction.py")}
    assert {"eval/__init__.py", "eval/harness/exports.py", "models/turboedit_pipeline.py", "models/words.py"} <= code
    assert not {path for path in code if path.startswith(("train/", "tests/", "scripts/"))}
    assert {"torchmetrics", "torch", "pillow"} <= set(libraries(ROOT / path for path in code))


TURBO = Base.of("stabilityai/sdxl-turbo")


def test_a_pushed_export_is_loaded_by_its_name_and_under_its_licence(folders: Path, tmp_path: Path):
    write_space(tmp_path / "space", folders / "encoder", "me/encoder", TURBO)
    assert "EXPORT = 'me/encoder'\n" in (tmp_path / "space" / "app.py").read_text()
    header = RepoCard.load(tmp_path / "space" / "README.md").data.to_dict()
    assert header["models"] == ["me/encoder", "stabilityai/sdxl-turbo"]
    assert header["license"] == "other" and header["license_name"] == "sai-nc-community"
    assert not complaints((tmp_path / "space" / "README.md").read_text())
    assert "what it forbids for the base" in (tmp_path / "space" / "README.md").read_text()


def answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.long
def test_it_starts_where_the_project_is_not_to_be_seen_and_edits(folders: Path, browser: Browser, tmp_path: Path):
    """As the hub starts it, but offline and on the export beside it."""
    for name in ("space", "encoder"):
        shutil.copytree(folders / name, tmp_path / name)
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    place = {"folder": tmp_path / "space", "PYTHONPATH": None, "HF_HOME": str(tmp_path / "hf")}
    process = start("app.py", f"--port={port}", "--device=cpu", fresh=True, **place)
    wait_for(lambda: answers(address), process)
    tab = browser.visit(address)
    page = tab.page
    page.set_default_timeout(WAIT_MS)
    page.locator("#examples img").first.click()
    page.wait_for_function("document.querySelector('#description textarea').value")
    page.fill("#target textarea", "a blue star on snow")
    page.click("#edit")
    page.wait_for_function("document.querySelectorAll('#result img').length == 2")
    process.kill()
    assert tab.requests == []
    assert str(ROOT) not in "".join(process.said())


def test_what_cannot_be_a_space_is_told(turboedit_run: Path, space: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(f"{space} exists already; remove it or give another --space")):
        export(turboedit_run, tmp_path / "out", space=space)
    assert not (tmp_path / "out").exists()
