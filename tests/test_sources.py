"""The three kinds of input: what is listed, what is read, what is noticed when it changes."""

import csv
import hashlib
import io
import json
import logging
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.jobs.errors import ShardError
from data.jobs.sharing import Ranks
from data.pictures.files import PictureFiles, open_source, read_list
from data.pictures.inventory import INPUTS, duplicates, take_inventory
from data.pictures.rows import Rows
from data.pictures.source import CaptionPolicy, DamagedInput, Input, Source
from data.shards.shard import read_sidecars
from tests import processes
from tests.nasty_pictures import SIDE, WRITERS, Nasty, picture, saved, write_folder, write_list, write_tars


def pictures(count: int) -> dict[str, Nasty]:
    return {f"{number:03d}.png": Nasty(saved(picture(seed=number)), b"number %d" % number) for number in range(count)}


def surveyed(path: Path, out: Path, policy: CaptionPolicy | None = None) -> tuple[Source, np.ndarray]:
    source = open_source(path, policy=policy)
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
    hidden = sorted(source.not_taken.pop("hidden"))
    assert hidden == [".hidden", "deep/.e.png"]
    assert source.not_taken == {".md": ["deep/notes.md"], "no file": ["pipe.png"]}
    assert damage(source, "broken.png")[0] == "cannot be read"


def test_names_of_any_bytes_are_read(tmp_path):
    wanted = {os.fsdecode(b"bild-\xff.png"): Nasty(saved(picture()), b"latin"), "ä.png": Nasty(b"x", None)}
    source = open_source(write_folder(tmp_path / "in", wanted))
    assert {name: source.read(number).caption for number, name in enumerate(source.names)} == {
        os.fsdecode(b"bild-\xff.png"): "latin",
        "ä.png": None,
    }
    assert caption(tmp_path / "in", tmp_path / "out", max_damage=0.5)["count"] == 1


def test_names_that_no_file_can_have_cannot_be_read(tmp_path):
    source = PictureFiles(tmp_path, ["a\0.png", "a\ud800.png"], Rows(), {}, {})
    assert damage(source, "a\0.png") == ("cannot be read", "embedded null byte")
    assert damage(source, "a\ud800.png")[0] == "cannot be read"


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


def captions(root: Path, **policy: object) -> dict[str, str | None]:
    source = open_source(root, policy=CaptionPolicy(**policy))
    return {name: source.read(number).caption for number, name in enumerate(source.names) if ", " not in name}


def write_files(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_captions_lie_in_files_of_several_endings(tmp_path):
    files = {
        **{f"{name}.png": b"x" for name in ("a", "b", "c", "d", "e.1")},
        "a.TXT": "upper case",
        "b.caption": "another ending",
        "c.txt": "this one",
        "c.Txt": "not this",
        "c.caption": "nor this",
        "d.CAPTION": "d",
        "e.1.Txt": "dots",
        "f.txt": "of no picture",
        "README.md": "",
    }
    root = write_files(tmp_path / "in", files)
    assert captions(root) == {
        "a.png": "upper case",
        "b.png": "another ending",
        "c.png": "this one",
        "d.png": "d",
        "e.1.png": "dots",
    }
    not_taken = open_source(root).not_taken
    assert {kind: sorted(names) for kind, names in not_taken.items()} == {
        ".txt": ["c.Txt", "f.txt"],
        ".caption": ["c.caption"],
        ".md": ["README.md"],
    }
    assert not_taken.shown() == "2 .txt, 1 .caption, 1 .md"
    assert len(open_source(root, texts=False).not_taken[".txt"]) == 5


def test_lines_of_a_text_are_all_taken_or_the_first(tmp_path):
    root = write_files(tmp_path / "in", {"a.png": b"x", "a.txt": "\n  a cat \neine Katze\n"})
    assert captions(root) == {"a.png": "\n  a cat \neine Katze\n"}
    assert captions(root, lines="first") == {"a.png": "  a cat "}
    write_members(tmp_path / "tars/x.tar", {"a.png": b"x", "a.txt": b"a cat\r\neine Katze"})
    source, _ = surveyed(tmp_path / "tars", tmp_path / "out")
    assert source.read(0).caption == "a cat\r\neine Katze"
    source = open_source(tmp_path / "tars", policy=CaptionPolicy(lines="first"))
    with ThreadPoolExecutor(2) as pool:
        take_inventory(source, tmp_path / "out", True, Ranks(), pool)
    assert source.read(0).caption == "a cat"


ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "text": 'a, "quoted"\ncaption', "stars": "3"},
    {"file_name": "b.png", "text": None, "caption": "b"},
    {"file_name": "deep/c.png", "text": "c"},
    {"file_name": "d.png", "text": None},
]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["file_name", "text", "caption", "stars"])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8-sig")


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the extra `pictures`) is not installed")
    from pyarrow import parquet

    stream = io.BytesIO()
    columns = {name: [row.get(name) for row in rows] for name in ("file_name", "text", "caption", "stars")}
    parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


TABLES = {"metadata.jsonl": as_jsonl, "metadata.csv": as_csv, "metadata.parquet": as_parquet}


@pytest.mark.parametrize("name", TABLES)
def test_tables_give_captions_and_columns(tmp_path, name):
    files = {"a.png": b"x", "b.png": b"x", "deep/c.png": b"x", "d.png": b"x", "d.txt": "beside"}
    root = write_files(tmp_path / "in", files | {name: TABLES[name](ROWS)})
    assert captions(root) == {"a.png": ROWS[0]["text"], "b.png": "b", "d.png": "beside", "deep/c.png": "c"}
    source = open_source(root)
    assert source.read(0).columns["stars"] == "3"
    assert not source.not_taken and name in source.digests


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
def test_a_changed_table_is_noticed(tmp_path, name):
    root = write_folder(tmp_path / "in", {"a.png": Nasty(saved(picture()), None)})
    (root / name).write_bytes(TABLES[name]([{"file_name": "a.png", "text": "x"}]))
    caption(root, tmp_path / "out")
    (root / name).write_bytes(TABLES[name]([{"file_name": "a.png", "text": "y"}]))
    with pytest.raises(ShardError, match=rf"another config:\n  {name}: "):
        caption(root, tmp_path / "out")


def test_one_table_of_a_folder_counts(tmp_path):
    table = {name: make([{"file_name": "a.png", "text": name}]) for name, make in list(TABLES.items())[:2]}
    root = write_files(tmp_path / "in", {"a.png": b"x"} | table)
    assert captions(root) == {"a.png": "metadata.jsonl"}
    assert open_source(root).not_taken == {".csv": ["metadata.csv"]}


def test_bad_rows_of_a_csv_are_damage_with_their_line(tmp_path):
    table = b'file_name,text\na.png,a\nb.png,"two\nlines"\nc.png,c,d\ncaf\xe9.png,x\n,nobody\nd.png\n'
    root = write_files(tmp_path / "in", {f"{name}.png": b"x" for name in "abcd"} | {"metadata.csv": table})
    assert captions(root) == {"a.png": "a", "b.png": "two\nlines", "c.png": None, "d.png": None}
    source = open_source(root)
    assert damage(source, "metadata.csv, line 5") == ("bad line", "too many cells: 3 under a header of 2")
    assert damage(source, "metadata.csv, line 6")[1].startswith("not UTF-8: ")
    assert damage(source, "metadata.csv, line 7")[1].startswith("expected a JSON object with file_name")
    assert len(source.names) == 7
    (root / "metadata.csv").write_text("name,text\na.png,a\n")
    source = open_source(root)
    reason = ("bad line", "no column file_name: the header is ['name', 'text']")
    assert damage(source, "metadata.csv, line 1") == reason and len(source.names) == 5


def test_a_csv_whose_header_is_not_utf8_never_stops_a_stage(tmp_path):
    files = {"a.png": saved(picture()), "a.txt": "beside", "metadata.csv": b"file_name,ann\xe9e\na.png,1999\n"}
    root = write_files(tmp_path / "in", files)
    reason = ("bad line", "not UTF-8: the header is ['file_name', 'ann\\udce9e']")
    assert damage(open_source(root), "metadata.csv, line 1") == reason
    manifest = caption(root, tmp_path / "out")
    assert manifest["count"] == 1 and manifest["drops"]["damage"] == {"bad line": 1}


def test_a_quote_that_is_never_closed_costs_its_line(tmp_path):
    root = write_files(tmp_path / "in", {f"{name}.png": b"x" for name in "abcd"})
    (root / "metadata.csv").write_text('file_name,text\na.png,"hi\nb.png,ho\n')
    assert captions(root) == {"a.png": None, "b.png": "ho", "c.png": None, "d.png": None}
    reason = "bad row: unexpected end of data, in what begins with 'a.png,\"hi\\n'"
    assert damage(open_source(root), "metadata.csv, line 2") == ("bad line", reason)
    (root / "metadata.csv").write_text('file_name,text\na.png,"one\ntwo"\nb.png,"hi\nc.png,"ho"\nd.png,d,d\n')
    assert captions(root) == {"a.png": "one\ntwo", "b.png": None, "c.png": "ho", "d.png": None}
    source = open_source(root)
    assert damage(source, "metadata.csv, line 4")[1].startswith("bad row: ',' expected after '\"'")
    assert damage(source, "metadata.csv, line 6")[1].startswith("too many cells")
    (root / "metadata.csv").write_text('file_name,text\na.png,"hi\n' + "b.png,ho\n" + "c.png,c\n" + "\n" * 200_000)
    assert captions(root) == {"a.png": None, "b.png": "ho", "c.png": "c", "d.png": None}


def test_a_parquet_that_is_none_is_refused(tmp_path):
    as_parquet([])
    root = write_files(tmp_path / "in", {"a.png": b"x", "metadata.parquet": b"PAR1"})
    with pytest.raises(ShardError, match=r"metadata\.parquet cannot be read as Parquet: .*; repair it or take it out"):
        open_source(root)


def test_a_parquet_without_pyarrow_says_what_to_install(tmp_path):
    root = write_files(tmp_path / "in", {"a.png": b"x", "metadata.parquet": b"PAR1"})
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"from data.caption import main; main([{str(root)!r}, {str(tmp_path / 'out')!r}])"
    )
    said = processes.run("-c", code, status=1).stderr
    assert "metadata.parquet is read by pyarrow, which is not installed: pip install '.[pictures]'" in said
    assert "Traceback" not in said


SEVERAL = [
    {"file_name": "a.png", "text": [None, " ", "one", "two", None, "three"]},
    {"file_name": "b.png", "text": [], "caption": ["other", "column"]},
    {"file_name": "c.png", "text": [None, None]},
    {"file_name": "d.png", "text": float("nan"), "caption": "d"},
    {"file_name": "e.png", "text": [" "]},
]


def test_of_several_captions_the_first_or_all_are_taken(tmp_path):
    files = {f"{name}.png": b"x" for name in "abcde"}
    root = write_files(tmp_path / "in", files | {"metadata.jsonl": as_jsonl(SEVERAL)})
    assert captions(root) == {"a.png": "one", "b.png": "other", "c.png": None, "d.png": "d", "e.png": " "}
    joined = {"a.png": "one two three", "b.png": "other column", "c.png": None, "d.png": "d", "e.png": " "}
    assert captions(root, several="joined") == joined


def test_all_of_several_captions_are_taken_to_be_drawn_from(tmp_path):
    files = {f"{name}.png": b"x" for name in "abcde"}
    root = write_files(tmp_path / "in", files | {"metadata.jsonl": as_jsonl(SEVERAL)})
    source = open_source(root, policy=CaptionPolicy("random"))
    found = [source.read(number) for number in range(5)]
    assert [(one.caption, one.other_captions) for one in found] == [
        ("one", ("two", "three")),
        ("other", ("column",)),
        (None, ()),
        ("d", ()),
        (" ", ()),
    ]


def test_captions_of_tars_follow_the_policy(tmp_path):
    write_members(tmp_path / "in/x.tar", {"a.png": b"x", "a.json": b'{"text": ["one", null, "two"]}'})
    source, _ = surveyed(tmp_path / "in", tmp_path / "out")
    assert source.read(0).caption == "one"
    source, _ = surveyed(tmp_path / "in", tmp_path / "out", policy=CaptionPolicy("random"))
    assert (source.read(0).caption, source.read(0).other_captions) == ("one", ("two",))


def test_bad_lines_never_stop_a_stage(tmp_path):
    root = write_folder(tmp_path / "in", {"a.png": Nasty(saved(picture()), None)})
    lines = [b'{"file_name": "a.png", "text": "x"}', *(line for line, _ in BAD_LINES)]
    (root / "metadata.jsonl").write_bytes(b"\n".join(lines))
    manifest = caption(root, tmp_path / "out")
    assert manifest["count"] == 1 and manifest["drops"]["damage"] == {"bad line": len(BAD_LINES)}
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    places = [f"metadata.jsonl, line {number}" for number in range(2, len(lines) + 1)]
    assert sorted(line["source"] for line in listed) == sorted(places)
    (root / "b.png").write_bytes(b"")
    with pytest.raises(ShardError, match="1 of 13 inputs are damaged"):
        caption(root, tmp_path / "other", max_damage=0.0)


def test_what_is_not_taken_is_counted_and_listed(tmp_path, caplog):
    pictures_and_more = {"a.png": saved(picture()), "a.txt": "x", "b.psd": b"", "c/d.PSD": b"", "e.mp4": b"", "f": b""}
    root = write_files(tmp_path / "in", pictures_and_more)
    with caplog.at_level(logging.INFO):
        manifest = caption(root, tmp_path / "out")
    assert manifest["not_taken"] == {".mp4": 1, ".psd": 2, "no ending": 1}
    assert any(message.startswith("not taken: 2 .psd, 1 .mp4, 1 no ending (listed in") for message in caplog.messages)
    lines = (tmp_path / "out/not_taken.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "b.psd", "kind": ".psd"},
        {"source": "c/d.PSD", "kind": ".psd"},
        {"source": "e.mp4", "kind": ".mp4"},
        {"source": "f", "kind": "no ending"},
    ]
    for name in ("b.psd", "c/d.PSD", "e.mp4", "f"):
        (root / name).unlink()
    assert caption(root, tmp_path / "out")["not_taken"] == {}
    assert not (tmp_path / "out/not_taken.jsonl").exists()


def test_what_a_list_names_is_taken_whatever_its_ending(tmp_path):
    files = {"a": b"x", "metadata.jsonl": as_jsonl([{"file_name": "a", "text": "x"}]), "b": b"x"}
    source = open_source(write_files(tmp_path / "in", files))
    assert list(source.names) == ["a"] and source.not_taken == {"no ending": ["b"]}


def test_shards_of_before_are_gone_on_with_where_nothing_new_is_asked(tmp_path):
    root = write_folder(tmp_path / "in", pictures(2))
    caption(root, tmp_path / "out")
    (sidecar,) = read_sidecars(tmp_path / "out").values()
    assert not {"several", "lines", "metadata.csv"} & set(sidecar["config"])
    with pytest.raises(ShardError, match=r"another config:\n  lines: null -> \"first\""):
        caption(root, tmp_path / "out", lines="first")
    with pytest.raises(ShardError, match=r"another config:\n  several: null -> \"random\""):
        caption(root, tmp_path / "out", several="random")


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


BAD_LINES = [
    (b"[]", "expected a JSON object with file_name, found b'[]'"),
    (b"{", "expected a JSON object with file_name, found b'{'"),
    (b"[" * 100_000, "expected a JSON object with file_name, found b'[[["),
    (b'{"file_name": "caf\xe9.png"}', "expected a JSON object with file_name"),
    (b'{"text": "x"}', "expected a JSON object with file_name"),
    (b'{"file_name": 3}', "file_name is 3, expected a path"),
    (rb'{"file_name": "b\u0000.png"}', r"file_name is 'b\x00.png', expected a path"),
    (rb'{"file_name": "b\ud800.png"}', r"file_name is 'b\ud800.png', expected a path"),
    (b'{"file_name": "b.png", "caption": 1}', "caption is 1, expected a string"),
    (b'{"file_name": "b.png", "text": ["x", 1]}', "text is ['x', 1], expected strings"),
    (b'{"file_name": "./a.png"}', "a.png is listed twice"),
]


@pytest.mark.parametrize(("line", "fault"), BAD_LINES)
def test_a_bad_line_of_a_list_is_damage_with_its_place(tmp_path, line, fault):
    (tmp_path / "list.jsonl").write_bytes(b'{"file_name": "a.png", "text": "x"}\n\n' + line)
    source = open_source(tmp_path / "list.jsonl")
    assert list(source.names) == ["a.png", "list.jsonl, line 3"]
    reason, detail = damage(source, "list.jsonl, line 3")
    assert reason == "bad line" and fault in detail


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("\n \n", r"the list .*list\.jsonl is empty; expected one JSON object with file_name a line"),
        ("\n[]\n{", r"list\.jsonl holds no line that can be used; .*; list\.jsonl, line 2: expected a JSON object"),
    ],
)
def test_a_list_without_a_picture_is_refused(tmp_path, lines, message):
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
    beside = {"mask.png": "x.tar/mask.mask.png", "cls": "x.tar/mask.cls"}
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
    assert source.not_taken == {f".{kind}": [name] for kind, name in beside.items()}


def write_members(tar: Path, members: dict[str, bytes]) -> None:
    """A tar with members of any name, in their order."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_names_with_dots_are_pictures_of_their_own(tmp_path):
    write_members(
        tmp_path / "in/x.tar",
        {
            "22.05.png": b"1",
            "22.05.txt": b"one",
            "sub/v1.2.final.JPG": b"2",
            "sub/v1.2.final.json": b'{"text": "two"}',
            "7.jpg": b"3",
            "7.txt": b"three",
            "7.5.jpg": b"4",
            "7.5.CAPTION": b"four",
            "7.mask.jpg": b"a mask of 7",
            "9.9.caption": b"no picture",
        },
    )
    source, hashes = surveyed(tmp_path / "in", tmp_path / "out")
    found = {name: source.read(number) for number, name in enumerate(source.names)}
    assert {name: (one.content, one.caption) for name, one in found.items()} == {
        "x.tar/22.05.png": (b"1", "one"),
        "x.tar/7.5.jpg": (b"4", "four"),
        "x.tar/7.jpg": (b"3", "three"),
        "x.tar/sub/v1.2.final.JPG": (b"2", "two"),
    }
    assert source.not_taken == {".mask.jpg": ["x.tar/7.mask.jpg"], ".caption": ["x.tar/9.9.caption"]}
    for number, name in enumerate(source.names):
        assert hashes[number].tobytes() == hashlib.sha256(found[name].content).digest()


def test_all_that_is_not_taken_of_tars_is_listed(tmp_path):
    members = {
        "a.jpg": saved(picture()),
        "a.png": b"a second picture",
        "a.caption": b"lost",
        "a.TXT": b"taken",
        "a.npy": b"1",
        ".b.jpg": b"hidden",
        "readme": b"no ending",
        "c.mp4": b"2",
        "d.cls.mp4": b"3",
    }
    write_members(tmp_path / "in/x.tar", members)
    for name in ("more.tar.gz", "x_stats.json", "loose.jpg", "sub/y.tar"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    manifest = caption(tmp_path / "in", tmp_path / "out")
    assert manifest["count"] == 1 and b"taken" in (tmp_path / "out/unit-000000.tar").read_bytes()
    taken_of_tar = {".mp4": 2, ".npy": 1, ".png": 1, ".caption": 1, "hidden": 1, "no ending": 1}
    assert manifest["not_taken"] == taken_of_tar | {".gz": 1, ".json": 1, ".jpg": 1, ".tar": 1}
    lines = [json.loads(line) for line in (tmp_path / "out/not_taken.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"more.tar.gz", "x_stats.json", "loose.jpg", "sub/y.tar"} | {
        f"x.tar/{name}" for name in members.keys() - {"a.jpg", "a.TXT"}
    }


def test_an_index_of_before_is_made_again_and_its_units_stay(tmp_path):
    root = write_tars(tmp_path / "in", pictures(4), per_tar=2)
    manifest = caption(root, tmp_path / "out")
    for path in (tmp_path / "out" / INPUTS).glob("part-*"):
        survey = json.loads(path.read_text())
        survey["part"] = survey["part"].rpartition(" ")[0]
        del survey["not_taken"]
        path.write_text(json.dumps(survey))
    assert caption(root, tmp_path / "out") == manifest


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
    with pytest.raises(
        ShardError, match=r"the 1 tars in .* hold no picture: looked for members that end in \.avif, \.bmp"
    ):
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
