"""The Python that documents and cards show, run as somebody would type it, but on the CPU."""

import re
from pathlib import Path
from typing import Any


def run_snippet(document: str, folder: str | Path) -> dict[str, Any]:
    """Run the one snippet of Python in a document on an export in `folder`; returns its names.

    The snippet begins with the name of a folder, a GPU and a dtype, and says what a CPU needs.
    """
    [typed] = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    place = re.compile(r'= "[^"]+", "cuda", torch\.\w+  # on a CPU: ("cpu", torch\.float32)\n')
    typed, count = place.subn(lambda found: f"= {str(folder)!r}, {found[1]}\n", typed)
    assert count == 1, "folder, device and dtype stand on one line"
    names: dict[str, Any] = {}
    exec(typed, names)
    return names
