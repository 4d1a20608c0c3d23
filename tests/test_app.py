"""`python -m eval.app` in a real browser: a photograph comes in, is described, inverted, edited and saved."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

from data.world.render import render
from data.world.splits import sample_scene
from eval.photo_page.desk import load_desk
from eval.photo_page.layout import lay_out
from eval.photo_page.session import PutAway, Session
from eval.photo_page.wiring import Changes, Wiring
from tests.browser import DESKTOP, PHONE, Browser, Tab
from tests.caption_servers import free_port
from tests.processes import ROOT, Process, run, start
from tests.tiny_editing import tiny_pipeline

pytest_plugins = ["tests.browser"]

STUDENT, LLAVA = ROOT / "models/miniature/student", ROOT / "models/miniature/llava"
WAIT_SEC = 60
OF_GRADIO = "Method not implemented."
"""A warning of gradio's own client, when it ends the stream of an upload's progress."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export on the miniature, and photographs."""
    folder = tmp_path_factory.mktemp("app")
    tiny_pipeline(str(STUDENT)).save_pretrained(folder / "export")
    scene = Image.fromarray(render(sample_scene("test", 0, 3)))
    scene.resize((300, 200), Image.Resampling.BICUBIC).save(folder / "wide.png")
    scene.save(folder / "scene.png")
    (folder / "examples").mkdir()
    scene.save(folder / "examples/star.png")
    (folder / "examples/star.txt").write_text("a yellow star at night")
    (folder / "text.png").write_text("no picture")
    (folder / "large.png").write_bytes((folder / "scene.png").read_bytes() + bytes(51 * 2**20))
    return folder


def served(place: Path, *options: object) -> tuple[Process, str]:
    """The page as a process of its own, and its address, where it answers."""
    port = free_port()
    words = ("-m", "eval.app", "--encoder", os.path.relpath(place / "export", ROOT), "--port", port, *options)
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
        self.page.set_default_timeout(WAIT_SEC * 1000)
        self.page.wait_for_selector("#result")

    def until(self, happened: Callable[[], Any]) -> Any:
        """Waits until something is true; returns it."""
        deadline = time.monotonic() + WAIT_SEC
        while not (found := happened()):
            assert time.monotonic() < deadline, (self.figures(), self.tab.problems)
            self.page.wait_for_timeout(50)
        return found

    def figures(self) -> str:
        return self.page.inner_text("#figures")

    def text(self, name: str) -> str:
        return self.page.input_value(f"#{name} textarea")

    def write(self, name: str, text: str) -> None:
        self.page.fill(f"#{name} textarea", text)

    def press(self, name: str) -> None:
        self.page.click(f"#{name}")

    def take(self, path: Path) -> str:
        """Takes a photograph, and waits for its description."""
        self.page.set_input_files("#photograph input[type=file]", path)
        return self.until(lambda: self.text("description"))

    def take_example(self, number: int) -> str:
        self.page.click(f"#examples button >> nth={number}")
        return self.until(lambda: self.text("description"))

    def edit(self, target: str) -> None:
        """Edits, and waits for the edit."""
        self.write("target", target)
        self.changes(lambda: self.press("edit"))

    def changes(self, action: Callable[[], Any]) -> str:
        """Does something, and waits until the picture is another one; returns its address."""
        before = self.after()
        action()
        return self.until(lambda: self.after() != before and self.after())

    def move(self, value: float) -> None:
        """Moves the strength."""
        self.page.fill("#strength input[type=range]", str(value))

    def choose(self, mask: str) -> None:
        self.page.click(f"#mask label:has-text('{mask}')")

    def paint(self) -> None:
        """Paints a stroke to the right below the middle."""
        canvas = self.page.locator("#painter canvas")
        canvas.scroll_into_view_if_needed()
        self.until(lambda: canvas.evaluate("one => one.width > 1"))
        box = canvas.bounding_box()
        x, y = box["x"] + 0.55 * box["width"], box["y"] + 0.55 * box["height"]
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for step in range(1, 6):
            self.page.mouse.move(x + 0.05 * step * box["width"], y + 0.05 * step * box["height"])
        self.page.mouse.up()

    def after(self) -> str | None:
        """The address of the picture behind the slider."""
        images = self.page.query_selector_all("#result img")
        return images[1].get_attribute("src") if len(images) > 1 else None

    def save(self, folder: Path) -> list[str]:
        """Saves at full size, and downloads all files into a folder; returns their names."""
        self.press("save")
        self.page.wait_for_selector("#files a")
        sources = [link.get_attribute("href") for link in self.page.query_selector_all("#files a")]
        folder.mkdir()
        for source in sources:
            (folder / Path(source).name).write_bytes(httpx.get(source, trust_env=False).content)
        return sorted(path.name for path in folder.iterdir())

    def complaint(self) -> str:
        """The error that the page shows; it is taken away."""
        self.page.wait_for_selector(".toast-body")
        text = self.page.inner_text(".toast-body")
        self.page.click(".toast-close")
        self.page.wait_for_selector(".toast-body", state="detached")
        return text

    def assert_content(self) -> None:
        """The console is empty, and nothing of the outside was asked for."""
        assert [problem for problem in self.tab.problems if problem != OF_GRADIO] == []
        assert self.tab.requests == []


def made_again(folder: Path, name: str) -> Image.Image:
    """The picture that `eval.edit` makes by saved settings, typed where the files lie; it leaves them as they are."""
    saved = {path: path.read_bytes() for path in folder.iterdir()}
    run("-m", "eval.edit", "--config", f"{name}_saved.json", folder=folder, PYTHONPATH=str(ROOT))
    assert {path: path.read_bytes() for path in saved} == saved
    return Image.open(folder / f"{name}_edited_1.png")


def test_from_a_photograph_to_a_saved_edit(place: Path, address: str, browser: Browser, tmp_path: Path):
    user = User(browser, address)
    description = user.take(place / "wide.png")
    assert "star" in description
    user.press("invert")
    user.until(lambda: "8 evaluations" in user.figures())
    assert user.text("target") == description
    user.edit(description.replace("yellow", "blue"))
    assert "Edited" in user.figures() and "4 evaluations" in user.figures()
    weak = user.changes(lambda: user.move(0.5))
    strong = user.changes(lambda: user.move(1.4))
    assert weak != strong
    assert user.save(tmp_path / "saved") == ["wide_saved.json", "wide_saved.png"]
    shutil.copy(place / "wide.png", tmp_path / "saved")
    saved, again = Image.open(tmp_path / "saved/wide_saved.png"), made_again(tmp_path / "saved", "wide")
    assert saved.size == (300, 180)  # what the networks see of it
    assert np.array_equal(saved, again)
    user.assert_content()


def test_painted_masks_edits_on_edits_and_undo(address: str, browser: Browser, tmp_path: Path):
    user = User(browser, address)
    description = user.take_example(3)
    user.edit(description.replace("yellow", "blue"))
    user.choose("Painted")
    first = user.changes(user.paint)
    user.press("go_on")
    user.until(lambda: "Edit 1 is kept" in user.figures())
    assert user.text("description") == description.replace("yellow", "blue")
    user.edit(description.replace("yellow", "red"))
    second = user.changes(lambda: user.choose("Automatic"))
    names = user.save(tmp_path / "saved")
    assert names == ["scene_3.png", "scene_3_mask_1.png", "scene_3_saved.json", "scene_3_saved.png"]
    saved, again = Image.open(tmp_path / "saved/scene_3_saved.png"), made_again(tmp_path / "saved", "scene_3")
    assert np.array_equal(saved, again)
    settings = json.loads((tmp_path / "saved/scene_3_saved.json").read_text())
    assert settings["earlier"][0]["mask"] == "scene_3_mask_1.png" and settings["mask"] == "auto"

    assert user.changes(lambda: user.press("undo")) == first != second  # without the edit on show
    user.press("undo")  # and as before it was kept
    user.until(lambda: user.text("target") == description.replace("yellow", "blue"))
    assert user.after() == first
    assert user.text("description") == description
    assert user.page.is_checked("#mask input[value=painted]")
    user.assert_content()


def test_an_edit_with_a_painted_mask_keeps_the_photograph_outside(
    place: Path, address: str, browser: Browser, tmp_path: Path
):
    user = User(browser, address)
    description = user.take(place / "wide.png")
    user.edit(description.replace("yellow", "blue"))
    user.choose("Painted")
    user.changes(user.paint)
    user.save(tmp_path / "saved")
    mask = Image.open(tmp_path / "saved/wide_mask.png").resize((300, 200), Image.Resampling.NEAREST)
    outside = np.asarray(mask) == 0
    assert 0.5 < outside.mean() < 0.99
    photograph, saved = (
        np.asarray(Image.open(path)) for path in (place / "wide.png", tmp_path / "saved/wide_saved.png")
    )
    assert np.array_equal(photograph[outside], saved[outside])
    assert not np.array_equal(photograph, saved)


def test_an_instruction_becomes_an_edit_on_a_phone(address: str, browser: Browser):
    user = User(browser, address, PHONE)
    description = user.take_example(0)
    user.write("instruction", "make the square blue")
    user.changes(lambda: user.page.click("#instruction button"))
    assert user.text("target") != description
    user.page.click("#attributes button")
    user.page.click("#curious button")
    user.choose("Automatic")
    user.page.wait_for_selector("#places img")
    user.page.wait_for_selector("#noises img")
    assert user.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    user.assert_content()


def test_a_few_words_become_a_description(place: Path, address: str, browser: Browser):
    user = User(browser, address)
    user.take(place / "wide.png")
    user.write("description", "red star")
    user.press("add_details")
    user.until(lambda: user.text("description") != "red star")
    assert "'red star' was expanded" in user.page.inner_text("#notes")
    user.write("description", " ")
    user.press("add_details")
    assert "the description is empty" in user.complaint()
    user.assert_content()


def test_two_users_at_once(address: str, browser: Browser):
    """What one does shows in nothing of the other's page, and both get what they would get alone."""
    ann, bob = User(browser, address), User(browser, address)
    texts = [user.take_example(number) for user, number in ((ann, 3), (bob, 1))]
    for user, text in zip((ann, bob), texts, strict=True):
        user.write("target", text.replace("natural", "night") + ", blue")
    before = [user.after() for user in (ann, bob)]
    for user in (ann, bob):
        user.press("edit")
    for user, old in zip((ann, bob), before, strict=True):
        user.until(lambda user=user, old=old: user.after() != old)
    first = ann.after()
    for value in (0.2, 0.6, 1.5):
        bob.changes(lambda value=value: bob.move(value))
    assert ann.after() == first
    assert [user.text("description") for user in (ann, bob)] == texts
    ann.assert_content()
    bob.assert_content()


def test_work_that_is_stopped_leaves_the_page_as_it_was(address: str, browser: Browser):
    user = User(browser, address)
    description = user.take_example(2)
    user.press("stop")
    user.until(lambda: user.figures() == "Stopped.")
    user.write("target", description + ", blue")
    user.press("edit")
    user.press("stop")
    user.until(lambda: user.figures() == "Stopped.")
    user.write("target", description + ", green")

    def edited_again() -> bool:
        user.press("edit")  # which is not heard until the stop has reached the server
        user.page.wait_for_timeout(1000)
        return "Edited" in user.figures()

    user.until(edited_again)
    user.assert_content()


@pytest.mark.long
def test_a_new_photograph_ends_an_edit_by_an_instruction(place: Path, address: str, browser: Browser, tmp_path: Path):
    user = User(browser, address)
    user.take(place / "wide.png")
    user.write("instruction", "make the star blue")
    user.page.click("#instruction button")
    # Until the server has answered, gradio's client cancels by a name that it does not have, and reports a 422.
    user.until(lambda: "writes the target" in user.figures())
    shown = user.changes(lambda: user.page.set_input_files("#photograph input[type=file]", place / "scene.png"))
    user.until(lambda: "scene.png, 64 x 64 pixels" in user.figures())
    description = user.until(lambda: user.text("description"))
    user.page.wait_for_timeout(5000)  # in which the first edit would have been there
    assert user.after() == shown and user.text("target") == "" and user.page.is_disabled("#save")
    user.edit(description.replace("yellow", "red"))
    assert user.save(tmp_path / "saved") == ["scene_saved.json", "scene_saved.png"]
    user.assert_content()


def test_nothing_of_a_photograph_that_was_put_away_is_shown(place: Path):
    desk = load_desk(str(place / "export"), str(LLAVA), examples=place / "examples", device="cpu")
    with gr.Blocks():
        wiring = Wiring(desk, lay_out(desk.step_counts, [offered.path for offered in desk.offered], captioner=True))
    wishes = ("a blue star", 1.0, "none", 0.5, None)
    begun: list[Callable[[Session], Iterator[Changes]]] = [
        lambda session: wiring.describe(session),
        lambda session: wiring.add_details(session, "a star"),
        lambda session: wiring.write_target(session, "a yellow star", "make the star blue"),
        lambda session: wiring.invert(session, "a yellow star", 4),
        lambda session: wiring.edit(session, "a yellow star", 4, *wishes),
    ]
    for begin in begun:
        session = wiring.take_example(0, None)[wiring.controls.session]
        steps = begin(session)
        assert next(steps).keys() == {wiring.controls.figures}
        wiring.take_example(0, session)
        with pytest.raises(PutAway):
            next(steps)
    session = wiring.take_example(0, None)[wiring.controls.session]
    *_, last = wiring.invert(session, "a yellow star", 4)
    inverted = last[wiring.controls.session]
    wiring.put_away(inverted)
    with pytest.raises(PutAway):
        next(wiring.edit(inverted, "a yellow star", 4, *wishes))
    assert list(wiring.edit_written(None, "", 4, "", *wishes[1:])) == []


def test_an_export_of_another_method_is_refused_before_it_is_loaded(tmp_path: Path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["pipeline", "StyleDiffusionPipeline"]}))
    done = run("-m", "eval.app", "--encoder", tmp_path, status=1)
    assert f"python -m eval.edit --encoder {tmp_path}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_does_not_work_is_told(place: Path, address: str, browser: Browser):
    user = User(browser, address)
    user.press("edit")
    assert "there is no photograph yet" in user.complaint()
    user.page.set_input_files("#photograph input[type=file]", place / "text.png")
    assert "text.png is not a picture that can be read" in user.complaint()
    user.page.set_input_files("#photograph input[type=file]", place / "large.png")
    assert "50" in user.complaint()
    user.take_example(1)
    user.write("target", "")
    user.press("edit")
    assert "the target is empty" in user.complaint()
    assert user.tab.requests == []


def test_without_a_captioner_people_write_themselves(place: Path, browser: Browser):
    process, address = served(place, "--examples", place / "examples")
    try:
        user = User(browser, address)
        assert "No captioner" in user.page.inner_text("#description")
        assert user.page.is_disabled("#instruction textarea")
        user.page.set_input_files("#photograph input[type=file]", place / "scene.png")
        user.until(lambda: "scene.png, 64 x 64 pixels" in user.figures())
        user.write("target", "a blue star")
        user.press("edit")
        assert "the description is empty" in user.complaint()
        assert user.take_example(0) == "a yellow star at night"
    finally:
        process.kill()


def test_missing_gradio_is_told_in_a_line(place: Path):
    code = (
        f"import sys; sys.modules['gradio'] = None; from eval.app import main; main(['--encoder={place / 'export'}'])"
    )
    done = run("-c", code, status=1)
    assert done.stderr.splitlines()[-1] == "eval.app: gradio is not installed; pip install '.[app]' brings it"
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told(place: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("-m", "eval.app", "--encoder", place / "export", "--port", port, status=1)
    assert f"--port {port}" in done.stderr.splitlines()[-1]


def test_make_app_asks_for_the_demo(tmp_path: Path):
    done = subprocess.run(["make", "-f", ROOT / "Makefile", "app"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "make demo makes it" in done.stderr.splitlines()[0]
