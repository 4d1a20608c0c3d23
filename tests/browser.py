"""A headless Chromium for the tests of pages, as a pytest plugin: `pytest_plugins = ["tests.browser"]`.

The system's own browser, driven by Playwright; where there is none, its tests skip and say how to get one.
Test files import names of it too, hence PYTEST_DONT_REWRITE.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
SMALL_LETTERS = """() => {
    const small = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || element.tagName === 'title' || !element.checkVisibility()) continue;
        const svg = element.closest('svg');
        const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
        const size = scale * parseFloat(getComputedStyle(element).fontSize);
        if (size < 11) small.push(`${size} px: ${element.textContent.slice(0, 40)}`);
    }
    return small;
}"""
"""What is written in letters of less than 11 pixels, as they are shown."""


@dataclass
class Tab:
    """A page in the browser with everything that it complained about or asked for.

    Args:
        page: Playwright's.
        problems: console errors and warnings, uncaught exceptions, dialogs.
        requests: addresses other than data, and the file itself or those of its own server.
    """

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Note from now on what the page complains about."""
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", self._refused)

    def _heard(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.problems.append(said.text)

    def _refused(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()


class Browser:
    """Opens pages from disk and of servers of this machine; `close` shuts all tabs and Chromium."""

    def __init__(self, executable: str) -> None:
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        self._chromium = self._driver.chromium.launch(executable_path=executable, args=list(ARGUMENTS))

    def open(self, path: Path, size: dict[str, int] = DESKTOP) -> Tab:
        """A file in a fresh tab without a network; touch is on where the window is a phone's."""
        tab = self._tab(size, offline=True)
        address = path.resolve().as_uri()

        def note(request: Any) -> None:
            if not request.url.startswith("data:") and request.url.partition("#")[0] != address:
                tab.requests.append(request.url)

        tab.page.on("request", note)
        tab.page.goto(address)
        return tab

    def visit(self, address: str, size: dict[str, int] = DESKTOP) -> Tab:
        """The page at an address such as http://127.0.0.1:7860/ in a fresh tab, which reaches that server alone."""
        tab = self._tab(size, offline=False)
        own = f"{urlsplit(address).scheme}://{urlsplit(address).netloc}/"

        def answer(route: Any) -> None:
            if route.request.url.startswith((own, "data:", f"blob:{own}")):
                route.continue_()
            else:
                tab.requests.append(route.request.url)
                route.abort()

        tab.page.context.route("**/*", answer)
        tab.page.goto(address)
        return tab

    def _tab(self, size: dict[str, int], offline: bool) -> Tab:
        phone = size["width"] < 600
        context = self._chromium.new_context(viewport=size, offline=offline, has_touch=phone, is_mobile=phone)
        tab = Tab(context.new_page())
        tab.listen()
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
