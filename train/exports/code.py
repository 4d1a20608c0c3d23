"""The code that an export carries: files of its pipeline's and its components' classes that are no library's own."""

import ast
import inspect
import shutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

_PROJECT = Path(__file__).parents[2]


def carries_code(pipeline: DiffusionPipeline) -> bool:
    """Whether the pipeline's class is not diffusers' own, so that users have to trust the folder's code."""
    return _is_ours(type(pipeline))


def add_code(pipeline: DiffusionPipeline, folder: Path) -> dict[str, Any]:
    """Put the source files beside the weights in a saved pipeline's folder.

    Returns:
        What model_index.json has to say of them.
    """
    places = {"_class_name": (type(pipeline), folder)}
    places |= {name: (type(part), folder / name) for name, part in pipeline.components.items()}
    index = {}
    for entry, (kind, place) in places.items():
        if _is_ours(kind):
            for source in source_files(kind):
                shutil.copy(source, place)
            index[entry] = [Path(inspect.getfile(kind)).stem, kind.__name__]
    return index


def source_files(kind: type) -> list[Path]:
    """The file of a class and the siblings that it imports relatively, which are all that diffusers copies."""
    path = Path(inspect.getfile(kind))
    siblings: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            siblings |= {node.module} if node.module else {alias.name for alias in node.names}
    return [path, *(path.with_name(f"{name}.py") for name in sorted(siblings))]


def _is_ours(kind: type) -> bool:
    """Whether a class stands in a file of this project; not in a library, whose place may be a folder within it."""
    if kind.__module__ == "builtins":
        return False
    path = Path(inspect.getfile(kind))
    return path.is_relative_to(_PROJECT) and "site-packages" not in path.parts
