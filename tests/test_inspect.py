"""data.inspect on real folders: what is sound passes, and every kind of damage is found, named and fails."""

import base64
import html
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.captioning.tokens import TokenLimits
from data.encode import EncodeConfig, encode_shards
from data.inspect import main
from data.inspection import folder as checks
from data.inspection import shard
from data.inspection.captions import CaptionStatistics, characters_read
from data.inspection.checks import inspect_shards, terminal_report
from data.inspection.config import InspectConfig
from data.inspection.findings import LISTED, Findings, Kind
from data.inspection.fit import OTHER_PIVOTS, OTHER_SIZE, OTHER_TEXT, OTHER_TOKENIZERS, OTHER_VAE
from data.inspection.page import readable_size, share_cut, write_page
from data.inspection.samples import BAD_ARRAY, BAD_PICTURE
from data.pages.histogram import Bars, histogram
from data.shards.dataset import ShardDataset
from data.shards.sample import SCHEMA, SampleInfo, key_of
from data.shards.shard import Drop, Origin, Sample, file_digest, npy_bytes
from data.shards.stage import divide, run_stage
from models.fingerprints import named
from tests import processes
from tests.self_contained import check_stands_alone
from tests.shard_folders import make_latents, make_pair, make_pairs, pair_pixels
from tests.tiny_editing import save_tiny_judges

COUNT, UNIT = 20, 8
TAKEN = "expected one of BMP, GIF, JPEG, PNG, TIFF, WEBP, AVIF, HEIF, JXL"
LONG = "a cat and a dog sit side by side on the green grass in front of an old house with a red door and two windows"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """Captioned shards of 20 pictures; two more were damaged and one had no caption."""
    folder = tmp_path_factory.mktemp("inspect")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 80, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number:02d}.png")
        caption = LONG if number % 4 == 0 else f"picture <{number}>"
        (pictures / f"{number:02d}.txt").write_text(caption)
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("a caption")
    (pictures / "hollow.png").write_bytes(b"")
    Image.fromarray(pixels[:, ::-1]).save(pictures / "silent.png")
    config = CaptionConfig(resolution=64, unit_size=UNIT, max_damage=0.5, backbone=tiny_backbone)
    caption_folder(pictures, folder / "shards", config)
    return folder / "shards"


@pytest.fixture(scope="module")
def encoded(captioned: Path, tiny_backbone: str) -> Path:
    """The same with latents and prompts, without pictures."""
    out = captioned.parent / "encoded"
    encode_shards(captioned, out, EncodeConfig(backbone=tiny_backbone, prompts=True))
    return out


@pytest.fixture
def own(captioned: Path, tmp_path: Path) -> Path:
    """A copy of the captioned shards that the test may damage."""
    return shutil.copytree(captioned, tmp_path / "shards")


def kinds(folder: Path, **options: Any) -> dict[Kind, list[str]]:
    """What an inspection finds, problems and remarks, with the places."""
    findings = inspect_shards(folder, InspectConfig(**options)).findings
    return {finding.kind: finding.places for finding in (*findings.problems, *findings.remarks)}


def run(*arguments: str | Path) -> int:
    """The exit status of the command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


# --- sound folders -------------------------------------------------------------------------------------------------


def test_a_sound_folder_is_ready_and_has_a_page_of_its_own(captioned, tmp_path, tiny_backbone, capsys):
    assert run(captioned, "--out", tmp_path / "page", "--global-batch", "8") == 0
    said = capsys.readouterr().out
    assert "20 samples in 3 shards of data.caption" in said
    assert "damaged: 2 of 23 inputs (empty file 1, not an image 1)" in said
    assert "filtered out: 1 of 23 inputs (no caption 1)" in said
    assert "an epoch: 2 global batches of 8, 4 samples over" in said
    page = (tmp_path / "page" / "index.html").read_text("utf-8")
    assert str(tmp_path / "page" / "index.html") in said
    check_stands_alone(tmp_path / "page" / "index.html")
    assert page.count("data:image/jpeg;base64,") == COUNT
    for source in ("broken.png", "hollow.png", "silent.png"):
        assert source in page
    assert "picture &lt;3&gt;" in page and "picture <3>" not in page
    assert not (captioned / "inspection").exists()


def test_the_page_marks_what_the_tokenizer_cuts_off(own, tiny_backbone):
    assert run(own, "--backbone", tiny_backbone) == 0
    page = (own / "inspection" / "index.html").read_text("utf-8")
    # The tokenizer of the test reads single letters, 75 of them.
    letters = [at + 1 for at, letter in enumerate(LONG) if letter != " "][74]
    assert page.count(f'{LONG[:letters]}<del title="not read by the text encoders">{LONG[letters:]}</del>') == 5
    assert "75 are read" in page


def test_captions_that_are_cut_are_a_remark(captioned, tiny_backbone):
    found = inspect_shards(captioned, InspectConfig(backbone=tiny_backbone))
    assert found.verdict == "Ready, with 1 remark"
    assert share_cut(found) == (0.25, 0.25)
    # Without the backbone: as data.caption has counted.
    assert share_cut(inspect_shards(captioned, InspectConfig())) == (0.25, 0.25)


def test_an_encoded_folder_fits_its_backbone_and_no_other(encoded, tiny_backbone, tiny_sd_backbone, capsys):
    found = inspect_shards(encoded, InspectConfig(backbone=tiny_backbone, global_batch=20))
    assert found.verdict == "Ready, with 1 remark"
    assert found.sampled.latent_std > 0
    assert [memory.fields for memory in found.memory] == [
        ("latent", "caption"),
        ("latent", "prompt", "pooled", "caption"),
    ]
    assert found.memory[1].bytes == ShardDataset(encoded, ("latent", "prompt", "pooled", "caption")).index_bytes
    others = kinds(encoded, backbone=tiny_sd_backbone)
    assert {OTHER_VAE, OTHER_TEXT} <= set(others)
    assert named(found.contents.origin["properties"]["vae_fingerprint"]) in others[OTHER_VAE][0]


def test_pivots_and_image_tokens_fit_their_backbone_and_no_other(captioned, tiny_backbone, tiny_sd_backbone, tmp_path):
    _, clip = save_tiny_judges(tmp_path, CLIPTokenizer.from_pretrained(tiny_backbone, subfolder="tokenizer"))
    out = tmp_path / "shards"
    encode_shards(captioned, out, EncodeConfig(backbone=tiny_backbone, pivots=True, pivot_steps=2, clip=str(clip)))
    found = inspect_shards(out, InspectConfig(backbone=tiny_backbone))
    assert found.verdict == "Ready, with 1 remark"
    assert [memory.fields for memory in found.memory] == [
        ("latent", "caption"),
        ("latent", "clip", "pivots", "caption"),
    ]
    others = kinds(out, backbone=tiny_sd_backbone)
    assert {OTHER_VAE, OTHER_PIVOTS} <= set(others) and OTHER_TEXT not in others
    assert named(found.contents.origin["properties"]["unet_fingerprint"]) in others[OTHER_PIVOTS][0]


def test_pictures_of_another_size_and_other_tokenizers_are_found(captioned, tmp_path, tiny_backbone):
    other = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    for name, entry, value in [
        ("unet/config.json", "sample_size", 32),
        ("tokenizer/tokenizer_config.json", "model_max_length", 40),
    ]:
        config = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps(config | {entry: value}))
    found = kinds(captioned, backbone=str(other))
    assert found[OTHER_SIZE] == ["64 px, 128 px are expected"]
    assert not OTHER_TOKENIZERS.wrong and OTHER_TOKENIZERS in found


def test_too_few_samples_for_a_batch_fail(captioned, tmp_path, capsys):
    assert run(captioned, "--out", tmp_path, "--global-batch", "21") == 1
    said = capsys.readouterr().out
    assert "Not ready: 1 problem" in said and "20 samples, a global batch of 21" in said and "run.global_batch" in said


def test_the_sample_is_the_same_for_captions_and_latents(captioned, encoded):
    first, second = (inspect_shards(folder, InspectConfig(sample=7)).contents.sample for folder in (captioned, encoded))
    assert [place.key for place in first] == [place.key for place in second]
    assert len({place.unit for place in first}) > 1 and len(first) == 7


def test_a_sample_of_each_size_is_part_of_a_larger_one(tmp_path):
    folder = make_latents(tmp_path / "shards", 200, 3)
    whole = [place.key for place in checks.inspect_folder(folder, 200, False, Findings()).sample]
    assert len(set(whole)) == 200
    for size in (1, 5, 60):
        assert [place.key for place in checks.inspect_folder(folder, size, False, Findings()).sample] == whole[:size]


# --- damage --------------------------------------------------------------------------------------------------------


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip_byte(folder: Path) -> None:
    tar = folder / "unit-000001.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)


def edit_sample(folder: Path, unit: str, row: int, change: Callable[[bytes], bytes]) -> None:
    """Changes a KEY.json in place, and the checksums with it, as another version of the code might have written it."""
    path = folder / f"{unit}.json"
    sidecar = json.loads(path.read_text())
    offset, size = sidecar["members"]["json"][row]
    with (folder / f"{unit}.tar").open("r+b") as tar:
        tar.seek(offset)
        changed = change(tar.read(size))
        assert len(changed) == size
        tar.seek(offset)
        tar.write(changed)
    digest = file_digest(folder / f"{unit}.tar")
    edit_json(path, sha256=digest)
    manifest = json.loads((folder / "manifest.json").read_text())
    next(entry for entry in manifest["units"] if entry["unit"] == unit)["sha256"] = digest
    edit_json(folder / "manifest.json", units=manifest["units"])


def other_schema(folder: Path) -> None:
    edit_sample(folder, "unit-000000", 3, lambda json: json.replace(b'"schema": %d' % SCHEMA, b'"schema": 9'))


def lose_member(folder: Path) -> None:
    sidecar = json.loads((folder / "unit-000002.json").read_text())
    sidecar["members"]["jpg"][1] = [-1, 0]
    edit_json(folder / "unit-000002.json", members=sidecar["members"])


def unfinished(folder: Path) -> None:
    for name in ("manifest.json", "unit-000002.tar", "unit-000002.json"):
        (folder / name).unlink()


def repeat_unit(folder: Path) -> None:
    shutil.copy(folder / "unit-000000.tar", folder / "unit-000003.tar")
    shutil.copy(folder / "unit-000000.json", folder / "unit-000003.json")
    edit_json(folder / "unit-000003.json", unit="unit-000003")


def truncate(folder: Path) -> None:
    with (folder / "unit-000001.tar").open("r+b") as tar:
        tar.truncate(5000)


DAMAGE: dict[str, tuple[Callable[[Path], object], Kind, str]] = {
    "the stage has not finished": (unfinished, checks.UNFINISHED, "2 finished units and no manifest.json"),
    "a truncated tar": (truncate, shard.WRONG_SIZE, "unit-000001.tar: 5,000 bytes instead of"),
    "a flipped byte": (flip_byte, shard.WRONG_CHECKSUM, "unit-000001.tar"),
    "a foreign tar": (
        lambda folder: shutil.copy(folder / "unit-000000.tar", folder / "00000.tar"),
        checks.FOREIGN_TAR,
        "00000.tar",
    ),
    "another tar in place of one": (
        lambda folder: shutil.copy(folder / "unit-000000.tar", folder / "unit-000002.tar"),
        shard.WRONG_SIZE,
        "unit-000002.tar",
    ),
    "a missing sidecar": (
        lambda folder: (folder / "unit-000001.json").unlink(),
        checks.LOST_SIDECAR,
        "unit-000001.tar",
    ),
    "a missing tar": (lambda folder: (folder / "unit-000001.tar").unlink(), shard.LOST_TAR, "unit-000001.tar"),
    "a unit that is gone": (
        lambda folder: [(folder / f"unit-000001.{suffix}").unlink() for suffix in ("tar", "json")],
        checks.UNLISTED,
        "unit-000001 is listed and not there",
    ),
    "another schema in a sidecar": (
        lambda folder: edit_json(folder / "unit-000001.json", sample_schema=99),
        shard.BAD_SIDECAR,
        "99",
    ),
    "another schema in a sample": (other_schema, shard.BAD_JSON, "schema version 9"),
    "a sidecar that is cut short": (
        lambda folder: (folder / "unit-000001.json").write_text('{"format": 2, "sample'),
        shard.BAD_SIDECAR,
        "unit-000001.json",
    ),
    "a sidecar that contradicts itself": (
        lambda folder: edit_json(folder / "unit-000001.json", count=7),
        shard.BAD_SIDECAR,
        "says 7 samples and lists [7, 8]",
    ),
    "a sidecar without entries": (
        lambda folder: (folder / "unit-000001.json").write_text(f'{{"format": 2, "sample_schema": {SCHEMA}}}'),
        shard.BAD_SIDECAR,
        "unit",
    ),
    "a manifest that is no JSON": (
        lambda folder: (folder / "manifest.json").write_text("["),
        checks.BAD_MANIFEST,
        "manifest.json",
    ),
    "a manifest with another count": (
        lambda folder: edit_json(folder / "manifest.json", count=21),
        checks.UNLISTED,
        "count 21 in the manifest, 20 here",
    ),
    "shards of two configs": (
        lambda folder: edit_json(folder / "unit-000001.json", properties={"resolution": 128}),
        shard.MIXED,
        'unit-000001 has another properties: {"preprocessing": null, "resolution": 128}',
    ),
    "a key that comes twice": (repeat_unit, checks.SAME_KEY, "unit-000003: 00-"),
    "a sample without its picture": (lose_member, shard.LOST_MEMBER, "has no picture"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_cure_and_fails(own, name, capsys):
    damage, kind, words = DAMAGE[name]
    damage(own)
    assert run(own) == 1
    said = capsys.readouterr().out
    assert "Not ready" in said and kind.what in said and kind.cure in said
    assert kind.wrong and words in "\n".join(kinds(own)[kind])
    page = html.unescape((own / "inspection" / "index.html").read_text("utf-8"))
    assert "Not ready" in page and kind.what[1:] in page and kind.cure[1:] in page


@pytest.mark.parametrize("garbage", [None, [], {}, "x", -1, [None], {"x": None}], ids=repr)
def test_no_garbage_in_the_files_breaks_the_inspection(own, garbage):
    for name in ("unit-000001.json", "manifest.json"):
        whole = (own / name).read_text()
        for entry in json.loads(whole):
            edit_json(own / name, **{entry: garbage})
            assert run(own) in (0, 1)
            (own / name).write_text(whole)


def test_what_training_refuses_the_inspection_refuses(own):
    """Whatever the loader does not open fails the inspection, too."""
    for name, (damage, *_) in DAMAGE.items():
        folder = shutil.copytree(own, own.parent / re.sub(r"\W", "_", name))
        damage(folder)
        try:
            ShardDataset(folder, ("image", "caption"))
        except (ValueError, KeyError):
            assert inspect_shards(folder, InspectConfig(checksums=False)).findings.problems, name


def test_a_rerun_of_the_stage_cures_what_it_is_said_to_cure(own, captioned, tiny_backbone):
    truncate(own)
    (own / "unit-000002.tar").unlink()
    (own / "manifest.json").unlink()
    assert run(own) == 1
    config = CaptionConfig(resolution=64, unit_size=UNIT, max_damage=0.5, backbone=tiny_backbone)
    caption_folder(captioned.parent / "pictures", own, config)
    assert run(own) == 0


def test_what_was_not_taken_is_shown(own, captioned, tiny_backbone, capsys):
    (captioned.parent / "pictures/film.mp4").write_bytes(b"x")
    config = CaptionConfig(resolution=64, unit_size=UNIT, max_damage=0.5, backbone=tiny_backbone)
    caption_folder(captioned.parent / "pictures", own, config)
    (captioned.parent / "pictures/film.mp4").unlink()
    assert run(own) == 0
    assert "not taken: 1 .mp4" in capsys.readouterr().out
    assert "<td>.mp4</td><td>1</td>" in (own / "inspection/index.html").read_text()


def test_a_flipped_byte_is_found_only_where_bytes_are_read(own):
    flip_byte(own)
    assert shard.WRONG_CHECKSUM in kinds(own)
    assert shard.WRONG_CHECKSUM not in kinds(own, checksums=False)


@pytest.mark.parametrize("checksums", ["true", "false"])
def test_an_empty_folder_fails(tmp_path, checksums, capsys):
    (tmp_path / "shards").mkdir()
    assert run(tmp_path / "shards", "--checksums", checksums) == 1
    assert checks.EMPTY.what in capsys.readouterr().out


def test_no_folder_fails(tmp_path):
    with pytest.raises(SystemExit, match="nowhere: there is no such folder made by"):
        main([str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()


def test_nothing_but_drops_fails(own):
    for tar in own.glob("*.tar"):
        tar.unlink()
        edit_json(tar.with_suffix(".json"), count=0, keys=[], members={}, bytes=0, sha256="")
    assert checks.NO_SAMPLES in kinds(own)


def test_temporary_files_are_a_remark(own):
    (own / ".unit-000003.tar.host.1234.tmp").write_bytes(b"half a tar")
    assert run(own) == 0
    assert kinds(own)[checks.TEMPORARY] == [".unit-000003.tar.host.1234.tmp"]


# --- what the samples hold -----------------------------------------------------------------------------------------


def make(folder: Path, members: Callable[[int], dict[str, bytes]], num: int = 12, **entries: Any) -> Path:
    """A finished folder whose samples have these members, and these entries in their KEY.json."""
    names = [f"{number:03d}.png" for number in range(num)]

    def process(unit: Any) -> Iterator[Sample | Drop]:
        for name in unit.items:
            number = int(name[:3])
            info = SampleInfo(
                key_of(name), f"caption {number}", "raw", (64, 64), (0, 0, 64, 64), f"{number:064x}", name
            )
            content = json.loads(info.to_json()) | {entry: value(number) for entry, value in entries.items()}
            yield Sample(info.key, {"json": json.dumps(content).encode(), **members(number)})

    origin = Origin("test", {}, {}, {"resolution": 64, "preprocessing": "none"})
    run_stage(divide(names, names, 5), folder, process, origin, max_damage=0)
    return folder


def png(size: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size)).save(stream, "PNG")
    return stream.getvalue()


def test_copies_of_pictures_are_a_remark(tmp_path):
    folder = make(tmp_path / "s", lambda number: {"png": png(64)}, content_hash=lambda number: f"{number % 9:064x}")
    found = kinds(folder)
    assert len(found[checks.SAME_PICTURE]) == 3
    assert found[checks.SAME_PICTURE][0] == f"unit-000001: {key_of('009.png')} and unit-000000: {key_of('000.png')}"
    assert inspect_shards(folder, InspectConfig()).contents.num_pictures == 9
    assert run(folder) == 0
    assert kinds(folder, checksums=False) == {}


def test_arrays_that_are_not_finite_are_found(tmp_path):
    def latent(number: int) -> dict[str, bytes]:
        array = np.zeros((4, 8, 8), np.float16)
        array[0, 0, 0] = np.nan if number == 7 else 1
        return {"latent.npy": npy_bytes(array)}

    assert kinds(make(tmp_path / "s", latent))[BAD_ARRAY] == [
        f"unit-000001: {key_of('007.png')}.latent.npy: not finite"
    ]


def test_pictures_that_are_none_or_of_another_size_are_found(tmp_path):
    strange = {4: b"no picture", 5: png(32)}
    found = kinds(make(tmp_path / "s", lambda number: {"png": strange.get(number, png(64))}))
    assert sorted(found[BAD_PICTURE]) == [
        f"unit-000000: {key_of('004.png')}.png: not an image: it begins with b'no picture', {TAKEN}",
        f"unit-000001: {key_of('005.png')}.png is 32x32 instead of 64x64 px",
    ]


def test_pictures_of_several_formats_are_no_lost_members(tmp_path):
    assert kinds(make(tmp_path / "s", lambda number: {"png" if number % 2 else "webp": png(64)})) == {}


@pytest.mark.parametrize("garbage", [None, [], "x", -1, [None] * 4, {"tokens": None}, {"tokens": [None]}], ids=repr)
def test_no_garbage_in_the_samples_breaks_the_inspection(tmp_path, garbage):
    for entry in SampleInfo.__dataclass_fields__:
        folder = make(tmp_path / entry, lambda number: {"png": png(64)}, num=2, **{entry: lambda number: garbage})
        findings = inspect_shards(folder, InspectConfig()).findings
        fits = (
            (entry == "extra" or (entry == "checks" and isinstance(garbage, dict)))
            or (isinstance(garbage, str) and entry in ("caption", "caption_raw", "content_hash", "source"))
            or (entry == "other_captions" and garbage == [])
        )
        assert [found.kind for found in findings.problems] == ([] if fits else [shard.BAD_JSON]), entry
        assert run(folder) in (0, 1)


def test_token_counts_of_the_shards_are_shown_without_a_backbone(tmp_path):
    counts = {"tokens": [9, 9], "tokens_raw": [12, 12]}
    folder = make(tmp_path / "s", lambda number: {}, checks=lambda number: counts)
    found = inspect_shards(folder, InspectConfig())
    words, tokens = found.sampled.captions.lengths()
    assert (words.name, tokens.name, tokens.limit) == ("words", "tokens", None)
    assert list(tokens.raw) == [12] * 12 and list(tokens.final) == [9] * 12
    assert "2.0 words, 9.0 tokens" in terminal_report(found)


def test_tokenizers_that_differ_are_shown_apart(tiny_backbone):
    limits = TokenLimits.load(tiny_backbone)
    limits.limits = (75, 10)
    statistics = CaptionStatistics(limits)
    for caption in ("ab", "abcdefghijklm"):
        statistics.add(SampleInfo("key", caption, caption * 8, (1, 1), (0, 0, 1, 1), "", ""))
    assert [(one.name, one.limit) for one in statistics.lengths()] == [
        ("words", None),
        ("tokens (1)", 75),
        ("tokens (2)", 10),
    ]
    assert statistics.share_cut == (1.0, 0.5)
    _, first, second = statistics.lengths()
    assert first.share_cut(first.final) == 0 and second.share_cut(second.final) == 0.5
    assert statistics.num_equal == 0


@pytest.mark.parametrize("text", ["short", LONG, "Wörter,  die\tanders sind, ñandú 東京 " * 4, "x" * 75, "x" * 76])
def test_what_is_read_is_what_the_tokenizer_takes(tiny_backbone, text):
    limits = TokenLimits.load(tiny_backbone)
    read = characters_read(text, limits)
    tokenizer = limits.tokenizers[0]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer(text[:read], add_special_tokens=False).input_ids[:74] == ids[:74]
    assert (read == len(text)) == (len(ids) <= 75)


# --- pairs of data.edit_pairs --------------------------------------------------------------------------------------

FIGURES = "direction 0.21, image similarity 0.9, source similarity 0.25, target similarity 0.312"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs of six captions in three units; two captions gave none."""
    return make_pairs(tmp_path_factory.mktemp("pairs") / "shards", 12, 4, dropped=2)


def cards(page: Path) -> list[str]:
    """The text of the cards on a page, their pictures as [IMAGE], in the order of their captions."""
    sheet = page.read_text("utf-8").partition('<div class="sheet">')[2].partition("<h2")[0]
    texts = [
        re.sub(r"<[^<>]*>", " ", re.sub(r"<img [^>]*>", "[IMAGE]", card)) for card in sheet.split('<div class="card">')
    ]
    return sorted(
        (" ".join(text.split()) for text in texts[1:]), key=lambda text: int(re.search(r"shape (\d+)", text)[1])
    )


def test_pairs_are_shown_side_by_side_with_their_scores(pairs, tmp_path, capsys):
    assert run(pairs, "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "12 samples in 3 shards of data.edit_pairs" in said and "captions, on average: 4.0 words" in said
    assert "filtered out: 2 of 8 inputs (no pair 2)" in said and "\nReady\n" in said
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 24
    assert cards(tmp_path / "index.html")[3] == (
        "[IMAGE] → [IMAGE] source edited make shape 3 blue from a red shape 3 to a blue shape 3 "
        f"{FIGURES} caption-1, guidance 7.5, seed 3, self share 0.4"
    )
    assert re.search(r"<td>target similarity</td><td>12</td>\s*<td></td><td>0\.312</td><td>0\.312</td>", page)
    assert "What data.edit_pairs noted" in page and "The caption of a pair is its instruction." in page
    for suffix in ("png", "jpg", "source.png", "source.jpg"):
        assert f'<td>KEY.{suffix}</td><td class="words">picture</td><td>6</td>' in page


def test_the_source_picture_is_on_the_left(pairs, tmp_path):
    assert run(pairs, "--out", tmp_path) == 0
    page = (tmp_path / "index.html").read_text("utf-8")
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB"), float) for uri in shown]
    order = [int(number) for number in re.findall(r"make shape (\d+) blue", page)]
    for number, left, right in zip(order, found[::2], found[1::2], strict=True):
        source, edited = pair_pixels(number)
        assert np.abs(left - source).mean() < np.abs(left - edited).mean()
        assert np.abs(right - edited).mean() < np.abs(right - source).mean()


@pytest.mark.parametrize("keep_images", [True, False])
def test_encoded_pairs_are_shown_too(pairs, tiny_backbone, tmp_path, keep_images):
    encode_shards(pairs, tmp_path / "s", EncodeConfig(tiny_backbone, keep_images=keep_images))
    found = inspect_shards(tmp_path / "s", InspectConfig(backbone=tiny_backbone, global_batch=12))
    assert found.verdict == "Ready" and found.contents.num_inputs == 12
    assert [memory.fields for memory in found.memory] == [("latent", "caption"), ("latent", "source", "caption")]
    shown = cards(write_page(found, tmp_path / "page"))
    pictures = "[IMAGE] → [IMAGE] source edited " if keep_images else ""
    assert shown[4].startswith(f"{pictures}make shape 4 blue from a red shape 4 to a blue shape 4 {FIGURES} caption-2")


def test_source_pictures_that_are_none_missing_or_of_another_size_are_found(tmp_path):
    strange = {4: {"source.png": b"no picture"}, 6: {"source.png": png(32)}, 7: {}}

    def make(number: int) -> Sample:
        whole = make_pair(number)
        edited = {suffix: content for suffix, content in whole.members.items() if not suffix.startswith("source.")}
        return Sample(whole.key, edited | strange[number]) if number in strange else whole

    folder = make_pairs(tmp_path / "s", 12, 4, make)
    assert run(folder) == 1
    found = kinds(folder)
    assert found == {
        shard.LOST_MEMBER: ["unit-000001: caption-3-001 has no source picture"],
        BAD_PICTURE: [
            f"unit-000001: caption-2-000.source.png: not an image: it begins with b'no picture', {TAKEN}",
            "unit-000001: caption-3-000.source.png is 32x32 instead of 64x64 px",
        ],
    }
    assert len(cards(folder / "inspection" / "index.html")) == 12


@pytest.mark.parametrize(
    "garbage", [None, [], "x", -1, {"seed": [], "source_caption": 3, "target_caption": "<u>"}], ids=repr
)
def test_no_garbage_about_pairs_breaks_the_inspection(tmp_path, garbage):
    def make(number: int) -> Sample:
        whole = make_pair(number)
        info = json.loads(whole.members["json"]) | {"extra": garbage}
        return Sample(whole.key, {**whole.members, "json": json.dumps(info).encode()})

    folder = make_pairs(tmp_path / "s", 2, 2, make)
    assert run(folder) == 0
    assert "<u>" not in (folder / "inspection" / "index.html").read_text("utf-8")


# --- parts of the page ---------------------------------------------------------------------------------------------


def test_a_histogram_shows_all_values_and_the_limit():
    chart = histogram([Bars("raw & wordy", "grey", [1, 5, 80, 300]), Bars("final", "blue", [0, 5, 5])], "tokens", 75)
    svg = ET.fromstring(chart).find("svg")
    bars = svg.findall("rect")
    assert all(0 < float(bar.get("x")) < 620 and 0 < float(bar.get("height")) < 250 for bar in bars)
    shares = dict.fromkeys(("raw & wordy", "final"), 0.0)
    for bar in bars:
        name, share = re.fullmatch(r"(.+), \d+(?: to \d+)?: ([\d.]+) %", bar.find("title").text).groups()
        shares[name] += float(share)
    assert shares == pytest.approx({"raw & wordy": 100, "final": 100}, abs=0.2)
    line = next(found for found in svg.findall("line") if found.get("class") == "limit")
    assert 52 < float(line.get("x1")) < 620
    assert histogram([Bars("none", "grey", [])], "words") == ""


@pytest.mark.parametrize("values", [[0], [0, 0, 1], [39], [40], [10**6], list(range(200))])
def test_a_histogram_of_any_range_has_few_bins(values):
    svg = ET.fromstring(histogram([Bars("a", "red", values)], "words")).find("svg")
    assert 1 <= len(svg.findall("rect")) <= 41


def test_findings_count_all_and_list_some():
    findings, kind, remark = Findings(), Kind("it is bad", "mend it"), Kind("it is odd", "look", wrong=False)
    findings.extend([(kind, f"place {number}") for number in range(LISTED + 9)])
    findings.add(remark, "there")
    assert [(found.kind, found.count, len(found.places)) for found in findings.problems] == [(kind, LISTED + 9, LISTED)]
    assert [found.kind for found in findings.remarks] == [remark]


@pytest.mark.parametrize(
    ("num", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (352_000, "352 KB"), (8.2e9, "8.2 GB"), (3e12, "3.0 TB")],
)
def test_sizes_are_readable(num, words):
    assert readable_size(num) == words


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_it_with_its_exit_status(own, tmp_path):
    words = ["-m", "data.inspect", own, "--out", tmp_path / "page"]
    assert "\nReady, with 1 remark\n" in processes.run(*words).stdout
    truncate(own)
    done = processes.run(*words, status=1)
    assert "Traceback" not in done.stderr
    assert "Not ready: 1 problem" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sample", "0"), "--sample is 0"),
        (("--global-batch", "0"), "--global-batch is 0"),
        (("--colour", "1"), "colour"),
    ],
)
def test_wrong_options_have_a_status_of_their_own(captioned, options, words, capsys):
    assert run(captioned, *options) == 2
    assert words in capsys.readouterr().err


def test_a_backbone_that_is_not_there_is_an_error(captioned, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"data\.inspect: .*empty"):
        (tmp_path / "empty").mkdir()
        main([str(captioned), "--backbone", str(tmp_path / "empty"), "--out", str(tmp_path / "page")])
