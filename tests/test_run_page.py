"""The page of a training run: from a real small run, with and without held-out figures, of several runs, of none."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.browser import DESKTOP, PHONE, SMALL_LETTERS, Browser
from tests.tiny_training import tiny_config, train, write_latents
from train.report import main
from train.reports.figures import best, chart_groups, compared, thinned
from train.reports.page import ABOUT, previews, write_run_page
from train.reports.records import read_records
from train.run.config import FitConfig

pytest_plugins = ["tests.browser"]

OPTIONS = ("--run.steps=12", "--log.log_every=2", "--log.preview_every=5", "--log.checkpoint_every=100")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run of 12 steps with its page, as the training left it."""
    root = tmp_path_factory.mktemp("finished")
    config = tiny_config(write_latents(root / "shards"), root / "small", *OPTIONS)
    train(config)
    return root / "small"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(finished, tmp_path / "small")


def with_held_out(run: Path, **log: str) -> Path:
    """The run with figures of held-out samples, whose best PSNR is that of step 6, and with options of the log."""
    with (run / "metrics.jsonl").open("a") as file:
        for step, psnr in ((0, 10.0), (6, 30.0), (12, 20.0)):
            figures = {"psnr_1": psnr - 5, "psnr_2": psnr, "changed": step / 20, "kept": None, "odd": 5.0 - step}
            figures |= {f"latent_mse/t{t}": 1 / (psnr + t) for t in (999, 249)}
            file.write(json.dumps({"step": step, **{f"valid/{name}": value for name, value in figures.items()}}) + "\n")
    if log:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["log"] |= log
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return run


def charts(run: Path) -> dict[str, dict[str, list[str]]]:
    """The lines of each chart by group."""
    return {
        group.title: {figure.title: [line.name for line in figure.lines] for figure in group.figures}
        for group in chart_groups(read_records(run))
    }


def test_a_training_leaves_its_page(finished: Path):
    page = (finished / "report/index.html").read_text()
    assert "Finished: all 12 steps are done." in page and "<b>12</b><i>of 12</i>" in page
    found = charts(finished)
    assert list(found) == ["Objective", "Training", "Further figures"]
    assert found["Objective"] == {"Loss": ["loss", "mse", "size"]}
    assert {"Learning rate", "Norm of the gradient, before clipping", "Samples a second"} < set(found["Training"])
    assert found["Further figures"]["Error"] == ["all", "low", "high"]
    assert page.count("<svg") == sum(map(len, found.values()))
    assert page.count("data:image/jpeg") == 4 and 'alt="Preview at step 5, a row for each sample; columns: lat' in page
    assert "global_batch: 8" in page and "://" not in page.replace("http://www.w3.org", "")


def test_previews_say_what_their_columns_are(finished: Path):
    shown = previews(read_records(finished))
    assert [preview.step for preview in shown] == [0, 5, 10, 12]
    assert all(preview.columns == ("latent", "network") for preview in shown)
    with Image.open(finished / "samples/step-000005.png") as picture:
        assert json.loads(picture.info[ABOUT])["top"] == 20


def test_a_picture_of_an_earlier_version_is_shown_as_it_is(run: Path):
    for number in range(12):
        Image.new("RGB", (2048, 300)).save(run / f"samples/step-{100 + number:06d}.png")
    shown = previews(read_records(run))
    assert len(shown) == 10 and (shown[0].step, shown[-1].step) == (0, 111)
    assert shown[-1].columns == () and len(shown[-1].uri) < 20_000


def test_held_out_figures_have_charts_and_their_best_step_is_marked(run: Path):
    found = charts(with_held_out(run))["Held-out pictures"]
    assert found["PSNR to the VAE's round trip, dB"] == ["after step 1", "after step 2"]
    assert found["Latent MSE"] == ["t = 999", "t = 249"] and "Kept" not in found
    records = read_records(run)
    lines = {line.name: line for figure in chart_groups(records)[0].figures for line in figure.lines}
    assert [lines[name].best for name in ("after step 2", "t = 249", "valid/changed", "valid/odd")] == [1, 1, 2, None]
    chosen = best(records)
    assert chosen is not None and (chosen.step, chosen.value) == (6, 30.0)
    main([str(run)])
    page = (run / "report/index.html").read_text()
    assert "best at step 6: PSNR to the VAE&#39;s round trip, dB: after step 2" in page
    assert len(re.findall(r'r="6.5"', page)) == 5  # both PSNR, both latent MSE, changed


def test_the_figure_of_log_best_decides(run: Path):
    chosen = best(read_records(with_held_out(run, best="valid/odd", best_is="lowest")))
    assert chosen is not None and (chosen.step, chosen.value) == (12, -7.0)


def test_where_a_run_stands(run: Path):
    def state(steps: int, limit: str) -> str:
        config = re.sub(r"steps: \d+", f"steps: {steps}", (run / "config.yaml").read_text(), count=1)
        (run / "config.yaml").write_text(re.sub(r"time_limit_min: .*", f"time_limit_min: {limit}", config))
        return read_records(run).state

    assert state(12, "null") == "Finished: all 12 steps are done."
    assert state(9000, "null").startswith("At step 12 of 9,000: running, or stopped")
    assert state(9000, "1000").startswith("At step 12 of 9,000")
    assert state(9000, "0.000001").startswith("Stopped by the clock: run.time_limit_min is 1e-06, at step 12 of 9,000.")


def test_one_line_is_enough_and_one_that_is_being_written_is_left_out(run: Path):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:50])
    (run / "timing.jsonl").unlink()
    (run / "environment.json").unlink()
    shutil.rmtree(run / "samples")
    page = write_run_page(read_records(run), run / "report").read_text()
    assert "<b>2</b><i>of 12</i>" in page and "Previews" not in page and page.count("<svg") > 3


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", None, "is not a run folder: it has no config.yaml"),
        ("metrics.jsonl", None, "has no line of metrics.jsonl yet"),
        ("metrics.jsonl", "", "has no line of metrics.jsonl yet"),
        (
            "metrics.jsonl",
            '{"step": 2, "loss": 1}\n{"loss": 1}\n',
            "metrics.jsonl, line 2: expected a JSON object",
        ),
        ("metrics.jsonl", "[1]\n", "metrics.jsonl, line 1: expected a JSON object with its step, not [1]"),
    ],
)
def test_a_folder_that_gives_no_page_is_told(run: Path, name: str, content: str | None, told: str):
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(SystemExit) as ended:
        main([str(run)])
    assert told in str(ended.value)


def test_runs_are_drawn_on_top_of_each_other(
    finished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("lr: 0.0001", "lr: 0.001"))
    with_held_out(run)
    main([str(run), "--against", str(other), str(finished), "--out", str(tmp_path / "both")])
    assert capsys.readouterr().out == f"page: {tmp_path / 'both/index.html'}\n"
    page = (tmp_path / "both/index.html").read_text()
    assert "optim.lr: 0.0001 -&gt; 0.001" in page
    assert page.count("<tr><td>") == 3 and "/small differs from " in page  # two are called "small"
    assert f"{finished.parent.name}/small differs from {run.parent.name}/small" in page and str(run) not in page
    held_out, training = compared({"small": read_records(run), "other": read_records(other)})
    assert all([line.name for line in figure.lines] == ["small"] for figure in held_out.figures)
    assert {"Latent MSE: t = 999", "Latent MSE: t = 249", "Changed"} < {figure.title for figure in held_out.figures}
    assert "Error: low" not in {figure.title for figure in training.figures}
    assert all([line.name for line in figure.lines] == ["small", "other"] for figure in training.figures)


def test_a_run_against_itself_is_refused(run: Path):
    with pytest.raises(SystemExit) as ended:
        main([str(run), "--against", f"{run}/../small"])
    assert "--against names a run twice" in str(ended.value)


def test_a_page_that_cannot_be_written_stops_no_training(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config: FitConfig = tiny_config(finished.parent / "shards", tmp_path / "run", "--run.steps=2", "--log.log_every=1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/report").write_text("a file in the place of the folder")
    with caplog.at_level(logging.WARNING):
        assert train(config).step == 2
    assert "the page of the run was not written" in caplog.text


def test_long_curves_are_thinned_to_their_means():
    curve = [(step, float(step % 2)) for step in range(1, 1001)]
    short = thinned(curve, 100)
    assert len(short) == 100 and short[-1][0] == 1000 and {value for _, value in short} == {0.5}
    assert thinned(curve[:100], 100) == curve[:100]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_legible_and_whole(run: Path, browser: Browser, size: dict[str, int]):
    tab = browser.open(write_run_page(read_records(with_held_out(run)), run / "report"), size)
    page = tab.page
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate(SMALL_LETTERS) == []
    assert page.locator("svg[role=img]:not([aria-label])").count() == page.locator("img:not([alt])").count() == 0
    shown = page.locator("figure.sheet:visible")
    assert shown.count() == 1 and shown.get_attribute("id") == "sheet-12"
    page.locator("label[for=preview-5]").click()
    assert shown.count() == 1 and shown.get_attribute("id") == "sheet-5"
    assert tab.problems == [] and tab.requests == []
