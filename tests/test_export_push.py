"""An export goes to the hub with a card that the hub takes, and comes back by its name; a refusal loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, Repository, running_hub
from tests.processes import run as run_python
from train.export import export


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as started:
        yield started


LOADER = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("me/encoder", trust_remote_code=True, torch_dtype=torch.float32)
inversion = pipeline.invert(torch.zeros(1, 3, 64, 64), "a red star")
print(type(pipeline).__module__, pipeline.edit(inversion, "a blue star").images[0].size)
"""


def test_it_is_pushed_and_loaded_by_its_name(turboedit_run: Path, hub: Hub, tmp_path: Path):
    out = tmp_path / "out"
    options = ("--push=me/encoder", "--private=true", f"--space={tmp_path / 'space'}")
    words = ["-m", "train.export", turboedit_run, out, *options]
    done = run_python(*words, fresh=True, **hub.environment(HF_HOME=str(tmp_path / "hf")))
    assert f"pushed to {hub.url}/me/encoder" in done.stderr
    assert f"hf upload me/encoder {tmp_path / 'space'} . --repo-type space --private" in done.stderr
    assert "EXPORT = 'me/encoder'" in (tmp_path / "space" / "app.py").read_text()
    pushed = hub.repositories["me/encoder"]
    assert pushed.private
    mine = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: content for name, content in pushed.files.items() if name != ".gitattributes"} == mine
    done = run_python("-c", LOADER, fresh=True, folder=tmp_path, **hub.environment(HF_HOME=str(tmp_path / "other")))
    assert "diffusers_modules" in done.stdout and "(64, 64)" in done.stdout


REFUSALS = """
import os, sys
from pathlib import Path
from train.exports.hub import push

def told(repository, private=False):
    try:
        push(Path(sys.argv[1]), repository, private)
    except ValueError as error:
        print(error)

told("me/public", private=True)
os.environ["HF_TOKEN"] = "hf_wrong"
told("me/encoder")
"""


def test_refusals_say_what_is_wrong_and_how_to_go_on(turboedit_run: Path, hub: Hub, tmp_path: Path):
    out = tmp_path / "out"
    export(turboedit_run, out)
    hub.repositories["me/public"] = Repository(private=False)
    done = run_python("-c", REFUSALS, out, fresh=True, **hub.environment())
    public, token = done.stdout.splitlines()
    assert public.startswith(f"{out} is exported, but was not pushed to me/public: the repository is there already")
    assert public.endswith(f"When that is mended: hf upload me/public {out} . --private")
    assert "the hub refuses the token; hf auth login, or HF_TOKEN" in token
    assert not hub.repositories["me/public"].files and "me/encoder" not in hub.repositories


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
