"""Evaluations that are killed and started again: what was finished is not made again, and the figures are the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.backbone import Backbone
from tests.processes import kill_when, run, start
from tests.test_instructive import save_widened
from tests.tiny_editing import save_tiny_judges, tiny_pipeline

MINIATURE = Path("models/miniature")
COMMANDS = (
    pytest.param("scenes", marks=pytest.mark.long),
    pytest.param("many_step", marks=pytest.mark.long),
    "ablation",
    pytest.param("null_text_ablation", marks=pytest.mark.long),
    pytest.param("inversion_guidance", marks=pytest.mark.long),
    pytest.param("style_transfer", marks=pytest.mark.long),
    pytest.param("style_claims", marks=pytest.mark.long),
    "caption_accuracy",
)
MEASURED_TIME = ("seconds", "minutes", "about")
"""Entries that no two runs share."""


Options = dict[str, list[str]]


@pytest.fixture(scope="module")
def options(tiny_backbone: str, tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options of each command for a run of a few seconds."""
    root = tmp_path_factory.mktemp("models")
    pipeline = tiny_pipeline(tiny_backbone)
    for folder, timesteps in (("one_step", "999"), ("two_steps", "999 499")):
        pipeline.register_to_config(timesteps=timesteps)
        pipeline.save_pretrained(root / folder)
    reader, clip = save_tiny_judges(root, pipeline.tokenizer)
    sd_reader, sd_clip = save_tiny_judges(
        root / "sd", Backbone.load(tiny_sd_backbone, parts=["text"]).text.tokenizers[0]
    )
    ours = [f"--attributes={reader}", f"--clip={clip}", "--num=1", "--batch=9"]
    many = [f"--backbone={tiny_sd_backbone}", "--num_steps=2"]
    judged = [f"--attributes={sd_reader}", f"--clip={sd_clip}"]
    return {
        "scenes": [
            *(f"--encoder={root / 'one_step'}", *ours),
            *("--num_validation=1", "--num_heldout=0", "--num_reconstructions=2"),
        ],
        "many_step": [*many, *judged, "--editors=[ddim]", "--num=1", "--num_validation=1", "--batch=9"],
        "ablation": [f"--encoder={root / 'two_steps'}", *ours, "--parts=[steps]", "--steps=[1, 2]"],
        "null_text_ablation": [*many, "--num=2", "--iterations=[0, 1]", "--variants=[null_text, null_text_global]"],
        "inversion_guidance": [*many, "--num=4", "--guidances=[1.0, 3.0]", "--batch=1"],
        "style_transfer": [*many, *judged, "--num=2", "--shares=[0.0, 0.5, 1.0]", "--schedule.iterations=1"],
        "style_claims": [
            *many,
            *judged,
            "--num=1",
            "--batch=9",
            "--parts=[swapped, one_word]",
            "--schedule.iterations=1",
        ],
        "caption_accuracy": [*many, f"--attributes={sd_reader}", "--num=8", "--guidances=[1.0, 2.0, 3.0]", "--batch=2"],
    }


@pytest.fixture(scope="module")
def instructive_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of eval.instructive, whose captioner and generator are the miniature's own."""
    root = tmp_path_factory.mktemp("models")
    tiny_pipeline(str(MINIATURE / "student")).save_pretrained(root / "student")
    save_widened(MINIATURE / "teacher", root / "instruct")
    return [
        *(f"--instruct={root / 'instruct'}", f"--encoder={root / 'student'}", f"--captioner={MINIATURE / 'llava'}"),
        *("--text_guidances=[2.0]", "--image_guidances=[1.0]", "--strengths=[1.0]"),
        *("--num_steps=1", "--num=1", "--num_validation=1"),
    ]


def names_of_finished(out: Path) -> set[str]:
    """Names of the records of the finished pieces."""
    return {path.name for path in (out / "kept").glob("[!.]*.json")}


def finished(out: Path) -> dict[str, tuple[int, bytes]]:
    """Records of the finished pieces with the time when they were written."""
    paths = {name: out / "kept" / name for name in names_of_finished(out)}
    return {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in paths.items()}


def figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Figures by their dotted name, without what no two runs share."""
    if any(word in name for word in MEASURED_TIME):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from figures(item, f"{name}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from figures(item, f"{name}.{index}")
    else:
        yield name, value


def results(out: Path) -> dict[str, Any]:
    """Figures of a finished evaluation."""
    (path,) = [path for name in ("results.json", "caption_accuracy.json") if (path := out / name).is_file()]
    return dict(figures(json.loads(path.read_text())))


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_evaluation_goes_on_and_ends_with_the_same_figures(command: str, options: Options, tmp_path: Path):
    kill_and_go_on(command, options[command], tmp_path)


@pytest.mark.long
def test_killed_instructive_goes_on_and_ends_with_the_same_figures(instructive_options: list[str], tmp_path: Path):
    kill_and_go_on("instructive", instructive_options, tmp_path)


def kill_and_go_on(command: str, options: list[str], folder: Path) -> None:
    """Kill an evaluation in the midst, start it again and set it against one that was never interrupted."""
    words = ["-m", f"eval.{command}", *options, "--device=cpu"]
    killed, whole = folder / "killed", folder / "whole"
    first = start(*words, f"--out={killed}")
    kill_when(lambda: len(names_of_finished(killed)) >= 2, first)
    before = finished(killed)
    assert not (killed / "index.html").exists() and not (killed / "caption_accuracy.json").exists()
    said = run(*words, f"--out={killed}").stderr
    assert f"pieces are there already ({killed / 'kept'})" in said
    after = finished(killed)
    assert before == {name: after[name] for name in before}, "what was finished is not made again"
    assert len(after) > len(before)
    run(*words, f"--out={whole}")
    assert set(finished(whole)) == set(after)
    assert len(results(whole)) > 5 and results(killed) == results(whole)
