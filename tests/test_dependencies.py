"""What the packages import is declared in pyproject.toml, in the right place, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests.processes import ROOT

PACKAGES = ("configs", "models", "data", "eval", "train", "scripts", "tests")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Tools that nothing imports: each is called by name.
TOOLS = {"ipykernel", "mypy", "pre-commit", "pytest-timeout", "pytest-xdist", "ruff"}
# What an extra brings and data, training and export import only where it was asked for.
ON_REQUEST = {"bitsandbytes", "tensorboard", "pillow-heif", "pillow-jxl-plugin", "pyarrow"}
HIDDEN = {"torch.utils.tensorboard": "tensorboard"}
"""Modules that import another library at once."""


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    """Names of libraries; those of the extras that a requirement names stand for it."""
    names = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            names |= {one for extra in extras.split(",") for one in declared(extra_of(extra))}
        else:
            names.add(normalised(name))
    return names


def extra_of(name: str) -> list[str]:
    return PROJECT["optional-dependencies"][name]


BASE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(found) for name, found in PROJECT["optional-dependencies"].items()}
DISTRIBUTIONS = {"pillow_jxl": {"pillow-jxl-plugin"}}  # where it is not installed
DISTRIBUTIONS |= {module: {normalised(name) for name in names} for module, names in packages_distributions().items()}


def imported(source: str, package: str = "") -> Iterator[str]:
    """Dotted names of the modules that a source imports, also by `resources.files`; siblings by their full names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level and node.module else node.module or package
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("resources.files", "import_module"):
            yield from (word.value for word in node.args[:1] if isinstance(word, ast.Constant))


def libraries(names: set[str]) -> set[str]:
    """The libraries among imported names, as pyproject.toml calls them."""
    found = {HIDDEN[name] for name in names if name in HIDDEN}
    for module in {name.partition(".")[0] for name in names} - {*PACKAGES, *sys.stdlib_module_names}:
        known = DISTRIBUTIONS.get(module, {normalised(module)})
        found |= known & (BASE | set().union(*EXTRAS.values())) or known
    return found


@cache
def modules(*folders: str) -> dict[str, set[str]]:
    """What each module of some folders or files imports, by its dotted name."""
    found = {}
    paths = ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py") for name in folders)
    for path in sorted(path for some in paths for path in some):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        package = ".".join(path.relative_to(ROOT).parent.parts)
        found[dotted] = set(imported(path.read_text(encoding="utf-8"), package))
    return found


def needed(*folders: str) -> dict[str, str]:
    """Libraries that the modules of some folders and all that they import need, each with a module that imports it."""
    everything = modules(*PACKAGES)
    waiting, seen, found = set(modules(*folders)), set(), {}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        found |= dict.fromkeys(libraries(everything[name]), name)
        waiting |= (everything[name] & set(everything)) - seen
    return found


def allowed(folder: str) -> set[str]:
    if folder in ("models", "data", "train"):
        return BASE | ON_REQUEST
    return BASE | EXTRAS["eval"] | EXTRAS["app"] | ON_REQUEST if folder == "eval" else BASE | EXTRAS["dev"] | ON_REQUEST


@pytest.mark.parametrize("folder", ["models", "data", "train", "eval", "scripts", "tests"])
def test_what_is_imported_is_declared(folder: str):
    missing = {name: module for name, module in needed(folder).items() if name not in allowed(folder)}
    assert not missing, "declare these libraries, or import them where the extra is there"


def test_demo_needs_no_tools_of_the_tests():
    """`make demo` runs commands of data, train and eval, which its environment has to suffice for."""
    makefile = (ROOT / "Makefile").read_text()
    assert '".[eval]"' in makefile.partition(".venv/.ready-dev:")[0]
    assert needed("scripts/demo.py").keys() <= BASE | EXTRAS["eval"]


def test_what_is_declared_is_imported():
    used = needed(*PACKAGES).keys() | TOOLS
    assert (BASE | set().union(*EXTRAS.values())) - used == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import skimage", {"scikit-image"}),
        ("from PIL import Image", {"pillow"}),
        ("def f():\n    from torch.utils.tensorboard import SummaryWriter", {"torch", "tensorboard"}),
        ("resources.files('skimage').joinpath('data')", {"scikit-image"}),
        ("import nowhere_to_be_found", {"nowhere-to-be-found"}),
        ("import os\nfrom data.jobs import files", set()),
    ],
)
def test_libraries_are_seen(source: str, expected: set[str]):
    assert libraries(set(imported(source))) == expected


def test_siblings_are_followed():
    assert "models.schedule" in set(imported("from .schedule import NoiseSchedule", "models"))
    assert "torchmetrics" in needed("eval")
