"""Objectives side by side: figures over scenes and seeds, and the command that trains every row, killed and resumed."""

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.jobs.command import parse, read_config, to_yaml
from eval.metrics.intervals import Interval
from eval.objectives.encoders import BASELINE
from eval.objectives.figures import GAIN, SeedFigure, TrainedObjective, objective_figures
from eval.objectives.page import write_objectives_page
from tests.objective_records import record
from tests.processes import kill_when, run, start, wait_for
from train.methods.turboedit.config import TurboEditConfig
from train.objectives import ObjectiveTraining, compare_objectives

ROWS = sorted(Path("configs/turboedit/ablation").glob("*.yaml"))


def test_with_one_seed_the_interval_is_that_over_scenes():
    values = np.random.default_rng(0).normal(size=(1, 40))
    scenes = Interval.of(values[0].tolist())
    assert SeedFigure.of(values) == SeedFigure(scenes.mean, scenes.low, scenes.high, (scenes.mean,))


def test_seeds_widen_the_interval_by_their_standard_error():
    values = np.array([1.0, 2.0, 3.0])[:, None] + np.zeros((3, 40))
    found = SeedFigure.of(values)
    assert found.by_seed == (1, 2, 3) and found.value == 2
    assert found.high - 2 == pytest.approx(2 - found.low) == pytest.approx(1.96 / math.sqrt(3), rel=1e-3)


def test_scenes_that_do_not_count_are_left_out():
    values = np.array([[1.0, np.nan, 3.0], [1.0, np.nan, 3.0]])
    assert SeedFigure.of(values).value == 2
    assert math.isnan(SeedFigure.of(np.full((2, 3), np.nan)).value)


def test_a_row_that_keeps_two_decibels_more_gains_two_decibels():
    rows = [TrainedObjective(name, {s: record(s, gain) for s in (0, 1)}) for name, gain in (("base", 0), ("better", 2))]
    found = objective_figures(rows, "base")
    assert found["rows"]["base"]["figures"][GAIN]["value"] == pytest.approx(0)
    better = found["rows"]["better"]
    assert better["figures"][GAIN]["value"] == pytest.approx(2)
    for column in ("step_1", "step_2", "psnr_outside"):
        assert [better["differences"][column][key] for key in ("value", "low", "high")] == pytest.approx([2, 2, 2])
    assert better["differences"]["changed"]["value"] == 0
    assert better["figures"]["std_999"]["by_seed"] == [0.9, 0.9]
    assert better["figures"]["minutes"]["value"] == 1.5
    assert GAIN not in found["references"][BASELINE] and found["vae"]["value"] == 34


def test_what_longer_training_buys_is_drawn_where_trainings_differ_in_length(tmp_path: Path):
    def page(samples: list[int]) -> str:
        rows = [
            TrainedObjective("base", {0: record(0)}),
            TrainedObjective("long", {0: {**record(1, 2.0), "minutes": 60.0}}),
        ]
        results = objective_figures(rows, "base") | {
            "about": {
                "rows": "rows",
                "seeds": [0],
                "steps": [1],
                "samples": samples,
                "planned": 2,
                "done": 2,
                "scenes": {"num": 1, "num_reconstructions": 1},
            }
        }
        return write_objectives_page(tmp_path, results, {}).read_text()

    assert "What longer training buys" not in page([2000, 2500])
    drawn = page([2000, 24000])
    assert (
        drawn.count("minutes of training") == 2 * 2 * 3
    )  # of two drawings: the axis' name, and words for who does not see
    assert "VAE&#39;s round trip: 34.0" in drawn and "step 2: 22.0 after 60.0 min" in drawn
    assert "PSNR outside, less base (dB)" in drawn and "<title>long: +2.0" in drawn


def test_only_common_seeds_are_compared():
    one, two = (TrainedObjective(str(seeds), {s: record(s) for s in seeds}) for seeds in ((0, 1), (1, 2)))
    assert len(one.differences(two)["step_1"].by_seed) == 1
    assert one.differences(TrainedObjective("none", {5: record(5)})) == {}


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_rows_of_the_ablation_are_read_and_say_what_they_change(path: Path):
    config = read_config(TurboEditConfig, path)
    assert config.generator.path == "models/miniature/student" and config.optim.lr == 6e-4
    assert path.read_text().startswith("# ") and "\n# Measured" in path.read_text()
    own = yaml.safe_load(path.read_text())
    assert path.stem == "baseline" or own["base"] in ("baseline.yaml", "../miniature.yaml")
    assert path.stem == "baseline" or set(own) <= {"base", "objective", "run", "optim"}


def test_a_rows_work_is_known_by_its_options_alone(tmp_path: Path):
    path = tmp_path / "row.yaml"
    path.write_text("base: base.yaml\nobjective: {own_share: 0.5}\n")
    (tmp_path / "base.yaml").write_text("run: {folder: x, steps: 7}\ndata: {shards: y}\ngenerator: {path: z}\n")
    first = ObjectiveTraining.of(path, 0, None, None)
    assert first.steps == 7 and ObjectiveTraining.of(path, 0, 3, None).steps == 3
    path.write_text("base: base.yaml\nobjective:\n  own_share: 0.50  # a half\n")
    assert ObjectiveTraining.of(path, 0, None, None).settings == first.settings
    (tmp_path / "base.yaml").write_text("run: {folder: x, steps: 8}\ndata: {shards: y}\ngenerator: {path: z}\n")
    assert ObjectiveTraining.of(path, 0, None, None).settings != first.settings


def test_a_folder_without_the_baseline_is_refused(tmp_path: Path):
    (tmp_path / "row.yaml").write_text("run: {folder: x}\ndata: {shards: y}\ngenerator: {path: z}\n")
    with pytest.raises(ValueError, match=r"--baseline baseline: .* has no baseline.yaml; it has row"):
        compare_objectives(tmp_path, tmp_path / "out")


@pytest.mark.long
def test_every_row_is_trained_and_measured_though_it_is_killed(turboedit_words: list[str], tmp_path: Path):
    rows, out = tmp_path / "rows", tmp_path / "out"
    rows.mkdir()
    config = parse(TurboEditConfig, ["--run.folder=x", *turboedit_words, "--log.preview_every=0"])
    (rows / "baseline.yaml").write_text(to_yaml(config))
    (rows / "own.yaml").write_text("base: baseline.yaml\nobjective: {own_share: 1.0}\n")
    sizes = ("--num=1", "--num_validation=1", "--num_reconstructions=9", "--batch=9", "--clip=null")
    words = ("-m", "train.objectives", rows, out, "--seeds=0", "--steps=2", *sizes)

    kill_when(lambda: len(list((out / "runs").glob("*"))) == 2, start(*words))
    [first] = (out / "encoders").glob("baseline-*.json")
    before = first.stat().st_mtime_ns
    baselines = {path.name for path in (out / "kept").glob("ddpm_residual-*.json")}
    run(*words)

    assert first.stat().st_mtime_ns == before
    assert {path.name.split("-")[0] for path in (out / "encoders").glob("*.json")} == {"baseline", "own"}
    assert baselines == {path.name for path in (out / "kept").glob("ddpm_residual-*.json")}
    assert len(baselines) == 2  # on validation and on test edits
    [other] = (out / "runs").glob("own-*")
    assert yaml.safe_load((other / "config.yaml").read_text())["objective"]["own_share"] == 1
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == ["baseline", "own"] and results["about"]["done"] == 2
    assert set(results["rows"]["own"]["differences"]) >= {"step_4", "changed", "kept", "psnr_outside"}
    with (out / "table.csv").open() as file:
        assert {row["row"] for row in csv.DictReader(file)} == {"baseline", "own"}
    page = (out / "index.html").read_text()
    assert "own_share: 1.0" in page and "2 of 2 trainings are done" in page


STARTER = """
import multiprocessing, time
from data.jobs.forked import start_command
multiprocessing.set_forkserver_preload([])  # what would be imported makes no difference here
print(start_command("http.server", "0", "--bind", "127.0.0.1").pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path):
    process = start("-c", STARTER, fresh=True)
    wait_for(lambda: "\n" in process.said()[0], process)
    pid = int(process.said()[0])
    assert alive(pid)
    process.kill()
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)
