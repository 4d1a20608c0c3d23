"""Composites: objects on photographs whose edits are known exactly, in PIE-Bench's layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data.composites import write_composites
from data.compositing.colours import HUES, colour_of, recoloured, to_levels, to_linear
from data.compositing.edits import KINDS
from data.compositing.wording import can_be_coloured, coloured, head_noun, marked, noun_phrase
from eval.metrics.networks import MetricModels
from eval.pie.cases import read_pie_bench
from eval.pie.edits import read_pixels
from eval.pie.metrics import PieMetrics
from tests.processes import kill_when, start

NUM = 2
PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "world" / "photographs"
OPTIONS = {"resolution": 128, "shapes": "buckets", "leave_out": ["cartoon"], "seed": 1}


def draw_object(path: Path, colour: str, caption: str | None, side: int = 80) -> None:
    """A disc with a darker foot, and its caption as a drawing program has it: English first, then other languages."""
    picture = Image.new("RGBA", (side, side))
    ImageDraw.Draw(picture).ellipse((side // 8, side // 8, side - side // 8, side - side // 4), fill=colour)
    ImageDraw.Draw(picture).rectangle((side // 3, side // 2, side // 2, side - 2), fill=colour)
    path.parent.mkdir(exist_ok=True)
    picture.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Ein Ding.\n")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    draw_object(folder / "fruit" / "apple.png", "#c03028", "An apple.")
    draw_object(folder / "fruit" / "pear.png", "#50a040", "A pear.")
    draw_object(folder / "stone.png", "#808080", "A stone for building walls.")
    draw_object(folder / "cartoon" / "duck.png", "#e0c020", "A duck.")
    draw_object(folder / "nameless.png", "#c03028", None)
    draw_object(folder / "tiny.png", "#c03028", "A pea.", side=8)
    Image.new("RGB", (80, 80)).save(folder / "opaque.png")
    (folder / "opaque.txt").write_text("A wall.")
    (folder / "torn.png").write_bytes((folder / "stone.png").read_bytes()[:60])
    (folder / "torn.txt").write_text("A torn one.")
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rows = [("chelsea.png", "A tabby cat. It lies on a blanket."), ("grass.png", "A lawn."), ("gravel.png", "Gravel.")]
    for name, caption in rows:
        Image.open(PHOTOGRAPHS / name).crop((0, 0, 320, 240)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def written(objects: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composites")
    write_composites(objects, photographs, out, NUM, **OPTIONS)
    return out


def files(out: Path) -> dict[str, bytes]:
    """Everything that a run leaves, by name."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_benchmarks_reader_finds_exact_truth_and_masks(written: Path):
    cases, bad = read_pie_bench(written, side=128)
    entries = json.loads((written / "mapping_file.json").read_text())
    assert not bad and [entries[case.key]["kind"] for case in cases] == [kind for kind in KINDS for _ in range(NUM)]
    assert all(height < width for height, width in (case.mask.shape for case in cases)), "the photographs' aspect"
    for case in cases:
        assert case.truth is not None and case.long_prompts is not None
        before, after = read_pixels(case.image), read_pixels(case.truth)
        differs = (before != after).any(-1)
        assert not differs[~case.mask].any(), "the truth is exact outside of the mask"
        assert differs.sum() > 0.6 * case.mask.sum(), "the mask is no larger than the edit"
        assert case.mask.mean() < 0.5 or case.type_id == "8"
        assert case.source_prompt != case.target_prompt and case.long_prompts[0] != case.long_prompts[1]
        if case.blended:
            for word, prompt in zip(case.blended, (case.source_prompt, case.target_prompt), strict=True):
                assert word in prompt.split()


def test_an_object_is_in_front_of_the_photograph_that_stands_alone(written: Path):
    entries = json.loads((written / "mapping_file.json").read_text())
    add, delete = entries["200000000000"], entries["300000000000"]
    assert add["editing_prompt"] == f"{add['original_prompt']} [with {_phrase(add)} in the foreground]"
    assert add["editing_instruction"].startswith(f"add {_phrase(add)} in the foreground ")
    assert delete["original_prompt"] == f"{delete['editing_prompt']} [with {_phrase(delete)} in the foreground]"
    assert delete["editing_instruction"] == f"remove the {_phrase(delete).split()[-1]}"
    move, colour = entries["500000000000"], entries["600000000000"]
    assert move["editing_instruction"].startswith(f"move the {_phrase(move).split()[-1]} to the ")
    assert colour["objects"][0] in ("fruit/apple.png", "fruit/pear.png"), "a grey stone has no colour to be changed"
    own, new = (colour[f"{name}_prompt"].partition("[")[2].partition("]")[0] for name in ("original", "editing"))
    noun = _phrase(colour).split()[-1]
    assert colour["editing_instruction"] == (
        f"change the colour of the {noun} from {own.split()[-1]} to {new.split()[-1]}"
    )
    background = entries["800000000000"]
    assert len(set(background["photographs"])) == 2


def _phrase(entry: dict) -> str:
    return {"fruit/apple.png": "an apple", "fruit/pear.png": "a pear", "stone.png": "a stone"}[entry["objects"][0]]


def test_what_cannot_be_used_is_named_with_its_reason(written: Path):
    rows = [json.loads(line) for line in (written / "left_out.jsonl").read_text().splitlines()]
    assert {row["name"]: row["reason"] for row in rows} == {
        "cartoon/duck.png": "in a folder of --leave_out",
        "nameless.png": "no caption",
        "opaque.png": "no transparency",
        "tiny.png": "too small",
        "torn.png": "truncated or corrupt",
    }


def test_a_killed_command_goes_on_to_the_same_bytes(written: Path, objects: Path, photographs: Path, tmp_path: Path):
    words = [f"--num={NUM}", "--resolution=128", "--shapes=buckets", "--leave_out=[cartoon]", "--seed=1"]
    process = start("-m", "data.composites", objects, photographs, tmp_path, *words)
    kill_when(lambda: any((tmp_path / "entries").glob("*0.json")), process)
    assert not (tmp_path / "mapping_file.json").exists()
    for workers in (2, 1):  # the second time all is there
        write_composites(objects, photographs, tmp_path, NUM, workers=workers, **OPTIONS)
        assert files(tmp_path) == files(written)
    with pytest.raises(ValueError, match="seed: 1 -> 2"):
        write_composites(objects, photographs, tmp_path, NUM, **{**OPTIONS, "seed": 2})


def test_what_cannot_be_made_is_told_before_anything_is_written(objects: Path, photographs: Path, tmp_path: Path):
    few = tmp_path / "few"
    draw_object(few / "stone.png", "#808080", "A stone.")
    for kind, words in (("change_colour", "another colour"), ("change_object", "a second object")):
        with pytest.raises(ValueError, match=words):
            write_composites(few, photographs, tmp_path / "out", 1, kinds=[kind], resolution=128)
    with pytest.raises(ValueError, match=r"--photographs can be used; photographs: 0 used; left out: 3 too small"):
        write_composites(objects, photographs, tmp_path / "out", 1, resolution=128, min_size=400)
    assert not (tmp_path / "out").exists()


def test_measures_against_the_truth_are_those_of_its_definition(written: Path):
    case = read_pie_bench(written)[0][0]
    assert case.truth is not None
    before, after = (torch.tensor(read_pixels(path)).permute(2, 0, 1)[None] for path in (case.image, case.truth))
    found = PieMetrics(MetricModels()).to_truth(before, after, torch.from_numpy(case.mask)[None, None])
    squares = ((before.double() - after.double()) / 255) ** 2
    assert list(found) == ["psnr", "psnr_inside", "ssim"]
    assert found["psnr"].item() == pytest.approx(-10 * torch.log10(squares.mean()).item())
    inside = squares[..., torch.from_numpy(case.mask)].mean()
    assert found["psnr_inside"].item() == pytest.approx(-10 * torch.log10(inside).item())


def test_a_turned_hue_keeps_lightness_and_is_called_by_its_name():
    ramp = np.linspace(60, 200, 32)[:, None, None] * np.array([1.0, 0.35, 0.3]) * np.ones((32, 32, 1))
    light, alpha = to_linear(ramp.astype(np.uint8)), np.ones((32, 32), np.float32)
    assert colour_of(light, alpha) == "red" and colour_of(light.mean(-1, keepdims=True).repeat(3, -1), alpha) is None
    assert np.array_equal(to_levels(light), ramp.astype(np.uint8))
    for colour in ("green", "blue", "purple"):
        assert colour in HUES and colour_of(recoloured(light, alpha, colour), alpha) == colour


@pytest.mark.parametrize(
    ("caption", "phrase", "head"),
    [
        ("A cup of tea.", "a cup of tea", "cup"),
        ("A stethoscope lets your doctor listen to your heart.", "a stethoscope", "stethoscope"),
        ("A camera.  Say Cheese!", "a camera", "camera"),
        ("Bread, sliced, and shared by everyone.", "bread", "bread"),
        ("TV set", "TV set", "set"),
    ],
)
def test_captions_become_noun_phrases(caption: str, phrase: str, head: str):
    assert (noun_phrase(caption), head_noun(noun_phrase(caption))) == (phrase, head)


def test_colours_are_said_as_people_say_them():
    assert coloured("an apple", "red", "blue") == "a blue apple"
    assert coloured("a red apple", "red", "orange") == "an orange apple"
    assert can_be_coloured("a red apple", "red") and not can_be_coloured("a black and red beetle", "red")
    assert not can_be_coloured("an orange", "orange")
    assert marked("a lawn with a red ball", "a lawn with a blue ball") == (
        "a lawn with a [red] ball",
        "a lawn with a [blue] ball",
    )
