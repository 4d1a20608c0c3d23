"""Which extra of pyproject.toml brings a library that is not installed."""

import re
import tomllib
from pathlib import Path

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_LIBRARIES = {"skimage": "scikit-image"}  # where a library is installed under another name than it is imported by


def extra_of(module: str | None) -> str | None:
    """Name of the extra that brings a module; None where none does."""
    top = (module or "").partition(".")[0]
    library = _LIBRARIES.get(top, top)
    extras = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {extra: {re.split(r"[\[<>=;, ]", one)[0] for one in requirements} for extra, requirements in extras.items()}
    return next((extra for extra, libraries in named.items() if library in libraries), None)
