"""The page of an export as a Space of the hub: app.py, the code that it stands on, requirements, card, examples."""

import ast
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import SpaceCardData
from PIL import Image

from data.world.captions import long_caption
from data.world.render import SIDE, render
from data.world.splits import sample_scene
from eval.harness.exports import generator_place, image_side
from train.exports.base import Base

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = Path("eval/app.py")
_BESIDE = ("LICENSE", "pyproject.toml")
"""Files that go with the code: its licence, and what data/jobs/extras.py reads."""
_UNSEEN = ("accelerate",)
"""Modules that no file of the page imports, but diffusers where it is there: weights then are in memory once."""
_PHOTOGRAPH = Path("data/world/photographs/chelsea.png")
_DESCRIBED = "a close-up photograph of a ginger tabby cat with green eyes and an orange nose, a blurred room behind it"
_NUM_SCENES = 6

_APP = '''"""The page on which an export is tried. Further options: python app.py --help."""

import os
import sys
from pathlib import Path

from eval.app import main

HERE = Path(__file__).resolve().parent
EXPORT = {export}
HOST = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"

if __name__ == "__main__":
    main([f"--encoder={{EXPORT}}", f"--examples={{HERE / 'examples'}}", f"--host={{HOST}}", *sys.argv[1:]])
'''

_CARD = """# {title}

Photographs of any shape are edited here by text: drop one, say what it shows and what it should show, and move the
strength. The encoder is {export}, on {base}.

On a machine of your own: `pip install -r requirements.txt`, then `python app.py`. A captioner writes the descriptions
with `python app.py --captioner MODEL_OR_URL`. An encoder of SDXL's size, 12 GB of weights, needs a GPU.

## Licence and use

The code of the page is under Apache-2.0 (LICENSE).

{terms}"""


def check_space(folder: Path) -> None:
    """Refuse a Space that could not be made.

    Raises:
        ValueError: The folder is there already, or gradio is not installed, whose version the Space names.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it or give another --space")
    if find_spec("gradio") is None:
        raise ValueError("--space names the version of gradio, which is not installed; pip install '.[app]' brings it")


def write_space(folder: Path, export: Path, hub_id: str | None, base: Base) -> None:
    """Make the folder of a Space: a copy of the page's code, whole files, that opens one export.

    Args:
        folder: Folder to make.
        export: Folder of the export.
        hub_id: The export's name on the hub, by which the page loads it; without, it is loaded from `export`.
        base: The frozen model.
    """
    code = page_code(_ROOT / _PAGE)
    folder.mkdir(parents=True)
    for path in [*code, *(_ROOT / name for name in _BESIDE)]:
        copy = folder / path.relative_to(_ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    beside = os.path.relpath(export.resolve(), folder.resolve())
    place = repr(hub_id) if hub_id else f"HERE / {beside!r}"
    (folder / "app.py").write_text(_APP.format(export=place))
    requirements = [f"{name}=={version(name).partition('+')[0]}" for name in libraries(code)]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "README.md").write_text(_card(export, hub_id, base))
    _write_examples(folder / "examples", export)


def page_code(page: Path) -> list[Path]:
    """The files of this project that a file imports, wherever in it, and those that these import; itself included."""
    found: set[Path] = set()
    waiting = [page]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += (file for name in _imported(path) for file in _files_of(name))
    return sorted(found)


def libraries(code: Iterable[Path]) -> list[str]:
    """The installed libraries that some files import, by the names under which they are installed."""
    modules = {name.partition(".")[0] for path in code for name in _imported(path)} | set(_UNSEEN)
    modules -= {path.relative_to(_ROOT).parts[0] for path in code} | sys.stdlib_module_names
    known = packages_distributions()
    return sorted({name for module in modules for name in known.get(module, ())}, key=str.lower)


def _imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, in functions too and by `import_module`; siblings by their full names."""
    package = ".".join(path.relative_to(_ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{path} imports from the folder above"
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def _files_of(name: str) -> Iterator[Path]:
    """The files of this project that an import of a dotted name runs: packages on the way, and the module."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        place = _ROOT.joinpath(*parts[:count])
        yield from (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file())


def _card(export: Path, hub_id: str | None, base: Base) -> str:
    """README.md with the header of a Space."""
    title = f"Edit photographs with {(hub_id or export.name).rpartition('/')[2]}"
    licence = base.licence_entries()
    header = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=[name for name in (hub_id, base.hub_id) if name] or None,
        **licence,  # type: ignore[arg-type]
    )
    text = _CARD.format(title=title, export=hub_id or export.name, base=base.name, terms=base.terms)
    return f"---\n{header.to_yaml()}\n---\n{text}"


def _write_examples(folder: Path, export: Path) -> None:
    """Write pictures with their descriptions, which anyone may pass on: scenes where they have the generator's size."""
    folder.mkdir()
    if image_side(generator_place(export)) != SIDE:
        shutil.copyfile(_ROOT / _PHOTOGRAPH, folder / _PHOTOGRAPH.name)
        (folder / _PHOTOGRAPH.name).with_suffix(".txt").write_text(_DESCRIBED)
        return
    for index in range(_NUM_SCENES):
        scene = sample_scene("test", 0, index)
        Image.fromarray(render(scene)).save(folder / f"scene_{index}.png")
        (folder / f"scene_{index}.txt").write_text(long_caption(scene))
