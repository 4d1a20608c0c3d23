"""The house: which package, room and file may import which, read from the folders and the source of every module.

An export carries files of `models/` without the rest of the project, so these directions are part of what is shipped.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]

# folder -> the folders whose modules it may import, its own included
ALLOWED: dict[str, set[str]] = {
    "configs": set(),
    "models": {"models"},
    "data": {"data", "models"},
    "eval": {"eval", "data", "models"},
    "train": {"train", "eval", "data", "models"},
    "scripts": {"scripts", "train", "eval", "data", "models"},
    "tests": {"tests", "scripts", "train", "eval", "data", "models"},
}
MODELS_STAND_ON = {"torch", "diffusers", "transformers", "numpy", "PIL", "safetensors"}  # three come with diffusers
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}

WITH_COMMANDS = ("data", "eval", "train", "scripts")
WHAT_A_READER_WANTS_FIRST = {"engine", "task", "rng", "method", "model_card"}  # in train/, beside its commands
LARGEST_ROOM = 18
MAY_BE_LARGER = {"models", "eval/editors", "tests"}

THE_SAME_IN_SEVERAL_ROOMS = {
    "main",  # of every command
    *("load", "build_pipeline", "trial"),  # of every method
    "identity",  # of every captioner
    *("bench", "table"),  # of every bench
    "round_trip",  # by the backbone, and by an autoencoder alone
}

Graph = Mapping[str, set[str]]


def imported_names(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[tuple[str, ...] | None]:
    """Absolute dotted names that a statement in `package` imports; None where a relative import leaves the packages."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
        return
    base = package[: len(package) - node.level + 1] if node.level else ()
    if node.level and not base:
        yield None
        return
    target = base + tuple((node.module or "").split(".") if node.module else ())
    yield from ((*target, alias.name) for alias in node.names)


def complaint(path: PurePosixPath, node: ast.Import | ast.ImportFrom, name: tuple[str, ...] | None) -> str | None:
    """What is wrong with importing `name` in the module at `path` (relative to the root), or None."""
    folder = path.parts[0]
    if name is None:
        return "a relative import leaves its top-level folder"
    if name[0] == "eval" and isinstance(node, ast.Import):
        return "`import eval` hides Python's eval: write `from eval.x import y`"
    if name[0] in ALLOWED and name[0] not in ALLOWED[folder]:
        return f"{folder}/ must not import {name[0]}/"
    relative = isinstance(node, ast.ImportFrom) and node.level > 0
    if folder == "models" and name[0] == "models" and not relative:
        return "files of models/ import their siblings relatively (an export carries them)"
    if folder == "models" and not relative and name[0] not in MODELS_STAND_ON | sys.stdlib_module_names:
        return f"models/ stands on {', '.join(sorted(MODELS_STAND_ON))} alone, not on {name[0]}"
    return None


def violations(path: PurePosixPath, source: str) -> list[str]:
    """Every broken rule of one module, as `path:line: what`."""
    found = []
    for part in (*path.parts[:-1], path.stem):
        if part in NAMES_THAT_SAY_NOTHING:
            found.append(f"{path}:1: nothing is called {part}; name the subject")
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            complaints = [complaint(path, node, name) for name in imported_names(node, path.parts[:-1])]
            found += [f"{path}:{node.lineno}: {text}" for text in dict.fromkeys(complaints) if text]
    return found


@cache
def modules() -> list[PurePosixPath]:
    """All Python files of the packages, relative to the root."""
    files = (file for folder in ALLOWED for file in (ROOT / folder).rglob("*.py"))
    return sorted(PurePosixPath(file.relative_to(ROOT).as_posix()) for file in files)


@cache
def imports() -> dict[PurePosixPath, set[PurePosixPath]]:
    """By file, the files of the packages that it imports, wherever in it the statement stands."""
    known = {path.with_suffix("").as_posix().removesuffix("/__init__"): path for path in modules()}
    found: dict[PurePosixPath, set[PurePosixPath]] = {}
    for path in modules():
        found[path] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in imported_names(node, path.parts[:-1]):
                    for dotted in ("/".join(name or ()), "/".join((name or ())[:-1])):
                        if dotted in known:
                            found[path].add(known[dotted])
                            break
        found[path].discard(path)
    return found


def circle(graph: Graph) -> list[str]:
    """The nodes of a circle in the order of their arrows; empty where there is none."""
    done: set[str] = set()

    def search(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := search(other, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := search(node, []))), [])


def room(path: PurePosixPath) -> str:
    """The sub-folder of a file; a file directly in a package and the face of a folder stand for themselves."""
    return path.as_posix() if len(path.parts) == 2 or path.stem == "__init__" else path.parent.as_posix()


def rooms(arrows: Mapping[PurePosixPath, set[PurePosixPath]]) -> Graph:
    """Which room imports which; tests are no room."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, others in arrows.items():
        if path.parts[0] != "tests":
            found[room(path)] |= {room(other) for other in others} - {room(path)}
    return found


@cache
def commands() -> list[PurePosixPath]:
    """The files directly in a package that has commands, but for what a reader of train/ wants first."""
    return [
        path
        for path in modules()
        if path.parts[0] in WITH_COMMANDS and len(path.parts) == 2 and path.stem != "__init__"
        if not (path.parts[0] == "train" and path.stem in WHAT_A_READER_WANTS_FIRST)
    ]


def siblings(path: Path) -> set[str]:
    """Names of the siblings that a file of models/ imports (`from .x import y`, `from . import x`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {name for node in statements for name in ([node.module] if node.module else [a.name for a in node.names])}


def test_imports_follow_the_directions():
    checked = modules()
    assert {path.parts[0] for path in checked} >= {"models", "data", "train", "tests"}
    found = [text for path in checked for text in violations(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_no_files_import_each_other_in_a_circle():
    graph = {path.as_posix(): {other.as_posix() for other in others} for path, others in imports().items()}
    assert circle(graph) == []


def test_rooms_depend_in_one_direction():
    graph = rooms(imports())
    assert len(graph) > 30
    assert circle(graph) == []


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == ["b", "c", "d", "b"]
    one, two = PurePosixPath("data/x/one.py"), PurePosixPath("data/y/two.py")
    again = PurePosixPath("data/x/again.py")
    assert circle(rooms({one: {two}, two: {again}, again: set()})) == ["data/x", "data/y", "data/x"]


def test_what_lies_directly_in_a_package_is_a_command_that_nothing_imports():
    names = {path.as_posix() for path in commands()}
    assert {"data/encode.py", "eval/scenes.py", "train/turboedit.py", "scripts/demo.py"} <= names
    for path in commands():
        source = (ROOT / path).read_text(encoding="utf-8")
        assert 'if __name__ == "__main__":' in source and "def main(" in source, f"{path} is no command"
    for path, others in imports().items():
        if path.parts[0] != "tests":
            taken = [other.as_posix() for other in others if other in commands()]
            assert not taken, f"{path} imports the command {taken[0]}: move what it needs into a room"


def test_rooms_are_small_and_files_do_not_repeat_their_names():
    files = defaultdict(list)
    for path in modules():
        if path.stem != "__init__":
            files[path.parent.as_posix()].append(path.stem)
    for folder, names in files.items():
        if folder not in MAY_BE_LARGER and (len(PurePosixPath(folder).parts) > 1):
            assert len(names) <= LARGEST_ROOM, f"{folder} holds {len(names)} files: give a subject a room of its own"
        last = PurePosixPath(folder).name
        for name in names:
            words = name.split("_")
            repeats = len(words) > 1 and (words[0] in (last, last.rstrip("s")) or words[-1] in (last, last.rstrip("s")))
            assert not repeats or folder in MAY_BE_LARGER, f"{folder}/{name}.py repeats its folder's name"


def methods() -> set[str]:
    """The folders of train/methods."""
    return {path.parts[2] for path in modules() if path.parts[:2] == ("train", "methods") and len(path.parts) > 3}


def method_of(path: PurePosixPath) -> str | None:
    """The method that a file belongs to: one in its folder of train/methods, or one of models/ that bears its name."""
    if path.parts[:2] == ("train", "methods") and len(path.parts) > 3:
        return path.parts[2]
    if path.parts[0] == "models":
        return next((method for method in methods() if path.stem.startswith(method)), None)
    return None


def test_only_its_own_folder_and_the_list_know_a_method():
    assert {"turboedit", "stylediffusion", "instruct_pix2pix"} <= methods()
    assert method_of(PurePosixPath("models/turboedit_pipeline.py")) == "turboedit"
    may_know_all = {*commands(), PurePosixPath("train/methods/__init__.py")}
    for path, others in imports().items():
        if path.parts[0] == "train" and path not in may_know_all:
            strange = [other.as_posix() for other in others if method_of(other) not in (None, method_of(path))]
            assert not strange, f"{path} knows another method's {strange[0]}"


def test_pipelines_import_every_sibling_directly():
    """diffusers copies only what the pipeline's own file imports, so what a sibling needs has to stand there too."""
    for pipeline in sorted((ROOT / "models").glob("*_pipeline.py")):
        direct = siblings(pipeline)
        needed, waiting = set(), list(direct)
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                waiting += siblings(ROOT / "models" / f"{name}.py")
        assert needed == direct, f"{pipeline.name} has to import {sorted(needed - direct)} itself"
    families = set(FAMILIES.values())
    assert families <= siblings(ROOT / "models" / "turboedit_pipeline.py"), f"it has to import {sorted(families)}"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/schedule.py", "from data.sample import Sample"),
        ("models/schedule.py", "from models.text import Prompt"),
        ("models/schedule.py", "def f():\n    from train import engine"),
        ("models/schedule.py", "import accelerate"),
        ("models/schedule.py", "from ..data import sample"),
        ("data/shards/sample.py", "from eval.metrics import psnr"),
        ("data/shards/sample.py", "import train.engine as engine"),
        ("eval/metrics/pixels.py", "from train.engine import fit"),
        ("train/export.py", "import eval"),
        ("scripts/demo.py", "import eval.metrics as metrics"),
        ("train/engine.py", "from scripts.demo import main"),
        ("scripts/demo.py", "from tests.conftest import tiny_backbone"),
        ("configs/values.py", "from train.engine import FitConfig"),
        ("data/utils.py", ""),
        ("eval/common/x.py", ""),
    ],
)
def test_checker_catches(path: str, source: str):
    assert len(violations(PurePosixPath(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "models/backbone.py",
            "import math\nimport torch.nn as nn\nfrom .schedule import NoiseSchedule\nfrom . import text",
        ),
        ("data/encode.py", "from models.backbone import Backbone\nfrom data.sample import Sample"),
        ("eval/scenes.py", "from data.scenes import Scene\nfrom models.generator import FewStepGenerator"),
        ("train/turboedit.py", "from models.noise_encoder import NoiseEncoder\nfrom train.task import StepLoss"),
        ("train/export.py", "from models.turboedit_pipeline import TurboEditPipeline\nfrom eval.metrics import psnr"),
        ("tests/test_demo.py", "from scripts.demo import main\nfrom tests.conftest import tiny_backbone"),
    ],
)
def test_checker_accepts(path: str, source: str):
    assert violations(PurePosixPath(path), source) == []


def test_no_module_gives_a_name_twice():
    """A later definition would silently take the place of an earlier one."""
    for path in modules():
        found: list[str] = []
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append(node.name)
            elif isinstance(node, ast.Assign):
                found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        twice = {name for name in found if found.count(name) > 1}
        assert not twice, f"{path} defines {sorted(twice)} more than once"


def test_a_public_name_has_one_meaning():
    places = defaultdict(list)
    for path in modules():
        if path.parts[0] != "tests":
            for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path))
    several = {name for name, paths in places.items() if len(paths) > 1}
    assert several == THE_SAME_IN_SEVERAL_ROOMS, {name: places[name] for name in several ^ THE_SAME_IN_SEVERAL_ROOMS}
