"""Finished pieces of work in a folder: kept whole, found again, shared, made again after a kill."""

from pathlib import Path

import pytest

from data.jobs.files import temporary_path
from data.jobs.kept import SETTINGS, KeptFolder, changed_settings, digest
from data.jobs.sharing import LOCK, Ranks
from tests.processes import Process, finish, kill_when, start

SIZES = {f"piece-{index}": 1 + index for index in range(6)}

WORKER = """
import sys, time
from pathlib import Path
from data.jobs.kept import KeptFolder
kept = KeptFolder(Path(sys.argv[1]), {"seed": 0})
for name in kept.missing({f"piece-{index}": 1 + index for index in range(6)}, "work"):
    time.sleep(float(sys.argv[2]))
    kept.keep(name, {"made by": sys.argv[3]}, {".txt": lambda path: path.write_text(name)})
"""


def worker(folder: Path, pause: float, name: str) -> Process:
    """Starts a process that makes the pieces."""
    return start("-c", WORKER, folder, pause, name)


def makers(folder: Path) -> dict[str, str]:
    """Who made each finished piece."""
    kept = KeptFolder(folder)
    return {name: record["made by"] for name in SIZES if (record := kept.read(name))}


def test_pieces_are_kept_and_found_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    kept = KeptFolder(tmp_path / "kept", {"seed": 0})
    made = []
    for name in kept.missing(SIZES, "work"):
        assert kept.read(name) is None
        made.append(name)
        if len(made) == 3:
            break
        kept.keep(name, [name], {".bin": lambda path: path.write_bytes(b"12")})
    assert [kept.read(name) for name in made] == [[made[0]], [made[1]], None]
    assert kept.path(made[0], ".bin").read_bytes() == b"12"
    assert not caplog.messages
    again = []
    for name in KeptFolder(tmp_path / "kept", {"seed": 0}).missing(SIZES, "work"):
        again.append(name)
        kept.keep(name, [name])
    assert sorted([*made[:2], *again]) == sorted(SIZES)
    assert list(kept.missing(SIZES, "work")) == []
    assert caplog.messages == [
        f"work: 2 of 6 pieces are there already ({tmp_path / 'kept'}); going on with the rest",
        f"work: 6 of 6 pieces are there already ({tmp_path / 'kept'})",
    ]
    assert sorted(path.name for path in (tmp_path / "kept").glob(".*")) == [LOCK]
    assert "21/21" in capfd.readouterr().err, "the bar counts what the pieces hold"


def test_the_bar_moves_within_a_piece(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    kept = KeptFolder(tmp_path)
    kept.tick()  # nothing is made yet
    for name in kept.missing({"one": 4, "two": 4}, "work", "edit"):
        if name == "two":
            kept.tick(3)
            raised = kept._progress._bar.n  # type: ignore[union-attr]
        kept.keep(name, {})
    assert raised == 7
    assert "8/8" in capfd.readouterr().err


def test_a_piece_that_could_not_be_made_is_given_back(tmp_path: Path):
    kept = KeptFolder(tmp_path)
    with pytest.raises(RuntimeError, match="no memory"):
        for _ in kept.missing({"one": 1}, "work"):
            raise RuntimeError("no memory")
    assert not temporary_path(tmp_path, "one.json").exists()
    assert list(KeptFolder(tmp_path).missing({}, "work")) == []


def test_a_file_that_fails_leaves_no_piece(tmp_path: Path):
    kept = KeptFolder(tmp_path)

    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        kept.keep("one", {}, {".txt": write})
    assert kept.read("one") is None and not kept.path("one", ".txt").exists()


def test_a_piece_is_forgotten_record_first(tmp_path: Path):
    kept = KeptFolder(tmp_path)
    kept.keep("one", {"a": 1}, {".txt": lambda path: path.write_text("x")})
    kept.forget("one", ".txt", ".png")
    assert kept.read("one") is None and not kept.path("one", ".txt").exists()


def test_other_settings_are_refused_in_three_lines(tmp_path: Path):
    settings = {"editor": {"steps": 4, "words": ["a", "b"]}, "seed": 0, "taus": (1, 2)}
    KeptFolder(tmp_path, settings)
    KeptFolder(tmp_path, settings)
    changed = {"editor": {"steps": 8, "words": ["a", "b"]}, "seed": 1, "taus": (1, 2)}
    with pytest.raises(ValueError, match=r"editor\.steps: 4 -> 8; seed: 0 -> 1\n.*another --out") as error:
        KeptFolder(tmp_path, changed)
    assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) == 3
    assert (tmp_path / SETTINGS).is_file()


def test_a_long_difference_is_cut(tmp_path: Path):
    before, now = ({str(index): index + shift for index in range(9)} for shift in (0, 1))
    assert changed_settings(before, now).endswith("; 3: 3 -> 4; and 5 more")
    assert changed_settings({"a": {}}, {}) == "a: {} -> null"
    assert len(changed_settings({"a": "x" * 5000}, {"a": "y" * 5000})) < 1000


def test_a_digest_depends_on_every_word_and_not_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}, "x") == digest({"b": 2, "a": 1}, "x")
    assert len({digest("a"), digest("a", "b"), digest(["a", "b"]), digest({"a": 1})}) == 4
    assert len(digest(1)) == 16


def test_a_killed_process_loses_one_piece_and_no_more(tmp_path: Path):
    first = worker(tmp_path, 0.3, "first")
    kill_when(lambda: len(list(tmp_path.glob("piece-*.json"))) >= 2, first)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("piece-*.json")}
    worker(tmp_path, 0, "second").finished()
    found = makers(tmp_path)
    assert set(found) == set(SIZES)
    assert {name for name, by in found.items() if by == "first"} == {Path(name).stem for name in before}
    assert not list(tmp_path.glob(".*.tmp"))
    assert all((tmp_path / f"{name}.txt").read_text() == name for name in SIZES)


def test_two_processes_share_the_pieces(tmp_path: Path):
    finish([worker(tmp_path, 0.2, name) for name in ("first", "second")])
    assert set(makers(tmp_path).values()) == {"first", "second"}


def test_a_rank_begins_with_its_own_piece(tmp_path: Path):
    kept = KeptFolder(tmp_path)
    assert next(kept.missing(SIZES, "work", ranks=Ranks(1, 3))) == "piece-1"
