"""The code that a saved pipeline carries: files of its pipeline's and its components' classes that are no library's.

The names of the copies end with a digest of their content. diffusers copies the code of all folders that a process
loads into one cache, by the names of the files alone, so two versions of a file need two names.
"""

import ast
import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LIBRARIES = ("builtins", "diffusers", "torch", "transformers")
_DIGEST = re.compile(r"_[0-9a-f]{8}$")
_RELATIVE = re.compile(r"^(\s*from \.)(\w+)( import )", re.MULTILINE)


def is_carried(kind: type) -> bool:
    """Whether the source of a class has to lie in the folder, as no library has it."""
    return kind.__module__.split(".")[0] not in _LIBRARIES


def carry_code(pipeline: Any, folder: str | Path) -> None:
    """Put the source files of a diffusers pipeline beside its saved weights, and name them in model_index.json."""
    folder = Path(folder)
    kinds = {name: type(getattr(part, "_orig_mod", part)) for name, part in pipeline.components.items()}  # uncompiled
    kinds = {name: kind for name, kind in ({"_class_name": type(pipeline)} | kinds).items() if is_carried(kind)}
    ending = _ending(kinds.values())
    index = folder / "model_index.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    for name, kind in kinds.items():
        entries[name] = _write(kind, folder if name == "_class_name" else folder / name, ending)
    index.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def source_files(kind: type) -> list[Path]:
    """The file of a class and the siblings that it imports relatively, which are all that diffusers copies."""
    path = Path(inspect.getfile(kind))
    siblings: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            siblings.add(node.module)
    return [path, *(path.with_name(f"{name}.py") for name in sorted(siblings))]


def _ending(kinds: Iterable[type]) -> str:
    """Digest of all files of some classes; one for the pipeline and its components, which import the same files."""
    files = sorted({path for kind in kinds for path in source_files(kind)})
    return "_" + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def _write(kind: type, folder: Path, ending: str) -> list[str]:
    """Copy the files of a class, under names with `ending`; returns its entry in model_index.json, [module, class]."""
    own, *_ = files = source_files(kind)
    if _DIGEST.search(own.stem):
        ending = ""  # loaded from a folder that carries it, so its names have one
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        text = _RELATIVE.sub(lambda found: f"{found[1]}{found[2]}{ending}{found[3]}", path.read_text(encoding="utf-8"))
        (folder / f"{path.stem}{ending}.py").write_text(text, encoding="utf-8")
    return [f"{own.stem}{ending}", kind.__name__]
