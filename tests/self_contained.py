"""What every page promises: one file that loads nothing."""

import base64
import hashlib
import re
from pathlib import Path


def check_stands_alone(page: Path) -> None:
    """Nothing is loaded, no script but the page's own may run, and links lead to parts of it or to files beside it."""
    text = page.read_text("utf-8")
    assert not re.search(r"<(link|iframe|object)|url\(|@import|\bon\w+=\"", text)
    assert all(source.startswith("data:image/") for source in re.findall(r'\bsrc="([^"]*)"', text))
    targets = re.findall(r'\bhref="([^"]*)"', text)
    ids = set(re.findall(r'\bid="([^"]*)"', text))
    assert all(target[1:] in ids if target.startswith("#") else "/" not in target for target in targets)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
