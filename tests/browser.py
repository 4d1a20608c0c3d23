"""A headless Chromium for the tests of pages, as a pytest plugin: `pytest_plugins = ["tests.browser"]`.

The system's own browser, driven by Playwright; where there is none, its tests skip and say how to get one.
Test files import names of it too, hence PYTEST_DONT_REWRITE.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@dataclass
class Tab:
    """A page in the browser with everything that it complained about or asked for.

    Args:
        page: Playwright's.
        problems: console errors and warnings, uncaught exceptions, dialogs.
        requests: addresses other than data and the file itself.
    """

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def heard(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.problems.append(said.text)

    def refused(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def asked(self, url: str, own: str) -> None:
        if not url.startswith("data:") and url.partition("#")[0] != own:
            self.requests.append(url)


class Browser:
    """Opens pages from disk; `close` shuts all tabs and Chromium."""

    def __init__(self, executable: str) -> None:
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        self._chromium = self._driver.chromium.launch(executable_path=executable, args=list(ARGUMENTS))

    def open(self, path: Path, size: dict[str, int] = DESKTOP) -> Tab:
        """A file in a fresh tab without a network; touch is on where the window is a phone's."""
        phone = size["width"] < 600
        context = self._chromium.new_context(viewport=size, offline=True, has_touch=phone, is_mobile=phone)
        tab = Tab(context.new_page())
        address = path.resolve().as_uri()

        def note(request: object) -> None:
            url = request.url  # type: ignore[attr-defined]
            if not url.startswith("data:") and url.partition("#")[0] != address:
                tab.requests.append(url)

        def refuse(dialog: object) -> None:
            tab.problems.append(f"dialog: {dialog.message}")  # type: ignore[attr-defined]
            dialog.dismiss()  # type: ignore[attr-defined]

        tab.page.on(
            "console", lambda said: tab.problems.append(said.text) if said.type in ("error", "warning") else None
        )
        tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.page.on("dialog", refuse)
        tab.page.on("request", note)
        tab.page.goto(address)
        return tab

    def close_tabs(self) -> None:
        for context in self._chromium.contexts:
            context.close()

    def close(self) -> None:
        self._chromium.close()
        self._driver.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One Chromium for the tests of a file: while it is open an event loop runs in this thread, and no other can."""
    pytest.importorskip("playwright", reason='Playwright is missing: pip install -c constraints.txt ".[dev]"')
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    browser = Browser(executable)
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, whose tabs are closed after the test."""
    yield chromium
    chromium.close_tabs()
