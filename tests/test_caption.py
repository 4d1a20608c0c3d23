"""The stage data.caption on real files: captions that are there, pixels, and every kind of file that is no good."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from data.caption import main
from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.jobs.errors import ShardError
from data.pictures.images import centre_square, decode
from data.shards.dataset import ShardDataset
from data.shards.shard import file_digest, read_samples, read_sidecars
from tests import processes
from tests.nasty_pictures import SIDE, WRITERS, nasty_pictures, picture, write_folder


def save(path: Path, pixels: np.ndarray, caption: str | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def run(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return caption_folder(source, out, CaptionConfig(**({"resolution": SIDE} | options)))


def samples(out: Path) -> dict[str, dict[str, Any]]:
    dataset = ShardDataset(out, ("image", "info"))
    return {sample["info"]["source"]: sample for sample in (dataset[number] for number in range(len(dataset)))}


def pixels_of(sample: dict[str, Any]) -> np.ndarray:
    return ((sample["image"].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()


# --- captions ------------------------------------------------------------------------------------------------------


def test_captions_from_text_files_and_metadata(tmp_path):
    source = tmp_path / "in"
    save(source / "a.png", picture(seed=1), "  a  red\n cat ")
    save(source / "deep/b.jpeg", picture(seed=2))
    save(source / "deep/c.webp", picture(seed=3), "from the text file", lossless=True)
    save(source / "d.png", picture(seed=4), "beside")
    (source / "metadata.jsonl").write_text(
        json.dumps({"file_name": "deep/b.jpeg", "text": "a dög", "scene": {"objects": [1]}})
        + "\n\n"
        + json.dumps({"file_name": "d.png", "caption": "listed", "stars": 3})
    )
    (source / "deep/metadata.jsonl").write_text(json.dumps({"file_name": "c.webp", "licence": "CC0"}))
    manifest = run(source, tmp_path / "out")
    assert manifest["count"] == 4 and manifest["drops"] == {"damage": {}, "policy": {}}
    infos = {name: sample["info"] for name, sample in samples(tmp_path / "out").items()}
    assert {name: info["caption"] for name, info in infos.items()} == {
        "a.png": "a red cat",
        "deep/b.jpeg": "a dög",
        "deep/c.webp": "from the text file",
        "d.png": "listed",
    }
    assert infos["a.png"]["caption_raw"] == "  a  red\n cat "
    assert infos["deep/b.jpeg"]["extra"] == {"scene": {"objects": [1]}}
    assert infos["deep/c.webp"]["extra"] == {"licence": "CC0"}
    assert infos["d.png"]["extra"] == {"stars": 3}
    assert infos["a.png"]["content_hash"] == hashlib.sha256((source / "a.png").read_bytes()).hexdigest()


def test_missing_and_empty_captions_and_small_pictures_are_policy(tmp_path):
    source = tmp_path / "in"
    save(source / "good.png", picture(), "good")
    save(source / "none.png", picture(seed=1))
    save(source / "empty.png", picture(seed=2), " \n")
    save(source / "small.png", picture(200, SIDE - 1), "small")
    assert run(source, tmp_path / "out")["drops"]["policy"] == {"empty caption": 1, "no caption": 1, "too small": 1}
    assert run(source, tmp_path / "out2", min_size=8)["drops"]["policy"] == {"empty caption": 1, "no caption": 1}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "expected a JSON object with file_name"),
        ('{"text": "x"}', "expected a JSON object with file_name"),
        ('{"file_name": "b.png", "text": ["x", 3]}', "text is ['x', 3], expected strings"),
        ('{"file_name": "a.png", "text": "x"}', "a.png is listed twice"),
    ],
)
def test_a_bad_metadata_line_is_named_and_stops_nothing(tmp_path, line, fault):
    save(tmp_path / "in/deep/a.png", picture())
    (tmp_path / "in/deep/metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line)
    manifest = run(tmp_path / "in", tmp_path / "out", max_damage=0.0)
    assert manifest["count"] == 1 and manifest["drops"]["damage"] == {"bad line": 1}
    (listed,) = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert listed["source"] == "deep/metadata.jsonl, line 2" and fault in listed["detail"]


def test_changed_captions_are_noticed(tmp_path):
    save(tmp_path / "in/a.png", picture())
    metadata = tmp_path / "in/metadata.jsonl"
    metadata.write_text('{"file_name": "a.png", "text": "x"}\n')
    run(tmp_path / "in", tmp_path / "out")
    metadata.write_text('{"file_name": "a.png", "text": "y"}\n')
    with pytest.raises(ShardError, match=r"another config:\n  metadata\.jsonl"):
        run(tmp_path / "in", tmp_path / "out")


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/readme.md").write_text("no pictures")
    with pytest.raises(
        ShardError, match=r"no pictures in .*\.jpeg, \.jpg, \.jxl, \.png.*metadata\.jsonl.*there are 1 \.md"
    ):
        run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ShardError, match="is not a folder"):
        run(tmp_path / "nowhere", tmp_path / "out")


# --- pixels --------------------------------------------------------------------------------------------------------


def test_a_square_at_the_resolution_keeps_its_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    save(tmp_path / "in/a.png", noise, "noise")
    run(tmp_path / "in", tmp_path / "out")
    (sample,) = samples(tmp_path / "out").values()
    assert np.array_equal(pixels_of(sample), noise)
    assert sample["info"]["original_size"] == [SIDE, SIDE] and sample["info"]["crop"] == [0, 0, SIDE, SIDE]


def test_others_are_cropped_in_the_centre_and_resized(tmp_path):
    wide = picture(201, 100)
    save(tmp_path / "in/a.png", wide, "wide")
    run(tmp_path / "in", tmp_path / "out")
    (sample,) = samples(tmp_path / "out").values()
    assert sample["info"]["original_size"] == [201, 100] and sample["info"]["crop"] == [50, 0, 100, 100]
    expected = Image.fromarray(wide[:, 50:150]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert np.abs(pixels_of(sample).astype(int) - np.asarray(expected)).mean() < 2


def test_plain_files_of_the_resolution_are_stored_as_they_are(tmp_path):
    stored = {"jpg": ("JPEG", {"quality": 70}), "webp": ("WEBP", {}), "png": ("PNG", {"optimize": True})}
    for number, (suffix, (kind, options)) in enumerate(stored.items()):
        save(tmp_path / f"in/{number}.{suffix}", picture(seed=number), "a", format=kind, **options)
    run(tmp_path / "in", tmp_path / "out")
    (sidecar,) = read_sidecars(tmp_path / "out").values()
    for number, sample in enumerate(read_samples(tmp_path / "out", sidecar)):
        suffix = list(stored)[number]
        assert sample.members[suffix] == (tmp_path / f"in/{number}.{suffix}").read_bytes()


# --- all that can come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [5, -0.1])
def test_a_share_of_damage_that_is_none_is_refused(tmp_path, share):
    source = write_folder(tmp_path / "in", nasty_pictures())
    with pytest.raises(ShardError, match=r"--max-damage is .* expected a share"):
        run(source, tmp_path / "out", max_damage=share)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_has_its_place(tmp_path, kind):
    pictures = nasty_pictures()
    source = WRITERS[kind](tmp_path / "in", pictures)
    manifest = run(source, tmp_path / "out", max_damage=0.5, unit_size=4)
    damaged = {name: nasty.damage for name, nasty in pictures.items() if nasty.damage}
    filtered = [nasty.policy for nasty in pictures.values() if nasty.policy]
    assert manifest["drops"] == {"damage": dict(Counter(damaged.values())), "policy": dict(Counter(filtered))}
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {Path(line["source"]).name: line["reason"] for line in lines} == damaged
    assert len(lines) == len(damaged) and all(line["kind"] == "damage" for line in lines)
    good = {name: nasty for name, nasty in pictures.items() if not (nasty.damage or nasty.policy)}
    found = {Path(name).name: sample for name, sample in samples(tmp_path / "out").items()}
    assert manifest["count"] == len(found) and set(found) == set(good)
    for name, sample in found.items():
        expected, crop = centre_square(decode(good[name].content), SIDE)
        assert np.abs(pixels_of(sample).astype(int) - np.asarray(expected)).mean() < 4  # JPEG
        assert sample["info"]["crop"] == list(crop)
        assert sample["info"]["content_hash"] == hashlib.sha256(good[name].content).hexdigest()
        assert sample["info"]["caption_raw"] == good[name].caption.decode()
        assert sample["info"]["caption"] == " ".join(good[name].caption.decode().split())
    extra = found["f_plain.jpg"]["info"]["extra"]
    url = "https://example.com/f_plain.jpg"
    columns = {"folder": {}, "list": {"licence": "CC0"}, "tars": {"key": "f_plain", "url": url, "status": "success"}}
    assert extra == columns[kind]


def test_too_much_damage_ends_the_command(tmp_path):
    write_folder(tmp_path / "in", nasty_pictures())
    words = ["-m", "data.caption", tmp_path / "in", tmp_path / "out", "--resolution=64"]
    said = processes.run(*words, status=1).stderr
    assert "7 of 19 inputs are damaged" in said and "--max-damage 0.05" in said
    assert "Traceback" not in said
    processes.run(*words, "--max-damage", "0.6")
    assert len(ShardDataset(tmp_path / "out", ("image",))) == 7


def test_the_first_of_equal_files_stays_wherever_the_others_lie(tmp_path):
    for number in range(12):
        save(tmp_path / f"in/{number % 3}/{number:02d}.png", picture(seed=number % 4), f"number {number}")
    manifest = run(tmp_path / "in", tmp_path / "out", unit_size=2)
    # In the order of names: 0/00 0/03 0/06 0/09 1/01 ... hold the pictures 0 3 2 1 1 ...
    assert sorted(samples(tmp_path / "out")) == ["0/00.png", "0/03.png", "0/06.png", "0/09.png"]
    assert manifest["drops"]["policy"] == {"duplicate": 8}
    dropped = {d["source"]: d["detail"] for s in read_sidecars(tmp_path / "out").values() for d in s["dropped"]}
    assert dropped["1/01.png"] == "of 0/09.png" and dropped["2/11.png"] == "of 0/03.png"
    assert run(tmp_path / "in", tmp_path / "all", drop_duplicates=False)["count"] == 12
    assert not (tmp_path / "all/inputs").exists()


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_runs_again_without_doing_anything_twice(tmp_path):
    for number in range(5):
        save(tmp_path / f"in/{number}.png", picture(seed=number), f"picture {number}")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--engine", "existing", "--resolution=64", "--unit-size", "2"]
    main(words)
    before = {path.name: (file_digest(path), path.stat().st_mtime_ns) for path in (tmp_path / "out").glob("unit*")}
    assert len(before) == 6
    main(words)
    assert before == {
        path.name: (file_digest(path), path.stat().st_mtime_ns) for path in (tmp_path / "out").glob("unit*")
    }
    with pytest.raises(SystemExit, match=r"unit_size: 2 -> 3"):
        main([*words[:-1], "3"])


@pytest.mark.parametrize("words", [["--resolution", "65"], ["--min-size=0"], ["--colour", "red"], ["--engine", "llm"]])
def test_wrong_options_are_refused(tmp_path, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), str(tmp_path / "out"), *words])
    assert ended.value.code == 2
    assert words[0].split("=")[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_options_may_stand_in_a_file(tmp_path):
    save(tmp_path / "in/a.png", picture(), "a")
    (tmp_path / "options.yaml").write_text("resolution: 32\nunit_size: 7\n")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--config", str(tmp_path / "options.yaml")]
    main([*words, "--unit-size", "3"])
    (sidecar,) = read_sidecars(tmp_path / "out").values()
    assert sidecar["config"]["resolution"] == 32 and sidecar["config"]["unit_size"] == 3
    assert sidecar["config"]["min_size"] == 32


def test_out_must_not_be_the_input(tmp_path):
    save(tmp_path / "a.png", picture(), "a")
    with pytest.raises(ShardError, match="INPUT and OUT are the same folder"):
        run(tmp_path, tmp_path)


def test_photographs_go_through(tmp_path):
    shipped = Path(skimage.__file__).parent / "data"
    names = [path for path in sorted(shipped.iterdir()) if path.suffix in (".png", ".jpg", ".jpeg")]
    assert {"astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"} <= {path.name for path in names}
    (tmp_path / "in").mkdir()
    for path in names:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "in" / path.name).with_suffix(".txt").write_text(f"a photograph named {path.stem}")
    manifest = run(tmp_path / "in", tmp_path / "out", resolution=256, min_size=300)
    small = [path.name for path in names if min(Image.open(path).size) < 300]
    assert small and manifest["drops"] == {"damage": {}, "policy": {"too small": len(small)}}
    found = samples(tmp_path / "out")
    assert set(found) == {path.name for path in names} - set(small)
    for name, sample in found.items():
        assert sample["image"].shape == (3, 256, 256)
        assert sample["info"]["original_size"] == list(Image.open(tmp_path / "in" / name).size)
        whole = Image.open(tmp_path / "in" / name)
        grey = np.asarray(whole.convert("L"), float) / 255
        assert abs(float(sample["image"].mean()) / 2 + 0.5 - grey.mean()) < 0.2, "much the same brightness"
