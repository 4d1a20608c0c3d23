"""The directions of imports between the packages, read from the source of every module.

An export carries files of `models/` without the rest of the project, so these directions are part of what is shipped.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests.processes import ROOT

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
MODELS_STAND_ON = {"torch", "diffusers", "transformers", "numpy", "PIL"}  # the last two come with diffusers
METHODS = ("turboedit", "stylediffusion", "instruct_pix2pix")
METHOD_NETWORKS = ("noise_encoder", "value_mapper")
KNOW_THE_METHODS = ("export", "plan")  # in train, beside the method files themselves
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}


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


def knows_a_method(name: tuple[str, ...]) -> bool:
    """Whether a dotted name of ours belongs to one method (train.turboedit, models.noise_encoder, ...)."""
    return name[1:2] == ("methods",) or any(part.startswith(METHODS) or part in METHOD_NETWORKS for part in name[1:2])


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
    of_a_method = path.stem.startswith(METHODS) or path.parts[1] == "methods"
    generic = folder == "train" and not of_a_method and path.stem not in KNOW_THE_METHODS
    if generic and name[0] in ALLOWED and knows_a_method(name):
        return f"in train/ only the method files know a method, {'.'.join(name)} is one's"
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


def modules() -> list[PurePosixPath]:
    """All Python files of the packages, relative to the root."""
    files = (file for folder in ALLOWED for file in (ROOT / folder).rglob("*.py"))
    return sorted(PurePosixPath(file.relative_to(ROOT).as_posix()) for file in files)


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
        ("train/engine.py", "from .turboedit import TurboEditTask"),
        ("train/engine.py", "from models.noise_encoder import NoiseEncoder"),
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
