"""The page of a PIE-Bench evaluation: what stands in it, and how it behaves in a browser."""

import base64
import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.pie import page as pie_page
from eval.pie.gallery import PageCase, PageEdit, Pictures, failure_ranks, small_uri
from eval.pie.page import affordable_side, case_rows, write_pie_page
from tests.browser import PHONE, Browser, Tab
from tests.pie_evaluation import NASTY, ROWS, make_cases, make_results

pytest_plugins = ["tests.browser"]

COUNT = 18
CARD, SLIDER = "#list .case", "#list .case input[type=range]"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[PageCase]:
    return make_cases(tmp_path_factory.mktemp("pictures"), COUNT)


@pytest.fixture(scope="module")
def page(cases: list[PageCase], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 18 cases and six rows."""
    return write_pie_page(tmp_path_factory.mktemp("page"), make_results(cases), cases)


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text("utf-8")


@pytest.fixture
def tab(page: Path, browser: Browser) -> Tab:
    return browser.open(page)


def embedded(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="cases">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def tables(text: str) -> list[str]:
    return re.findall(r"<table class=\"figures.*?</table>", text, re.DOTALL)


def plain(markup: str) -> str:
    """The words of a piece of HTML."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def with_change(cases: list[PageCase], row: str, **changes: Any) -> dict[str, Any]:
    results = make_results(cases)
    next(found for found in results["rows"] if found["row"] == row).update(changes)
    return results


# --- the file ------------------------------------------------------------------------------------------------------


def test_pages_keep_within_their_budget():
    edit = PageEdit("row", Path("a.png"), Path("b.png"), None, {})
    case = PageCase("0", "0", "", "", "", None, Path("s.png"), None, None, (edit,) * 28)
    assert affordable_side(256, [case] * 50) == 256
    assert 96 <= affordable_side(256, [case] * 700) < 160
    assert affordable_side(64, [case] * 700) == 64


def test_the_file_stands_alone(text):
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "@import" not in text and "url(" not in text
    assert not re.search(r"\bhttps?://", text)


def test_only_the_pages_own_script_may_run(text):
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy[1] and "default-src 'none'" in policy[1]


def test_captions_come_through_as_they_are(text):
    assert not any(caption in text for caption in NASTY)
    assert [case["source_prompt"] for case in embedded(text)["cases"][: len(NASTY)]] == list(NASTY)
    assert "needs a teacher: &lt;none&gt; was given" in text and "scenes, &lt;b&gt;not&lt;/b&gt; photographs" in text


def test_every_table_says_the_mask_and_has_every_row(text, cases):
    found = tables(text)
    assert len(found) >= 6
    assert all(re.search(r"<th[^>]*>(prompts<br>)?mask</th>", table) for table in found)
    published, corrected = found[:2]
    for table in (published, corrected):
        lines = [plain(f"<tr{line}") for line in table.split("<tr")]
        for title, mask, _ in ROWS.values():
            assert any(re.match(rf"{title} (a )?short {mask} ", line) for line in lines)
    assert "negative-prompt inversion, P2P" in published and "negative-prompt inversion, P2P" not in corrected


def test_means_errors_and_numbers_of_cases_are_those_of_the_results(text, cases):
    results = make_results(cases)
    row = next(row for row in results["rows"] if row["row"] == "sdedit")
    for form, table in zip(("published", "corrected"), tables(text)[:2], strict=True):
        line = plain(next(line for line in table.split("<tr") if "SDEdit" in line))
        for measure, scale in (("psnr", 1), ("mse", 1e4), ("ssim", 100), ("clip_whole", 1), ("structure", 1000)):
            found = row["forms"][form][measure]
            assert f"{scale * found['mean']:.2f} ± {scale * found['se']:.2f}" in line
        n = row["forms"][form]["psnr"]["n"]
        assert n < COUNT and f"n {n}" in line and line.rstrip().endswith(str(COUNT))
    assert row["forms"]["published"]["psnr"]["n"] < COUNT  # a style's mask leaves no background


def test_references_stand_apart_and_flags_below(text):
    published = tables(text)[0]
    methods, references, _ = (part.split("</tbody>")[0] for part in published.split("<tbody class=")[1:])
    assert all((title in references) == reference for title, _, reference in ROWS.values())
    assert "SDEdit<sup>a</sup>" in methods
    assert "<b>a</b>Stands where it should not.</li>" in text


def test_a_row_of_ours_whose_means_contradict_each_other_is_flagged(cases, tmp_path):
    results = make_results(cases)
    row = next(row for row in results["rows"] if row["row"] == "noise")
    row["forms"]["published"]["mse"]["mean"] /= 10
    text = write_pie_page(tmp_path, results, cases).read_text("utf-8")
    psnr = row["forms"]["published"]["psnr"]["mean"]
    assert f"and {psnr:.2f} dB is given" in text
    line = next(line for line in tables(text)[0].split("<tr") if "random noise" in line)
    assert line.count('<span class="doubt">') == 1
    line = next(line for line in tables(text)[1].split("<tr") if "random noise" in line)
    assert "doubt" not in line


def test_measures_costs_and_truths_that_are_missing_are_dashes_or_no_table(cases, text, tmp_path):
    forms = {form: {"psnr": {"mean": 20.0, "se": None, "n": 1}} for form in ("published", "corrected")}
    truth = {"psnr": {"mean": 31.5, "se": 0.5, "n": 7}}
    results = with_change(
        cases, "turboedit", forms=forms, costs=None, truth=truth, failed=2, failures={"7": "too <wide>"}
    )
    page = write_pie_page(tmp_path, results, cases).read_text("utf-8")
    assert "Against the true edit" in page and "Against the true edit" not in text
    assert "2 edits failed and are in no mean. The first: too &lt;wide&gt;" in page
    times = next(table for table in tables(page) if "NFE" in table)
    assert "SDEdit" in times and ">TurboEdit<" not in times


def test_instructive_rows_have_a_table_with_instructive_published_rows(cases, tmp_path):
    results = with_change(cases, "turboedit_given", prompts="instructive")
    text = write_pie_page(tmp_path, results, cases).read_text("utf-8")
    descriptive, instructive = text.split("Instructive prompts</h2>")
    assert "MagicBrush" in tables(instructive)[0] and "MagicBrush" not in tables(descriptive)[0]
    assert "TurboEdit, given mask" in tables(instructive)[0] and "TurboEdit, given mask" not in tables(descriptive)[0]


def test_every_different_picture_is_in_the_page_once(text, cases):
    files = [
        path
        for case in cases
        for path in (
            case.source,
            case.mask,
            case.truth,
            *(p for e in case.edits for p in (e.image, e.reconstruction, e.mask)),
        )
        if path is not None
    ]
    different = {path.read_bytes() for path in files}
    assert len(different) < len(files)
    assert len(re.findall(r'<script type="text/plain" id="picture-\d+">data:image/', text)) == len(different)


def test_pictures_are_made_small_and_masks_stay_black_and_white():
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (300, 600, 3), np.uint8))
    mask = Image.fromarray(rng.random((300, 600)) < 0.5)
    for picture, kind in ((photograph, "webp"), (mask, "png"), (photograph.crop((0, 0, 64, 64)), "png")):
        head, data = small_uri(picture, 256).split(",")
        assert head == f"data:image/{kind};base64"
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        assert max(small.size) <= 256
        if picture is mask:
            assert small.size == (256, 128) and set(np.unique(np.asarray(small.convert("L")))) == {0, 255}
        if max(picture.size) <= 64:
            assert np.array_equal(np.asarray(small), np.asarray(picture))


def test_a_file_that_is_no_picture_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify"):
        Pictures(64).number(tmp_path / "a.png")


def test_an_edit_of_an_unknown_row_is_an_error(cases, tmp_path):
    results = make_results(cases)
    results["rows"] = [row for row in results["rows"] if row["row"] != "noise"]
    with pytest.raises(ValueError, match="edits of noise; results have the rows turboedit"):
        write_pie_page(tmp_path, results, cases)


def test_large_pages_are_warned_of(cases, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    write_pie_page(tmp_path, make_results(cases[:2]), cases[:2])
    assert [record.levelname for record in caplog.records] == ["INFO"]
    monkeypatch.setattr(pie_page, "LARGE_MB", 0.01)
    write_pie_page(tmp_path, make_results(cases[:2]), cases[:2])
    assert caplog.records[-1].levelname == "WARNING" and "MB for 2 cases at 256 px" in caplog.text


# --- rows and ranks ------------------------------------------------------------------------------------------------


def one_case(key: str, **values: Mapping[str, float]) -> PageCase:
    """A case with rows that have only the values that decide over failures."""
    path = Path("none.png")
    edits = tuple(PageEdit(row, path, None, None, {"published": found}) for row, found in values.items())
    return PageCase(key, "1", "", "", "", None, path, None, None, edits)


def test_case_rows_have_one_line_for_each_edit_and_form(cases):
    rows = case_rows(cases)
    assert len(rows) == COUNT * len(ROWS) * 2
    first = cases[0].edits[0]
    assert rows[0] == {
        "row": "turboedit",
        "key": cases[0].key,
        "type": cases[0].type_id,
        "target_prompt": cases[0].target_prompt,
        "form": "published",
        **first.values["published"],
    }


def test_an_edit_fails_by_the_worse_of_background_and_text():
    edits = {
        "kept but nothing happened": (35.0, 20.0),
        "happened but all is lost": (10.0, 29.0),
        "good": (30.0, 28.0),
        "middling": (25.0, 26.0),
        "style": (float("nan"), 27.0),
        "nothing is known": (float("nan"), float("nan")),
    }
    ranks = failure_ranks([one_case(k, e={"psnr": psnr, "clip_whole": clip}) for k, (psnr, clip) in edits.items()])["e"]
    # Shares of the 4 PSNRs and of the 5 similarities: 1, 0, 2/3, 1/3 and 0, 1, 3/4, 1/4, 1/2.
    expected = [0, 0, 2 / 3, 1 / 4, 1 / 2, 0]
    assert list(ranks.values()) == pytest.approx(expected)


def test_text_counts_as_what_it_gains_over_the_untouched_picture():
    # The first prompt is easy for any picture: its edit is more similar, but gains less.
    easy = one_case("easy", e={"psnr": 20, "clip_whole": 29}, identity={"psnr": 100, "clip_whole": 29.5})
    hard = one_case("hard", e={"psnr": 20, "clip_whole": 24}, identity={"psnr": 100, "clip_whole": 20})
    assert failure_ranks([easy, hard])["e"] == {"easy": 0.0, "hard": 0.5}
    alone = [replace(case, edits=case.edits[:1]) for case in (easy, hard)]
    assert failure_ranks(alone)["e"] == {"easy": 0.5, "hard": 0.0}


# --- in a browser --------------------------------------------------------------------------------------------------


def keys(tab: Tab) -> list[str]:
    """The keys of the cards, in order."""
    return tab.page.locator(f"{CARD} h3").all_inner_texts()


def all_keys(tab: Tab) -> list[str]:
    """Of all pages."""
    found = keys(tab)
    following = tab.page.locator(".pages button").nth(1)
    while following.is_enabled():
        following.click()
        found += keys(tab)
    return found


def value(case: PageCase, row: str, measure: str, form: str = "published") -> float:
    return next(edit for edit in case.edits if edit.row == row).values[form][measure]


def check_quiet(tab: Tab) -> None:
    assert not tab.problems and not tab.requests


def test_the_page_is_quiet_and_every_picture_is_drawn(tab):
    assert len(keys(tab)) == 12
    broken = "images => images.filter(image => !(image.complete && image.naturalWidth && image.alt)).length"
    assert tab.page.locator("#list img").evaluate_all(broken) == 0
    tab.page.locator(".pages button").nth(1).click()
    assert keys(tab) == [f"{number:012d}" for number in range(12, COUNT)]
    assert tab.page.locator("#list img").evaluate_all(broken) == 0
    check_quiet(tab)


def test_nasty_captions_are_shown_as_text(tab):
    shown = tab.page.locator(f"{CARD} .texts dd:nth-of-type(1)").evaluate_all("all => all.map(one => one.textContent)")
    assert shown[: len(NASTY)] == list(NASTY)
    assert tab.page.locator(f"{CARD} script, {CARD} [onerror]").count() == 0
    check_quiet(tab)


def test_a_case_shows_all_its_pictures(tab, cases):
    tab.page.select_option("#editor", label="TurboEdit, given mask")
    names = tab.page.locator(CARD).first.locator(".thumbs.one figcaption").all_inner_texts()
    assert names == ["source", "reconstruction", "edit", "true edit", "annotated mask", "editor's mask"]
    tab.page.select_option("#editor", label="SDEdit")
    names = tab.page.locator(CARD).first.locator(".thumbs.one figcaption").all_inner_texts()
    assert names == ["source", "edit", "true edit", "annotated mask"]
    lines = tab.page.locator(CARD).first.locator(".values tbody tr").all_inner_texts()
    assert lines[1].split("\t") == [
        "PSNR dB",
        *(f"{value(cases[0], 'sdedit', 'psnr', form):.2f}" for form in ("published", "corrected")),
    ]
    assert lines[2].split("\t") == ["LPIPS ×10⁻³", "–", "–"]


def test_the_slider_uncovers_the_edit(tab, cases):
    tab.page.select_option("#editor", label="random noise (reference)")
    compare = tab.page.locator(f"{CARD} .compare").first
    compare.scroll_into_view_if_needed()
    box = compare.bounding_box()

    def picture_at(share: float) -> np.ndarray:
        """How the case looks with the line dragged there, as large as its picture was."""
        tab.page.mouse.click(box["x"] + share * box["width"], box["y"] + 0.9 * box["height"])
        tab.page.evaluate("document.querySelector('.compare .line').style.visibility = 'hidden'")
        shot = Image.open(io.BytesIO(compare.screenshot())).convert("RGB").resize((64, 64), Image.Resampling.BOX)
        return np.asarray(shot).astype(float)[4:-4, 4:-4]  # without the rounded corners

    def near(shot: np.ndarray, path: Path) -> bool:
        return (
            float(np.abs(shot - np.asarray(Image.open(path).convert("RGB"))[4:-4, 4:-4][:, : shot.shape[1]]).mean())
            < 12
        )

    source, edit = cases[0].source, next(found.image for found in cases[0].edits if found.row == "noise")
    assert near(picture_at(0.999), source)
    assert tab.page.locator(SLIDER).first.input_value() == "100"
    assert near(picture_at(0.001), edit)
    left = picture_at(0.5)[:, :24]
    assert near(left, source) and not near(left, edit)
    check_quiet(tab)


def test_the_slider_works_with_the_keyboard(tab):
    slider = tab.page.locator(SLIDER).first
    clip = "one => getComputedStyle(one.parentElement.querySelector('.after')).clipPath"
    before = slider.evaluate(clip)
    slider.focus()
    for _ in range(10):
        tab.page.keyboard.press("ArrowRight")
    assert slider.input_value() == "60" and slider.evaluate(clip) == "inset(0px 0px 0px 60%)" != before
    tab.page.keyboard.press("Home")
    assert slider.evaluate(clip) == "inset(0px 0px 0px 0%)"
    assert "Case 000000000000: source on the left, edit by TurboEdit" in slider.get_attribute("aria-label")
    outline = "one => getComputedStyle(one.parentElement).outlineStyle"
    assert slider.evaluate(outline) == "solid"
    tab.page.keyboard.press("Tab")
    assert slider.evaluate(outline) != "solid"
    assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_filters_leave_what_they_say(tab, cases):
    tab.page.select_option("#type", "3")
    expected = [case.key for case in cases if case.type_id == "3"]
    assert keys(tab) == expected and len(expected) == 2
    assert tab.page.locator("#found").inner_text() == "2 of 18 cases"
    assert tab.page.locator(".pages").first.is_hidden()
    assert tab.page.locator(f"{CARD} .rows .thumbs li").count() == 2 * len(ROWS)
    tab.page.select_option("#editor", label="SDEdit")
    assert keys(tab) == expected
    assert tab.page.locator(f"{CARD} .rows").first.is_hidden()
    assert tab.page.locator(f"{CARD} .right").all_inner_texts() == ["SDEdit", "SDEdit"]
    tab.page.select_option("#type", "")
    assert len(all_keys(tab)) == COUNT


def test_a_case_without_the_editor_is_not_shown_under_it(cases, browser, tmp_path):
    fewer = [replace(cases[0], edits=cases[0].edits[2:]), *cases[1:4]]
    tab = browser.open(write_pie_page(tmp_path, make_results(cases), fewer))
    assert len(keys(tab)) == 4
    tab.page.select_option("#editor", label="TurboEdit")
    assert keys(tab) == [case.key for case in cases[1:4]]
    check_quiet(tab)


def test_filters_work_with_the_keyboard(tab):
    tab.page.locator("#type").focus()
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.locator("#type").input_value() == "1" and len(keys(tab)) == 2
    tab.page.keyboard.press("Shift+Tab")
    tab.page.keyboard.type("SDE")
    assert tab.page.locator(f"{CARD} .right").all_inner_texts() == ["SDEdit", "SDEdit"]


@pytest.mark.parametrize(("measure", "higher"), [("psnr", True), ("mse", False), ("clip_whole", True)])
def test_sorting_by_a_measure_puts_the_worst_first(tab, cases, measure, higher):
    tab.page.select_option("#editor", label="SDEdit")
    tab.page.select_option("#sort", measure)
    known = [case for case in cases if value(case, "sdedit", measure) == value(case, "sdedit", measure)]
    expected = [case.key for case in sorted(known, key=lambda case: value(case, "sdedit", measure), reverse=not higher)]
    assert all_keys(tab)[: len(known)] == expected
    tab.page.select_option("#order", "best")
    assert all_keys(tab)[: len(known)] == expected[::-1]
    assert len(all_keys(tab)) <= COUNT


def test_sorting_over_all_editors_takes_the_mean_without_references(tab, cases):
    tab.page.select_option("#sort", "clip_whole")
    methods = [row for row, (_, _, reference) in ROWS.items() if not reference]
    means = {case.key: np.mean([value(case, row, "clip_whole") for row in methods]) for case in cases}
    assert all_keys(tab) == sorted(means, key=means.__getitem__)


def test_failures_come_first(tab, cases):
    ranks = failure_ranks(cases)
    tab.page.select_option("#editor", label="TurboEdit")
    tab.page.select_option("#sort", "failures")
    assert tab.page.locator("#order").is_disabled()
    found = [ranks["turboedit"][key] for key in all_keys(tab)]
    assert found == sorted(found) and found[0] < found[-1]
    tab.page.select_option("#editor", "")
    means = [np.mean([ranks[row][key] for row in ("turboedit", "turboedit_given", "sdedit")]) for key in all_keys(tab)]
    assert means == pytest.approx(sorted(means), abs=1e-3)
    # Each card opens with its worst edit.
    tab.page.select_option("#type", "1")
    titles = {row: title for row, (title, _, reference) in ROWS.items() if not reference}
    for key, shown in zip(keys(tab), tab.page.locator(f"{CARD} .right").all_inner_texts(), strict=True):
        assert shown == titles[min(titles, key=lambda row: ranks[row][key])]


def test_edits_that_gain_nothing_are_marked(tab, cases):
    tab.page.select_option("#editor", label="SDEdit")
    shown = dict(
        zip(
            keys(tab),
            tab.page.locator(f"{CARD} .failed").evaluate_all("all => all.map(one => !one.hidden)"),
            strict=True,
        )
    )
    expected = {
        case.key: value(case, "sdedit", "clip_whole") <= value(case, "identity", "clip_whole") for case in cases[:12]
    }
    assert shown == expected and set(expected.values()) == {True, False}


def test_a_button_shows_another_editor(tab):
    card = tab.page.locator(CARD).first
    card.get_by_role("button", name="SDEdit").focus()
    tab.page.keyboard.press("Enter")
    assert card.locator(".right").inner_text() == "SDEdit"
    assert card.locator("button[aria-pressed=true] .name").all_inner_texts() == ["SDEdit"]
    assert card.locator(".after").get_attribute("alt") == "edit by SDEdit"
    assert tab.page.locator(f"{CARD} .right").nth(1).inner_text() == "TurboEdit"
    card.get_by_role("button", name="true edit").click()
    assert card.locator(".right").inner_text() == "true edit"


def test_one_table_by_type_is_shown(tab):
    visible = tab.page.locator(".by-type:visible")
    assert visible.count() == 1 and visible.get_attribute("data-measure") == "psnr"
    tab.page.select_option("#type-measure", "clip_whole")
    tab.page.select_option("#type-form", "corrected")
    assert visible.count() == 1
    assert (visible.get_attribute("data-measure"), visible.get_attribute("data-form")) == ("clip_whole", "corrected")


def test_a_phone_shows_it_without_scrolling_sideways(page, browser):
    tab = browser.open(page, PHONE)
    for name in ("#sort", "#type-measure"):
        tab.page.locator(name).scroll_into_view_if_needed()
        assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    beyond = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).length"
    wide = tab.page.locator(f"{CARD} *").evaluate_all(beyond)
    assert wide == 0
    small = tab.page.locator("#controls select, .pages button").evaluate_all(
        "all => all.filter(one => one.offsetParent && one.getBoundingClientRect().height < 36).length"
    )
    assert small == 0
    assert tab.page.locator(f"{CARD} .compare").first.bounding_box()["width"] > 300
    tab.page.locator(f"{CARD} .compare").first.tap(position={"x": 90, "y": 90})
    assert int(tab.page.locator(SLIDER).first.input_value()) < 35
    check_quiet(tab)
