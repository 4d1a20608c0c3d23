"""An export goes to the hub with a card that the hub takes, and comes back by its name; a refusal loses nothing."""

from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.hub_server import Hub, Repository, running_hub
from tests.processes import run as run_python

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as started:
        started.repositories["me/public"] = Repository(private=False)
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pushed")


PROGRAM = """
import os, sys, torch
from pathlib import Path
from diffusers import DiffusionPipeline
from train.export import main
from train.exports.hub import push

def told(repository, private=False):
    try:
        push(Path(out), repository, private)
    except ValueError as error:
        print(error)

run, out, space, cache = sys.argv[1:]
main([run, out, "--push=me/encoder", "--private=true", f"--space={space}"])
options = {"cache_dir": cache, "trust_remote_code": True, "torch_dtype": torch.float32}
pipeline = DiffusionPipeline.from_pretrained("me/encoder", **options)
inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
print(type(pipeline).__module__, pipeline.edit(inversion, "a blue star").images[0].size)
told("me/public", private=True)
os.environ["HF_TOKEN"] = "hf_wrong"
told("me/refused")
"""


@pytest.fixture(scope="module")
def done(turboedit_run: Path, hub: Hub, place: Path) -> CompletedProcess[str]:
    """What a process has said that pushes an export, loads it into a cache of its own, and is refused twice.

    It is a fresh one, since the hub's library reads the hub's address when it is imported.
    """
    words = ["-c", PROGRAM, turboedit_run, *(place / name for name in ("out", "space", "cache"))]
    return run_python(*words, fresh=True, **hub.environment(HF_HOME=str(place / "hf")))


def test_it_is_pushed_and_loaded_by_its_name(done: CompletedProcess[str], hub: Hub, place: Path):
    out = place / "out"
    assert f"pushed to {hub.url}/me/encoder" in done.stderr
    assert f"hf upload me/encoder {place / 'space'} . --repo-type space --private" in done.stderr
    assert "EXPORT = 'me/encoder'" in (place / "space" / "app.py").read_text()
    pushed = hub.repositories["me/encoder"]
    assert pushed.private
    mine = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: content for name, content in pushed.files.items() if name != ".gitattributes"} == mine
    assert list((place / "cache").glob("models--me--encoder/snapshots/*/encoder/*.safetensors"))
    loaded = done.stdout.splitlines()[-3]
    assert "diffusers_modules" in loaded and "(64, 64)" in loaded


def test_refusals_say_what_is_wrong_and_how_to_go_on(done: CompletedProcess[str], hub: Hub, place: Path):
    out = place / "out"
    public, token = done.stdout.splitlines()[-2:]
    assert public.startswith(f"{out} is exported, but was not pushed to me/public: the repository is there already")
    assert public.endswith(f"When that is mended: hf upload me/public {out} . --private")
    assert "the hub refuses the token; hf auth login, or HF_TOKEN" in token
    assert not hub.repositories["me/public"].files and "me/refused" not in hub.repositories


@pytest.mark.long
def test_without_a_network_the_export_is_there_all_the_same(turboedit_run: Path, tmp_path: Path):
    with running_hub() as hub:
        gone = hub.environment()
    done = run_python(
        "-m", "train.export", turboedit_run, tmp_path / "out", "--push=me/encoder", fresh=True, status=1, **gone
    )
    last = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and "is exported, but was not pushed to me/encoder: no connection to" in last
    assert (tmp_path / "out" / "model_index.json").is_file()
