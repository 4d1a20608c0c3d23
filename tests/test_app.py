"""`python -m eval.app` in a real browser: a photograph comes in, is described, inverted, edited, saved, edited again."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from data.world.render import render
from data.world.splits import sample_scene
from tests.browser import DESKTOP, PHONE, Browser, Tab
from tests.caption_servers import free_port
from tests.processes import ROOT, Process, run, start
from tests.tiny_editing import tiny_pipeline

pytest_plugins = ["tests.browser"]

STUDENT, LLAVA = ROOT / "models/miniature/student", ROOT / "models/miniature/llava"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export on the miniature, and photographs."""
    folder = tmp_path_factory.mktemp("app")
    tiny_pipeline(str(STUDENT)).save_pretrained(folder / "export")
    scene = Image.fromarray(render(sample_scene("test", 0, 3)))
    scene.resize((300, 200), Image.Resampling.BICUBIC).save(folder / "wide.png")
    scene.save(folder / "scene.png")
    (folder / "text.png").write_text("no picture")
    (folder / "large.png").write_bytes((folder / "scene.png").read_bytes() + bytes(51 * 2**20))
    return folder


def served(place: Path, *options: object) -> tuple[Process, str]:
    """The page as a process of its own, and its address, where it answers."""
    port = free_port()
    words = ("-m", "eval.app", "--encoder", place / "export", "--port", port, *options)
    process = start(*words, GRADIO_TEMP_DIR=str(place / "shown"))
    address = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 120
    while True:
        try:
            assert httpx.get(address, trust_env=False).status_code == 200
            return process, address
        except httpx.TransportError:
            assert process.poll(0.2) is None and time.monotonic() < deadline, process.said()


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """The address of a page with a captioner."""
    process, address = served(place, "--captioner", LLAVA)
    yield address
    process.kill()


class User:
    """Somebody at the page."""

    def __init__(self, browser: Browser, address: str, size: dict[str, int] = DESKTOP) -> None:
        self.tab: Tab = browser.visit(address, size)
        self.page = self.tab.page
        self.page.set_default_timeout(WAIT_MS)
        self.page.wait_for_selector("#result")

    def until(self, happened: Callable[[], Any]) -> Any:
        """Waits until something is true; returns it."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while not (found := happened()):
            assert time.monotonic() < deadline, (self.figures, self.tab.problems)
            self.page.wait_for_timeout(50)
        return found

    @property
    def figures(self) -> str:
        return self.page.inner_text("#figures")

    def text(self, name: str) -> str:
        return self.page.input_value(f"#{name} textarea")

    def write(self, name: str, text: str) -> None:
        self.page.fill(f"#{name} textarea", text)

    def press(self, name: str) -> None:
        self.page.click(f"#{name}")

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#photograph input[type=file]", path)

    def move(self, name: str, value: float) -> None:
        """Moves a slider to a value."""
        self.page.fill(f"#{name} input[type=range]", str(value))

    def choose(self, name: str, label: str) -> None:
        self.page.click(f"#{name} label:has-text('{label}')")

    def shown(self) -> tuple[str, ...]:
        """Addresses of the pictures before and after."""
        return tuple(image.get_attribute("src") for image in self.page.query_selector_all("#result img"))

    def after(self) -> np.ndarray:
        """The edited picture's pixels."""
        return self.pixels(self.shown()[1])

    def pixels(self, source: str) -> np.ndarray:
        with httpx.stream("GET", source, trust_env=False) as answer:
            return np.asarray(Image.open(Buffer(answer.read())).convert("RGB"))
