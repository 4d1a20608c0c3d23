"""List the project's files that a command runs through, in the order in which it comes to them.

    python -m scripts.walk_request --command "eval.scenes --encoder runs/demo/export --out runs/walk --num 1"

So a reader sees where to begin and what comes after: of a request for edits the files from the command to the table.
"""

import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from data.jobs.command import run

ROOT = Path(__file__).resolve().parents[1]


def walk_request(command: str) -> list[str]:
    """Run a command and print the files whose functions it calls, each once.

    Args:
        command: Module and options, as they stand after `python -m`.

    Returns:
        Paths in the clone.

    Raises:
        ValueError: There is no such module.
    """
    module, *words = shlex.split(command) or [""]
    if not (ROOT / module.replace(".", "/")).with_suffix(".py").is_file():
        raise ValueError(f"--command begins with {module!r}, expected a module and its options, such as eval.scenes")
    main = importlib.import_module(module).main
    known = {str(path) for folder in ("data", "eval", "models", "train") for path in (ROOT / folder).rglob("*.py")}
    found: dict[str, None] = {}

    def visit(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name in known and name not in found and not _imports(frame):
            found[name] = None

    sys.setprofile(visit)
    try:
        main(words)
    finally:
        sys.setprofile(None)
    files = [str(Path(name).relative_to(ROOT)) for name in found]
    print("\n".join([*files, f"{len(files)} files"]))
    return files


def _imports(frame: FrameType | None) -> bool:
    """Whether a call is part of importing a module, as those of decorators are."""
    while frame is not None and frame.f_code is not walk_request.__code__:
        if frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.walk_request", walk_request, argv)


if __name__ == "__main__":
    main()
