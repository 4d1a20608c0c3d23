"""The pages' style sheets: every colour that is used is defined, and none by itself."""

import re

from tests.processes import ROOT

SHEETS = [path for folder in ("data", "eval") for path in (ROOT / folder).rglob("templates/**/*") if path.is_file()]


def test_colours_are_defined_and_not_by_themselves():
    texts = [path.read_text(encoding="utf-8") for path in SHEETS]
    defined = {name: value for text in texts for name, value in re.findall(r"(--[\w-]+): ?([^;\"]+)[;\"]", text)}
    used = {name for text in texts for name in re.findall(r"var\((--[\w-]+)\)", text)}
    assert len(used) > 5 and used <= set(defined)
    light = re.search(r":root \{(.*?)\}", (ROOT / "data/pages/templates/page.css").read_text(), re.DOTALL)
    assert light is not None and "var(" not in light.group(1)
