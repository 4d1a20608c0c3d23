"""Every command answers --help, a typo and a missing file at once, in a few words, before anything heavy loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_COMMANDS = {"engine", "task", "rng", "method", "model_card", "__init__"}
COMMANDS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("data", "eval", "train", "scripts")
    for path in (ROOT / folder).glob("*.py")
    if path.stem not in NO_COMMANDS
)
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "deepspeed", "scipy", "torchmetrics")

# One fresh process for all: it forks a child for each command and each way to call it, which runs the command alone.
ANSWERS = """
import contextlib, io, json, os, runpy, sys
def answer(name, argv):
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.argv = [name, *argv]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException as error:
            status, text = -1, f"{type(error).__name__}: {error}"
            print(text, file=sys.stderr)
    heavy = [module for module in %r if module in sys.modules]
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}
import jsonargparse  # what every command stands on
assert not [module for module in %r if module in sys.modules]
for name, argv in json.loads(sys.stdin.read()):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as stream:
            stream.write(json.dumps([name, argv, answer(name, argv)]))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        print(stream.read(), flush=True)
    os.wait()
"""
# Which options train.plan has depends on the method that is planned.
PLANNED = "--config=configs/turboedit/miniature.yaml"
WAYS = {"typo": ["--hellp=3"], "missing": ["--config=no/such/file.yaml"]}
HELP = ["--help"]
STARTED = ("data.caption", "eval.scenes", "train.turboedit")
"""Commands that are really started by default; the long tests start all."""


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], dict]:
    calls = [(name, argv) for name in COMMANDS for argv in (HELP, *WAYS.values())]
    calls = [(name, [PLANNED, *argv] if (name, argv) == ("train.plan", WAYS["typo"]) else argv) for name, argv in calls]
    run = [sys.executable, "-c", ANSWERS % (HEAVY, HEAVY)]
    done = subprocess.run(run, input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT, check=True)
    ways = {argv[-1]: way for way, argv in {"help": HELP, **WAYS}.items()}
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {(name, ways[argv[-1]]): found for name, argv, found in rows}


def test_the_commands_are_found():
    assert {"data.caption", "eval.scenes", "train.turboedit", "train.plan", "scripts.demo"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_there_at_once(name, answers):
    found = answers[name, "help"]
    assert found["status"] == 0 and found["heavy"] == [], found["err"]
    check_help(name, found["out"])


def check_help(name, text):
    assert text.startswith(f"usage: python -m {name}")
    for python in ("<class", "Optional[", "Union[", "(type:", "pathlib"):
        assert python not in text


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in STARTED else pytest.mark.long) for name in COMMANDS]
)
def test_help_is_there_after_a_real_start(name):
    command = [sys.executable, "-X", "importtime", "-m", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    check_help(name, done.stdout)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"jsonargparse"} <= imported and not imported & set(HEAVY)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_told_before_anything_heavy_is_imported(name, way, answers):
    found = answers[name, way]
    assert found["heavy"] == []
    assert found["status"] == {"typo": 2, "missing": 1}[way], found["err"]
    assert found["err"].startswith(f"{name}: ")
    assert len(found["err"].splitlines()) <= 3
    assert ("no option --hellp" if way == "typo" else "no/such/file.yaml") in found["err"]
