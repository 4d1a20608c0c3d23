"""The three kinds of input: what is listed, what is read, what is noticed when it changes."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.jobs.errors import ShardError
from data.jobs.sharing import Ranks
from data.pictures.files import open_source, read_list
from data.pictures.inventory import INPUTS, duplicates, take_inventory
from data.pictures.source import DamagedInput, Input, Source
from data.shards.shard import read_sidecars
from tests.nasty_pictures import SIDE, WRITERS, Nasty, picture, saved, write_folder, write_list, write_tars


def pictures(count: int) -> dict[str, Nasty]:
    return {f"{number:03d}.png": Nasty(saved(picture(seed=number)), b"number %d" % number) for number in range(count)}


def surveyed(path: Path, out: Path) -> tuple[Source, np.ndarray]:
    source = open_source(path)
    with ThreadPoolExecutor(2) as pool:
        hashes = take_inventory(source, out, True, Ranks(), pool)
    assert hashes is not None
    return source, hashes


def damage(source: Source, name: str) -> tuple[str, str]:
    with pytest.raises(DamagedInput) as caught:
        source.read(list(source.names).index(name))
    return caught.value.reason, caught.value.detail


def caption(path: Path, out: Path, **options: object) -> dict:
    return caption_folder(path, out, CaptionConfig(**({"resolution": SIDE, "unit_size": 2} | options)))


@pytest.mark.parametrize("kind", WRITERS)
def test_all_kinds_give_the_same_inputs(tmp_path, kind):
    wanted = pictures(12)
    source, hashes = surveyed(WRITERS[kind](tmp_path / "in", wanted), tmp_path / "out")
    assert [name.rpartition("/")[2] for name in source.names] == list(wanted)
    assert list(source.names) == sorted(source.names)
    for number, nasty in enumerate(wanted.values()):
        found = source.read(number)
        assert (found.content, found.caption) == (nasty.content, nasty.caption.decode())
        assert hashes[number].tobytes() == hashlib.sha256(nasty.content).digest()


# --- a folder tree -------------------------------------------------------------------------------------------------


def test_a_tree_is_walked(tmp_path):
    root = tmp_path / "in"
    (root / "deep/er").mkdir(parents=True)
    (root / ".hidden").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in ("a.PNG", "deep/b.JpEg", "deep/er/c.webp", ".hidden/d.png", "deep/.e.png", "deep/notes.md"):
        (root / path).write_bytes(b"x")
    (elsewhere / "f.gif").write_bytes(b"x")
    (root / "link").symlink_to(elsewhere)
    (root / "deep/loop").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "nowhere")
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    source = open_source(root)
    assert list(source.names) == ["a.PNG", "broken.png", "deep/b.JpEg", "deep/er/c.webp", "link/f.gif"]
    assert damage(source, "broken.png")[0] == "cannot be read"


def test_names_of_any_bytes_are_read(tmp_path):
    wanted = {os.fsdecode(b"bild-\xff.png"): Nasty(saved(picture()), b"latin"), "ä.png": Nasty(b"x", None)}
    source = open_source(write_folder(tmp_path / "in", wanted))
    assert {name: source.read(number).caption for number, name in enumerate(source.names)} == {
        os.fsdecode(b"bild-\xff.png"): "latin",
        "ä.png": None,
    }
    assert caption(tmp_path / "in", tmp_path / "out", max_damage=0.5)["count"] == 1


def test_metadata_may_spell_paths_in_any_way(tmp_path):
    write_folder(tmp_path / "in", {name: Nasty(b"x", None) for name in ("a.png", "b.png", "c.png")})
    (tmp_path / "in/sub").mkdir()
    rows = [{"file_name": "./a.png", "text": "a"}, {"file_name": str(tmp_path / "in/b.png"), "text": "absolute"}]
    (tmp_path / "in/metadata.jsonl").write_text("\r\n".join(map(json.dumps, rows)))
    (tmp_path / "in/sub/metadata.jsonl").write_text('{"file_name": "../c.png", "text": "c"}\n')
    source = open_source(tmp_path / "in")
    found = {name: source.read(number).caption for number, name in enumerate(source.names)}
    assert found["a.png"] == "a" and found["sub/../c.png"] == "c"
    assert found[str(tmp_path / "in/b.png")] == "absolute"


def test_texts_are_read_only_where_they_are_used(tmp_path):
    write_folder(tmp_path / "in", {"a.png": Nasty(b"x", b"a caption")})
    assert open_source(tmp_path / "in").read(0).caption == "a caption"
    assert open_source(tmp_path / "in", texts=False).read(0).caption is None
    with ThreadPoolExecutor(1) as pool:
        assert open_source(tmp_path / "in", texts=False).texts_digest([0], pool) == ""
        assert open_source(tmp_path / "in").texts_digest([0], pool) != ""


def test_a_changed_text_of_a_finished_unit_is_noticed(tmp_path):
    root = write_folder(tmp_path / "in", pictures(6))
    manifest = caption(root, tmp_path / "out")
    assert caption(root, tmp_path / "out") == manifest
    (root / "003.txt").write_text("another caption")
    with pytest.raises(ShardError, match=r"a caption beside the pictures of unit-000001 .* remove .*unit-000001\.json"):
        caption(root, tmp_path / "out")
    (tmp_path / "out/unit-000001.json").unlink()
    before = read_sidecars(tmp_path / "out")
    caption(root, tmp_path / "out")
    after = read_sidecars(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert b"another caption" in (tmp_path / "out/unit-000001.tar").read_bytes()


# --- a list --------------------------------------------------------------------------------------------------------


def test_a_list_names_files_anywhere(tmp_path):
    write_folder(tmp_path / "elsewhere", {"b.png": Nasty(b"b", b"a text beside it is not read")})
    write_folder(tmp_path / "in", {"a.png": Nasty(b"a", None)})
    rows = [
        {"file_name": str(tmp_path / "elsewhere/b.png"), "caption": "b", "stars": 3},
        {"file_name": "a.png", "text": None, "caption": "a", "width": 8},
        {"file_name": "gone.png"},
    ]
    (tmp_path / "in/list.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    source = read_list(tmp_path / "in/list.jsonl")
    assert list(source.names) == [str(tmp_path / "elsewhere/b.png"), "a.png", "gone.png"]
    assert source.read(0) == Input(b"b", "b", {"stars": 3})
    assert source.read(1) == Input(b"a", "a", {"width": 8})
    assert damage(source, "gone.png")[0] == "cannot be read"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "a.png"}\n[]', "line 2: expected a JSON object with file_name"),
        ('{"file_name": 3}', "line 1: file_name is 3, expected a path"),
        ('{"file_name": "a.png", "caption": 1}', "line 1: caption is 1, expected one string"),
        ('{"file_name": "a.png"}\n{"file_name": "./a.png"}', r"line 2: a\.png is listed twice"),
        ("\n \n", r"the list .*list\.jsonl is empty"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, lines, message):
    (tmp_path / "list.jsonl").write_text(lines)
    with pytest.raises(ShardError, match=message):
        open_source(tmp_path / "list.jsonl")


def test_a_changed_list_is_noticed(tmp_path):
    path = write_list(tmp_path / "in", pictures(4))
    caption(path, tmp_path / "out")
    path.write_text(path.read_text().replace("number 2", "number two"))
    with pytest.raises(ShardError, match=r"another config:\n  list: "):
        caption(path, tmp_path / "out")


def test_other_inputs_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("a,b")
    for path in (tmp_path / "table.csv", tmp_path / "nowhere", tmp_path / "nowhere.jsonl"):
        with pytest.raises(ShardError, match=r"is not a folder \(of pictures, or of tars\) and not a list that ends"):
            open_source(path)


# --- shards --------------------------------------------------------------------------------------------------------


def member_offsets(tar: Path) -> list[int]:
    """Where each member's header begins."""
    import tarfile

    with tarfile.open(tar) as archive:
        return [member.offset for member in archive]


def test_captions_and_columns_of_tars(tmp_path):
    import webdataset

    (tmp_path / "in").mkdir()
    members = {
        "both": {"jpg": b"1", "txt": b"from the text", "json": b'{"caption": "from the json", "width": 3}'},
        "sub/listed": {"PNG": b"2", "json": b'{"text": null, "caption": "from the json"}'},
        "none": {"webp": b"3"},
        "mask": {"jpg": b"4", "mask.png": b"5", "cls": b"6"},
        "bad": {"jpg": b"7", "json": b"{"},
        "list": {"jpg": b"8", "json": b"[]"},
        "number": {"jpg": b"9", "json": b'{"caption": 3}'},
        "latin": {"jpg": b"0", "txt": "café".encode("latin-1")},
        "bare": {"txt": b"no picture here", "json": b"{}"},
    }
    with webdataset.TarWriter(str(tmp_path / "in/x.tar"), encoder=False) as tar:
        for key, content in members.items():
            tar.write({"__key__": key, **content})
    source, hashes = surveyed(tmp_path / "in", tmp_path / "out")
    at = {name: number for number, name in enumerate(source.names)}
    assert source.read(at["x.tar/both.jpg"]) == Input(b"1", "from the text", {"width": 3})
    assert source.read(at["x.tar/sub/listed.PNG"]) == Input(b"2", "from the json", {})
    assert source.read(at["x.tar/none.webp"]) == Input(b"3", None, {})
    assert source.read(at["x.tar/mask.jpg"]) == Input(b"4", None, {})
    assert damage(source, "x.tar/bad.jpg")[0] == damage(source, "x.tar/list.jpg")[0] == "bad json"
    assert damage(source, "x.tar/number.jpg") == ("bad json", "the caption is 3, expected a string")
    assert damage(source, "x.tar/latin.jpg")[0] == "caption is not UTF-8"
    assert damage(source, "x.tar/bare") == ("no picture", "")
    assert not hashes[at["x.tar/bare"]].any()
    assert len(at) == len(members)


@pytest.mark.parametrize("harm", ["inside a picture", "between two members", "a broken header", "nothing left", "junk"])
def test_a_damaged_tar_is_counted_and_gives_what_it_has(tmp_path, harm):
    root = write_tars(tmp_path / "in", pictures(9), per_tar=3)
    tar = root / "00001.tar"
    content = bytearray(tar.read_bytes())
    starts = member_offsets(tar)  # of json, png, txt of the keys 005, 004, 003
    match harm:
        case "inside a picture":
            content = content[: starts[4] + 700]
        case "between two members":
            content = content[: starts[6]]
        case "a broken header":
            content[starts[6] : starts[6] + 200] = bytes([255]) * 200
        case "nothing left":
            content = bytearray()
        case "junk":
            content = bytearray(b"<html>" * 1000)
    tar.write_bytes(content)
    kept = {"inside a picture": {"004.png", "005.png"}, "nothing left": set(), "junk": set()}
    manifest = caption(root, tmp_path / "out", max_damage=0.9)
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    reasons = {line["source"]: line["reason"] for line in listed}
    assert reasons.pop("00001.tar") == "broken shard"
    if harm == "inside a picture":
        assert reasons.pop("00001.tar/004.png") == "truncated shard"
        kept[harm] = {"005.png"}
    assert not reasons
    assert manifest["count"] == 6 + len(kept.get(harm, {"004.png", "005.png"}))


def test_a_tar_that_changes_is_surveyed_again_and_refused(tmp_path):
    root = write_tars(tmp_path / "in", pictures(6), per_tar=3)
    caption(root, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / INPUTS).glob("part-*")}
    os.utime(root / "00000.tar")
    caption(root, tmp_path / "out")  # touched, but of the same content
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / INPUTS).glob("part-*")}
    assert {name for name in before if before[name] != after[name]} == {"part-000000.json"}
    other = write_tars(tmp_path / "other", {"000.png": Nasty(saved(picture(seed=99)), b"x")} | pictures(6), per_tar=3)
    (root / "00001.tar").write_bytes((other / "00000.tar").read_bytes())
    with pytest.raises(ShardError, match="has changed since it was made"):
        caption(root, tmp_path / "out")


def test_tars_without_pictures_are_refused(tmp_path):
    write_tars(tmp_path / "in", {"a.bin": Nasty(b"x", b"x")})
    with pytest.raises(ShardError, match=r"the 1 tars in .* hold no picture: looked for members that end in \.bmp"):
        caption(tmp_path / "in", tmp_path / "out")


# --- the inventory -------------------------------------------------------------------------------------------------


def test_duplicates_are_found():
    generator = np.random.default_rng(0)
    kinds = np.concatenate([np.zeros((1, 4), np.uint64), generator.integers(0, 2**63, (30, 4)).astype(np.uint64)])
    kinds[1:11, :3] = kinds[1, :3]  # some differ in their last part only
    hashes = kinds[generator.integers(0, 31, 200)]
    firsts: dict[bytes, int] = {}
    expected = {}
    for number, row in enumerate(hashes):
        first = firsts.setdefault(row.tobytes(), number)
        if first != number and row.any():
            expected[number] = first
    assert duplicates(hashes) == expected
    assert duplicates(np.zeros((3, 4), np.uint64)) == {}


def test_the_inventory_is_made_once(tmp_path):
    root = write_folder(tmp_path / "in", pictures(5))
    _, hashes = surveyed(root, tmp_path / "out")
    (part,) = (tmp_path / "out" / INPUTS).glob("part-*.json")
    before = part.stat().st_mtime_ns
    (root / "000.png").write_bytes(b"changed, and not read again")
    _, again = surveyed(root, tmp_path / "out")
    assert np.array_equal(hashes, again) and part.stat().st_mtime_ns == before
    part.write_text(part.read_text()[:-20])  # what a failing disk might leave
    _, fresh = surveyed(root, tmp_path / "out")
    assert (fresh[0] != hashes[0]).any() and np.array_equal(fresh[1:], hashes[1:])
