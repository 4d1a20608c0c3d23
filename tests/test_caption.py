"""The stage data.caption on real files: captions that are there, pixels, and every kind of file that is no good."""

import hashlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from data.caption import CaptionConfig, caption_folder, main
from data.images import centre_square, decode
from data.loader import ShardDataset
from data.shards import ShardError, file_digest

SIDE = 64


def picture(width: int = SIDE, height: int = SIDE, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that resizing and JPEG change little; uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [128 + 100 * np.sin(6 * rows / height + 3 * columns / width + p) for p in phase]
    return np.stack(waves, axis=-1).astype(np.uint8)


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
    save(source / "d.png", picture(seed=4), "beside", quality=1)
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
    save(source / "none.png", picture())
    save(source / "empty.png", picture(), " \n")
    save(source / "small.png", picture(200, SIDE - 1), "small")
    assert run(source, tmp_path / "out")["drops"]["policy"] == {"empty caption": 1, "no caption": 1, "too small": 1}
    assert run(source, tmp_path / "out2", min_size=8)["drops"]["policy"] == {"empty caption": 1, "no caption": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata\.jsonl, line 2: expected a JSON object with file_name"),
        ('{"text": "x"}', r"line 2: expected a JSON object with file_name"),
        ('{"file_name": "b.png", "text": ["x", "y"]}', r"line 2: text is \['x', 'y'\], expected one string"),
        ('{"file_name": "a.png", "text": "x"}', r"line 2: a\.png is listed twice"),
    ],
)
def test_a_bad_metadata_line_is_named(tmp_path, line, message):
    save(tmp_path / "in/a.png", picture())
    (tmp_path / "in/metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line)
    with pytest.raises(ShardError, match=message):
        run(tmp_path / "in", tmp_path / "out")


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
    with pytest.raises(ShardError, match=r"no pictures in .*\.jpeg, \.jpg, \.png.*metadata\.jsonl"):
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


def test_exif_orientation_is_applied():
    lying = picture(80, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to be upright
    stream = io.BytesIO()
    Image.fromarray(lying).save(stream, "PNG", exif=exif)
    upright = decode(stream.getvalue())
    assert upright.size == (60, 80)
    assert np.array_equal(np.asarray(upright), np.rot90(lying, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_becomes_8_bit(kind):
    stream = io.BytesIO()
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(stream, kind)
    assert np.asarray(decode(stream.getvalue()))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG")
    assert np.asarray(decode(stream.getvalue()))[0, :, 0].tolist() == [255, 127, 0]


def test_a_transparent_palette_is_laid_on_white():
    stream = io.BytesIO()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(stream, "PNG", transparency=0)
    assert np.asarray(decode(stream.getvalue()))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    stream = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(stream, "TIFF")
    found = decode(stream.getvalue())
    assert found.mode == "RGB" and found.size == (SIDE, SIDE)


def test_an_animation_gives_its_first_frame():
    first, second = (Image.fromarray(picture(seed=seed)).convert("P") for seed in (1, 2))
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(np.asarray(decode(stream.getvalue())), np.asarray(first.convert("RGB")))


def test_enlarging_happens_only_on_request():
    square, crop = centre_square(Image.fromarray(picture(30, 20)), SIDE)
    assert square.size == (SIDE, SIDE) and crop == (5, 0, 20, 20)


# --- damage --------------------------------------------------------------------------------------------------------


def make_nasty_folder(folder: Path) -> None:
    """Six damaged files, each of its own kind, and four good ones."""
    for number in range(4):
        save(folder / f"good{number}.png", picture(seed=number), "good")
    whole = (folder / "good0.png").read_bytes()
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    header = whole[:16] + (60000).to_bytes(4, "big") * 2 + whole[24:]
    (folder / "bomb.png").write_bytes(header[:29] + crc_of(header[12:29]) + header[33:])
    save(folder / "latin.png", picture(seed=5))
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "gone.png", "text": "gone"}))
    (folder / ".hidden.png").write_text("left out")


def crc_of(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "big")


def test_damage_is_counted_by_reason_and_listed(tmp_path):
    make_nasty_folder(tmp_path / "in")
    manifest = run(tmp_path / "in", tmp_path / "out", max_damage=0.6)
    expected = {
        "bomb.png": "decompression bomb",
        "cut.png": "truncated or corrupt",
        "gone.png": "cannot be read",
        "latin.png": "caption is not UTF-8",
        "text.png": "not an image",
        "zero.jpg": "empty file",
    }
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in lines} == expected
    assert manifest["count"] == 4
    assert manifest["drops"] == {"damage": dict.fromkeys(sorted(expected.values()), 1), "policy": {}}


def test_too_much_damage_ends_the_command(tmp_path):
    make_nasty_folder(tmp_path / "in")
    command = [sys.executable, "-m", "data.caption", str(tmp_path / "in"), str(tmp_path / "out"), "--resolution=64"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "6 of 10 inputs are damaged" in ended.stderr and "--max-damage 0.05" in ended.stderr
    assert "Traceback" not in ended.stderr
    again = subprocess.run([*command, "--max-damage", "0.6"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(ShardDataset(tmp_path / "out", ("image",))) == 4


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


def test_photographs_go_through(tmp_path):
    shipped = Path(skimage.__file__).parent / "data"
    names = [path for path in sorted(shipped.iterdir()) if path.suffix in (".png", ".jpg", ".jpeg")]
    assert len(names) >= 3
    (tmp_path / "in").mkdir()
    for path in names:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "in" / path.name).with_suffix(".txt").write_text(f"a photograph named {path.stem}")
    manifest = run(tmp_path / "in", tmp_path / "out", resolution=128, min_size=64)
    assert manifest["count"] + sum(manifest["drops"]["policy"].values()) == len(names)
    for sample in samples(tmp_path / "out").values():
        assert sample["image"].shape == (3, 128, 128)
        assert -1 <= sample["image"].min() < sample["image"].max() <= 1
