"""README and docs against the repository: what they name is there, links lead somewhere, lines are not too long.

The page that is made from the source is what its command makes.
"""

import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from scripts.walk_loss import page, sections
from tests.processes import ROOT
from train.run.config import DataConfig

FOLDERS = ("configs", "data", "docs", "eval", "models", "scripts", "tests", "train")
NARROW = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))]
PAGES = [*NARROW, Path("EXPERIMENTS.md"), Path("CHANGELOG.md"), Path("models/miniature/README.md")]
COMMENTED = sorted(
    path.relative_to(ROOT)
    for pattern in ("configs/**/*.yaml", "scripts/cluster/*", "Makefile")
    for path in ROOT.glob(pattern)
)


SUFFIXES = ("md", "py", "sbatch", "yaml")
OPTIONS = {f"data.{field.name}" for field in fields(DataConfig)}
"""Options of a training that read like modules."""


def named_files(text: str) -> Iterator[str]:
    """Paths in the repository that a text names, such as data/shards/shard.py; NAME stands for any name."""
    for found in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w", text):
        yield found.replace("NAME", "*")


def named_modules(text: str) -> Iterator[str]:
    """Modules of the repository that a text starts with -m."""
    yield from re.findall(r"-m ((?:data|eval|scripts|train|tests)[\w.]*\w)", text)


def complaints(path: Path, text: str) -> list[str]:
    """Names in a document that lead nowhere."""
    files = [f"{path}: there is no {name}" for name in named_files(text) if not any(ROOT.glob(name))]
    modules = [
        f"{path}: there is no module {name}"
        for name in named_modules(text)
        if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
    ]
    objects = [f"{path}: there is no {name}" for name in named_objects(text) if not exists(name)]
    return files + modules + objects


def named_objects(text: str) -> Iterator[str]:
    """Dotted names of code in a text, such as data.shards.stage.run_stage, and names that it imports."""
    for found in re.findall(r"`((?:data|eval|models|scripts|train)(?:\.\w+)+)`", text):
        if found.split(".")[-1] not in SUFFIXES and found not in OPTIONS:
            yield found
    for module, names in re.findall(
        r"^\s*from ((?:data|eval|models|scripts|train)[\w.]*) import ([\w, ]+)$", text, re.M
    ):
        yield from (f"{module}.{name.strip()}" for name in names.split(","))


def exists(name: str) -> bool:
    """Whether a dotted name is a module or something that a module defines."""
    parts = name.split(".")
    folder = ROOT.joinpath(*parts)
    if folder.is_dir() or folder.with_suffix(".py").is_file():
        return True
    module = ROOT.joinpath(*parts[:-1]).with_suffix(".py")
    return (
        module.is_file()
        and re.search(rf"^(class|def) {parts[-1]}\b|^{parts[-1]}\b.* = ", module.read_text(), re.M) is not None
    )


@pytest.mark.parametrize("path", PAGES + COMMENTED, ids=str)
def test_files_and_commands_that_documents_name_are_there(path: Path):
    assert not complaints(path, (ROOT / path).read_text(encoding="utf-8"))


def test_names_that_lead_nowhere_are_found():
    text = """`data/shards.py`, `train/rng.py`, `configs/*.yml`: python -m train.sdxl --config x; python -m eval.scenes
    `data.shards.stage.run_stage`, `data.stage.run_stage`, `data.workers`
    from data.jobs.errors import ShardError, ErrorOfShards
    """
    assert complaints(Path("page.md"), text) == [
        "page.md: there is no data/shards.py",
        "page.md: there is no configs/*.yml",
        "page.md: there is no module train.sdxl",
        "page.md: there is no data.stage.run_stage",
        "page.md: there is no data.jobs.errors.ErrorOfShards",
    ]


def typed_options() -> dict[str, set[str]]:
    """Options that documents type, by the module they are typed for; - and _ are one."""
    found: dict[str, set[str]] = {}
    for path in [*PAGES, *COMMENTED]:
        text = re.sub(r"\\\n\s*#?\s*", " ", (ROOT / path).read_text(encoding="utf-8"))
        typed = re.findall(r"-m ((?:data|eval|scripts|train)[\w.]*\w)([^\n`;]*)", text)
        typed += re.findall(r'"((?:data|eval|scripts|train)\.\w+)( --[^"\n]*)"', text)  # a command within a command
        for module, rest in typed:
            rest = re.sub(r'"(?:data|eval|scripts|train)\.[^"]*"', "", rest)
            options = re.findall(r"(?<![\w-])--([A-Za-z][\w.-]*)", rest.split(" # ")[0])
            found.setdefault(module, set()).update(option.replace("-", "_") for option in options)
    return found


TYPED = typed_options()


@pytest.mark.parametrize("module", sorted(TYPED))
def test_options_that_documents_type_are_in_the_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code in (0, None)
    known = set(re.findall(r"--([A-Za-z][\w.-]*)", capsys.readouterr().out.replace("-", "_").replace("__", "--")))
    assert {option for option in TYPED[module] if option.split(".")[0] not in known} <= known  # or of a dict by name


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_relative_links_lead_somewhere(path: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / path).read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / path.parent / link).exists()] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", NARROW, ids=str)
def test_lines_are_at_most_160_characters(path: Path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 160] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in NARROW[1:]} - {"README.md"} == set(
        re.findall(r"^\| \[(\w+\.md)\]\(\1\)", index, re.M)
    )


def test_readme_lists_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [
        path.stem
        for folder in ("data", "eval", "train", "scripts")
        for path in (ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and not path.stem.startswith("bench_")
    ]
    assert [name for name in commands if not re.search(rf"\b{name}\b", readme.split("## What is here")[1])] == []


def test_walk_through_the_loss_is_what_its_command_makes():
    written = (ROOT / "docs" / "loss.md").read_text(encoding="utf-8")
    assert written == page(), "python -m scripts.walk_loss makes docs/loss.md anew"


def test_sections_begin_with_their_comments():
    code = '''def loss(x):
    """What is lost."""
    # eq. 1: the first
    a = x + 1
    b: int = 2  # no section

    # The rest
    return a * b
'''
    first, rest = sections(code)
    assert (first.label, first.names, first.code) == ("eq. 1", ("a", "b"), "a = x + 1\nb: int = 2  # no section")
    assert (rest.label, rest.names, rest.code) == ("The rest", (), "return a * b")


def test_picture_of_the_readme_is_small():
    assert (ROOT / "docs" / "picture.jpg").stat().st_size < 200_000
