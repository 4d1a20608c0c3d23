"""Every kind of page on a phone, in light and dark: width, letters, contrast, pictures, values, and what it loads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.pages.page import counted, parts_of_page, short_paths
from tests.browser import PHONE, SMALL_LETTERS, Browser, Tab
from tests.page_examples import PAGES, PLACE
from tests.self_contained import check_stands_alone

pytest_plugins = ["tests.browser"]

LEAST_CONTRAST = 4.5
FAINT = """(least) => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (colour) => rgba(colour).slice(0, 3)
        .map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, n) => sum + value * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return rgba(colour)[3] || !element.parentElement ? colour : behind(element.parentElement);
    };
    const faint = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || element.closest('title, .compare') || element.disabled || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const both = [light(element.closest('svg') ? style.fill : style.color), light(behind(element))];
        const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        if (contrast < least) faint.push(`${contrast.toFixed(2)}: ${element.textContent.trim().slice(0, 40)}`);
    }
    return faint;
}"""
"""What is written in a colour too near to that behind it (WCAG 2.1, contrast)."""

COVERED = """() => {
    const drawings = [...document.querySelectorAll('.chart svg')].filter((svg) => svg.checkVisibility());
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2;
    const covered = [];
    for (const svg of drawings) {
        const found = [...svg.querySelectorAll('text:not(.small)')].map((one) => [one, one.getBoundingClientRect()]);
        for (const [number, [one, box]] of found.entries()) {
            if (box.left < -1 || box.right > innerWidth + 1) covered.push(`outside: ${one.textContent}`);
            for (const [other, its] of found.slice(number + 1)) {
                if (meet(box, its)) covered.push(`${one.textContent} | ${other.textContent}`);
            }
        }
    }
    return covered;
}"""
"""Words of charts that lie over each other, or beyond the window."""


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PAGES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def tab(page: Path, browser: Browser) -> Iterator[Tab]:
    """The page on a phone with everything unfolded; nothing is loaded from elsewhere and nothing goes wrong."""
    tab = browser.open(page, PHONE)
    tab.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    yield tab
    assert tab.problems == [] and tab.requests == []


def test_a_page_on_a_phone(page: Path, tab: Tab):
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        assert tab.page.evaluate(FAINT, LEAST_CONTRAST) == [], scheme
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert tab.page.evaluate(SMALL_LETTERS) == [] and tab.page.evaluate(COVERED) == []
    assert tab.page.locator("img:not([alt]), img[alt=''], svg[role=img]:not([aria-label])").count() == 0
    words = tab.page.inner_text("body")
    assert not re.search(r"(?<![\w.])/\w+/\w", words) and "someone" not in words
    assert not re.search(r"\b1 (\w+ )?(edits|cases|scenes|steps|pairs|images|pictures|shards|samples|types)\b", words)
    values_are_read(tab)
    pictures_are_compared(tab)
    check_stands_alone(page)


def values_are_read(tab: Tab) -> None:
    """The first chart tells its values to keys and to a finger."""
    chart = tab.page.locator(".chart:has(title)").first
    if not chart.count():
        return
    drawing = chart.locator("svg:visible")
    told = drawing.locator("title").evaluate_all("all => all.map(one => one.textContent)")
    drawing.focus()
    tab.page.keyboard.press("ArrowRight")
    assert chart.locator(".reading").inner_text() == told[0]
    tab.page.keyboard.press("End")
    assert chart.locator(".reading").inner_text() == told[-1]
    drawing.tap(position={"x": 5, "y": 5})
    assert chart.locator(".reading").inner_text() in told


def pictures_are_compared(tab: Tab) -> None:
    """A picture opens beside the others of its row, with its pixels, and keys move the line over it."""
    pictures = tab.page.locator("button.open:visible")
    if not pictures.count():
        return
    second = pictures.nth(min(1, pictures.count() - 1))
    second.focus()
    tab.page.keyboard.press("Enter")
    dialog = tab.page.locator("dialog[open]")
    assert dialog.locator("img.after").get_attribute("alt") == second.locator("img").get_attribute("alt")
    assert dialog.locator("img.after.pixelated").count() == 1
    if pictures.count() > 1:
        dialog.locator("input").focus()
        tab.page.keyboard.press("ArrowRight")
        assert dialog.locator("input").input_value() == "51"
        assert dialog.locator(".compare").evaluate("one => getComputedStyle(one).getPropertyValue('--at')") == "51%"
    tab.page.keyboard.press("Escape")
    assert dialog.count() == 0


def test_paths_are_shortened_and_nothing_else():
    assert short_paths(f"{PLACE}/export") == "demo/export" and short_paths("~/runs/demo/export/") == "demo/export"
    for text in ("stabilityai/sdxl-turbo", "models/miniature", "24.4 / 27.3", "kept 3/4 of them", "http://host/a/b"):
        assert short_paths(text) == text
    assert short_paths("LPIPS of /data/weights/alex.pth, squeeze") == "LPIPS of weights/alex.pth, squeeze"


def test_numbers_agree_with_their_nouns():
    assert [counted(n, "edit") for n in (0, 1, 1200)] == ["0 edits", "1 edit", "1,200 edits"]


def test_headings_can_be_jumped_to():
    parts = parts_of_page('<h2>A &amp; b</h2><h2 id="own">C <small>d</small></h2><h2>A &amp; b</h2>')
    assert parts.links == [("a-b", "A & b"), ("own", "C d"), ("a-b-", "A & b")]
    assert '<h2 id="a-b">A &amp; b</h2><h2 id="own">' in parts.body
