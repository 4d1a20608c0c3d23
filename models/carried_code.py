"""The code that a saved pipeline carries: files of its pipeline's and its components' classes that are no library's.

The names of the copies end with a digest of their content. diffusers copies the code of all folders that a process
loads into one cache, by the names of the files alone, so two versions of a file need two names.
"""

import ast
import hashlib
import inspect
import json
import re
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
    index = folder / "model_index.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    if is_carried(type(pipeline)):
        entries["_class_name"] = _write(type(pipeline), folder)
    for name, part in pipeline.components.items():
        kind = type(getattr(part, "_orig_mod", part))  # torch.compile lays its own class around a network
        if is_carried(kind):
            entries[name] = _write(kind, folder / name)
    index.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def source_files(kind: type) -> list[Path]:
    """The file of a class and the siblings that it imports relatively, which are all that diffusers copies."""
    path = Path(inspect.getfile(kind))
    siblings: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            siblings.add(node.module)
    return [path, *(path.with_name(f"{name}.py") for name in sorted(siblings))]


def _write(kind: type, folder: Path) -> list[str]:
    """Copy the files of a class; returns its entry in model_index.json, [module, class]."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in source_files(kind)}
    if _DIGEST.search(Path(inspect.getfile(kind)).stem):  # loaded from a folder that carries it: named already
        ending = ""
    else:
        ending = "_" + hashlib.sha256("".join(texts[stem] for stem in sorted(texts)).encode()).hexdigest()[:8]
    for stem, text in texts.items():
        renamed = _RELATIVE.sub(lambda found: f"{found[1]}{found[2]}{ending}{found[3]}", text)
        (folder / f"{stem}{ending}.py").write_text(renamed, encoding="utf-8")
    return [f"{Path(inspect.getfile(kind)).stem}{ending}", kind.__name__]
