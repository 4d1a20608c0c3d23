"""What a pipeline saves loads again: its code beside its weights, in every form and in company of other versions."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import models
from models.turboedit_pipeline import TurboEditPipeline
from tests.processes import run
from tests.tiny_editing import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_sd_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_sd_backbone)


@pytest.fixture(scope="module")
def folder(pipeline: TurboEditPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = tmp_path_factory.mktemp("saved") / "encoder"
    pipeline.save_pretrained(saved)
    return saved


def load(folder: Path | str, **options: object) -> DiffusionPipeline:
    found = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    found.set_progress_bar_config(disable=True)
    return found


def noise(pipeline: DiffusionPipeline) -> torch.Tensor:
    return pipeline.invert(torch.zeros(1, 3, 64, 64), "a star").noises[-1]


def code(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}


def test_what_is_saved_loads_with_the_code_that_lies_there(pipeline: TurboEditPipeline, folder: Path):
    found = load(folder)
    assert type(found).__module__.startswith("diffusers_modules.local.turboedit_pipeline_")
    assert torch.equal(noise(found), noise(pipeline))


def test_what_was_loaded_can_be_saved_again(folder: Path, tmp_path: Path):
    load(folder).save_pretrained(tmp_path / "again")
    assert code(tmp_path / "again") == code(folder)
    assert torch.equal(noise(load(tmp_path / "again")), noise(load(folder)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_variants_in_half_precision_load_again(tiny_sd_backbone: str, tmp_path: Path, dtype: torch.dtype):
    half = tiny_pipeline(tiny_sd_backbone).to(dtype)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half" / "encoder" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    found = load(tmp_path / "half", variant="fp16", torch_dtype=dtype)
    assert found.encoder.dtype == dtype
    assert torch.equal(noise(found), noise(half))


def test_compiled_networks_are_saved_as_they_were(tiny_sd_backbone: str, folder: Path, tmp_path: Path):
    compiled = tiny_pipeline(tiny_sd_backbone)
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    compiled.save_pretrained(tmp_path / "compiled")
    assert code(tmp_path / "compiled") == code(folder)
    assert torch.equal(noise(load(tmp_path / "compiled")), noise(load(folder)))


def test_two_versions_live_in_one_process(
    pipeline: TurboEditPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """diffusers copies all code into one folder: each keeps its own siblings, whichever is loaded first or again."""
    clone = tmp_path / "models_of_tomorrow"
    shutil.copytree(models.__path__[0], clone, ignore=shutil.ignore_patterns("miniature", "__pycache__"))
    wishes = clone / "turboedit_wishes.py"
    wishes.write_text(wishes.read_text().replace("prompt is an empty mapping", "tomorrow nobody wishes anything"))
    monkeypatch.syspath_prepend(tmp_path)
    kind = import_module(f"{clone.name}.turboedit_pipeline").TurboEditPipeline
    kind(**pipeline.components, attention_resolution=8).save_pretrained(tmp_path / "tomorrow")
    assert not set(code(folder)) & set(code(tmp_path / "tomorrow"))
    today, tomorrow, again = load(folder), load(tmp_path / "tomorrow"), load(folder)
    inversion = today.invert(torch.zeros(1, 3, 64, 64), "a star")
    for found, words in ((today, "empty mapping"), (tomorrow, "tomorrow nobody wishes"), (again, "empty mapping")):
        with pytest.raises(ValueError, match=words):
            found.edit(inversion, {})
        assert len(found.edit(inversion, ["a cat", "a dog"], mask="auto").images) == 2


def test_it_loads_by_its_hub_id(folder: Path, tmp_path: Path):
    hub = tmp_path / "models--someone--encoder"
    shutil.copytree(folder, hub / "snapshots" / "c0ffee")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("c0ffee")
    found = load("someone/encoder", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(noise(found), noise(load(folder)))


PUSH = """
import sys
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.push_to_hub("someone/pushed", token="hf_token")
pipeline.save_pretrained(sys.argv[2] + "/with_save", push_to_hub=True, repo_id="someone/saved", token="hf_token")
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a hub on this machine, and the folder in which what is committed to it lies."""
    received = tmp_path / "received"

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def answer(self, status: int, **content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer(404)

        do_GET = do_HEAD

        def do_POST(self) -> None:
            lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
            repo = "/".join(self.path.split("/")[3:5])
            if self.path.endswith("/create"):
                asked = json.loads(lines[0])
                name = f"{asked.get('organization')}/{asked['name']}"
                self.answer(200, url=f"http://{self.headers['Host']}/{name}", name=name)
            elif "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(lines[0])["files"]
                ]
                self.answer(200, files=files)
            elif "/commit/" in self.path:
                for line in map(json.loads, lines):
                    if line["key"] == "file":
                        path = received / repo / line["value"]["path"]
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(base64.b64decode(line["value"]["content"]))
                place = f"http://{self.headers['Host']}/{repo}"
                self.answer(200, commitUrl=f"{place}/commit/c0ffee", commitOid="c0ffee", url=place)
            else:
                self.answer(200, errors=[], warnings=[])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_what_is_pushed_loads_again(folder: Path, hub: tuple[str, Path], tmp_path: Path):
    address, received = hub
    away = {"PYTHONPATH": None, "HF_HUB_OFFLINE": None, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
    run("-c", PUSH, folder, tmp_path, fresh=True, folder=tmp_path, HF_HUB_DISABLE_XET="1", **away)
    for name in ("pushed", "saved"):
        assert code(received / "someone" / name) == code(folder)
        assert torch.equal(noise(load(received / "someone" / name)), noise(load(folder)))
