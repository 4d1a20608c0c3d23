"""The one command line: options, help and mistakes."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from data.jobs.command import existing, parse, parse_with, read_config, run, to_yaml, underscored
from data.jobs.errors import CaptionerError, ShardError, work_begins
from data.jobs.extras import extra_of
from data.jobs.mistakes import in_words


@dataclass(frozen=True)
class Lamp:
    """A lamp.

    Args:
        watts: Power.
        colour: Colour of its light.
    """

    watts: int = 40
    colour: Literal["white", "yellow"] = "white"

    def __post_init__(self) -> None:
        if self.watts < 0:
            raise ValueError(f"--watts is {self.watts}, expected at least 0")


@dataclass(frozen=True)
class Room:
    """A room.

    Args:
        name: Name of the room.
        lamp: Its lamp.
    """

    name: str
    lamp: Lamp = field(default_factory=Lamp)


def furnish(room: Path, out: Path, num_chairs: int = 4, lamp: Lamp | None = None) -> tuple:
    """Furnish a room.

    Args:
        room: folder of the room
        out: folder of what is made
        num_chairs: chairs in it
        lamp: its lamp
    """
    return room, out, num_chairs, lamp


def shine(room: Path, lamp: Lamp = Lamp()) -> tuple:
    """Shine.

    Args:
        room: folder of the room
        lamp: its lamp
    """
    return room, lamp


def light(room: Path, config: Lamp) -> tuple:
    """Light a room."""
    return room, config


def stopped(capsys: pytest.CaptureFixture, *argv: str, command=furnish, **options) -> tuple[int, str]:
    """Exit status and what a user reads of a command that does not run."""
    with pytest.raises(SystemExit) as stop:
        run("rooms.furnish", command, argv, **options)
    said = capsys.readouterr()
    assert not said.out
    code = stop.value.code
    return (1, str(code)) if isinstance(code, str) else (code, said.err)


def test_options_are_spelled_with_either_line():
    for option in ("--num_chairs", "--num-chairs"):
        assert run("rooms.furnish", furnish, ["--room=a", f"{option}=3", "--out", "b"])[2] == 3
    assert underscored(["--unit-size=a-b", "--x-y.z-w", "a-b", "-h"]) == ["--unit_size=a-b", "--x_y.z_w", "a-b", "-h"]


def test_positional_and_config():
    assert run("rooms.light", light, ["hall", "--watts", "60"], positional=True) == (Path("hall"), Lamp(60))


def test_options_from_a_file_and_after_it(tmp_path):
    (tmp_path / "lamp.yaml").write_text("watts: 25\ncolour: yellow\n")
    found = run("rooms.light", light, ["--room=x", f"--config={tmp_path / 'lamp.yaml'}", "--watts=30"])
    assert found == (Path("x"), Lamp(30, "yellow"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--room=a", "--out=b", "--num_chair=3"), "there is no option --num_chair; did you mean --num_chairs?"),
        (("--room=a", "--out=b", "--lamp.wats=3"), "there is no option lamp.wats"),
        (("--room=a", "--out=b", "--num-chairs=x"), "--num_chairs is x, expected a whole number"),
        (("--room=a", "--out=b", "--lamp.colour=yelow"), "expected one of white, yellow; did you mean yellow?"),
        (("--room=a", "--out=b", "--lamp.watts=-1"), "--watts is -1, expected at least 0"),
        (("--room=a",), "--out is missing"),
        (("--room=a", "--out"), "--out has no value"),
        (("--room=a", "--out=b", "more"), "'more' is one word too many"),
    ],
)
def test_a_wrong_option_is_told_in_two_lines(capsys, argv, words):
    status, said = stopped(capsys, *argv)
    assert status == 2
    assert words in said and said.startswith("rooms.furnish: ")
    assert said.splitlines()[1:] == ["all options: python -m rooms.furnish --help"]


def test_the_right_name_in_another_group_is_offered(capsys):
    for word in ("--watts=3", "--lamp.wats=3"):
        said = stopped(capsys, "--room=a", word, command=shine)
        assert said[0] == 2 and said[1].splitlines()[0].endswith("did you mean --lamp.watts?")
    assert (
        "--lamp stands for several options; give one of them"
        in stopped(capsys, "--room=a", "--lamp=3", command=shine)[1]
    )


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 1, "there is no such file"),
        ("num_chairs: [", 1, "cannot be read as YAML"),
        ("num_chair: 3", 2, "there is no option num_chair; did you mean --num_chairs?"),
        ("lamp: {wats: 3}", 2, "there is no option lamp.wats"),
        ("num_chairs: many", 2, "--num_chairs is many, expected a whole number"),
    ],
)
def test_a_wrong_file_of_options_is_told_too(capsys, tmp_path, content, status, words):
    path = tmp_path / "options.yaml"
    if content is not None:
        path.write_text(content)
    code, said = stopped(capsys, f"--config={path}", "--room=a", "--out=b")
    assert code == status
    assert words in said
    assert len(said.splitlines()) <= 2


def raising(error: BaseException):
    def command(room: Path) -> None:
        """Fail."""
        raise error

    return command


@pytest.mark.parametrize(
    "error", [ValueError("no room"), ShardError("no room"), OSError("no room"), CaptionerError("no room")]
)
def test_what_a_user_can_change_has_no_traceback(capsys, error):
    assert stopped(capsys, "--room=a", command=raising(error)) == (1, "rooms.furnish: no room")
    with pytest.raises(type(error), match="no room"):
        run("rooms.furnish", raising(error), ["--room=a", "--debug"])


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run("rooms.furnish", raising(ZeroDivisionError()), ["--room=a"])


def test_a_library_of_an_extra_is_told_with_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # what Python itself notes of a module that is not there

    def needy() -> None:
        importlib.import_module("torchmetrics")

    with pytest.raises(SystemExit) as caught:
        run("eval.pie_bench", needy, [])
    assert caught.value.code == "eval.pie_bench: torchmetrics is not installed; pip install '.[eval]' brings it"


@pytest.mark.parametrize(
    ("module", "extra"), [("torchmetrics.image", "eval"), ("skimage", "dev"), ("tensorboard", "tracking"), ("no", None)]
)
def test_extras_are_those_of_the_project(module, extra):
    assert extra_of(module) == extra


def test_a_path_beside_the_config_that_names_it_is_told(capsys, monkeypatch, tmp_path):
    def furnish_from(plans: list[Path]) -> None:
        for plan in plans:
            existing(plan, "--plans")

    typed_in, saved = tmp_path / "here", tmp_path / "saved"
    typed_in.mkdir()
    saved.mkdir()
    (saved / "room.png").touch()
    (saved / "room.json").write_text('{"plans": ["room.png"]}')
    monkeypatch.chdir(typed_in)
    for words in (["--config=../saved/room.json"], ["--config", "../saved/room.json"]):
        status, said = stopped(capsys, *words, command=furnish_from)
        assert status == 1 and "\n" not in said.strip()
        assert "--plans room.png: there is no such file or folder; room.png lies beside ../saved/room.json" in said
        assert "type it in ../saved, or give the whole path there" in said
    (saved / "room.png").unlink()
    assert "beside" not in stopped(capsys, "--config=../saved/room.json", command=furnish_from)[1]
    (saved / "room.png").touch()
    monkeypatch.chdir(saved)
    run("rooms.furnish", furnish_from, ["--config=room.json"])


def test_ctrl_c_is_told(capsys):
    status, said = stopped(capsys, "--room=a", command=raising(KeyboardInterrupt()))
    assert status == 130 and said.startswith("rooms.furnish: stopped")


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_other_ranks_tell_only_what_is_theirs_alone(capsys, monkeypatch, names):
    monkeypatch.setattr("data.jobs.errors._common", True)  # an earlier test may have begun work
    for name, value in zip(names, ("1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    for error, argv in ((ValueError("no room"), ["--room=a"]), (None, ["--rom=a"])):
        with pytest.raises(SystemExit) as stop:
            run("rooms.furnish", raising(error) if error else furnish, argv)
        assert stop.value.code == (1 if error else 2)
        assert capsys.readouterr().err == ""

    def command(room: Path) -> None:
        work_begins()
        raise OSError("this disk is full")

    assert stopped(capsys, "--room=a", command=command) == (1, "rooms.furnish (rank 1): this disk is full")


def scale(weights: dict[str, float] | None = None, other_weight: float = 1.0) -> tuple:
    """Scale.

    Args:
        weights: numbers by name
        other_weight: another
    """
    return weights, other_weight


def test_keys_of_mappings_stay_as_they_are():
    assert run("rooms.scale", scale, ["--weights.1e-3=2", "--other-weight=3"]) == ({"1e-3": 2.0}, 3.0)


def collect(
    files: tuple[str, ...], sides: tuple[float, ...] | None = (1.0,), kinds: list[Literal["a", "b"]] | None = None
) -> tuple:
    """Collect.

    Args:
        files: names of files
        sides: numbers
        kinds: kinds of files
    """
    return files, sides, kinds


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (("--files", "a, b.png"), (("a, b.png",), (1.0,), None)),
        (("--files", "a.png", "b c.png", "--sides", "-0.5,1"), (("a.png", "b c.png"), (-0.5, 1.0), None)),
        (("--files=a.png", "b.png", "--sides=2"), (("a.png", "b.png"), (2.0,), None)),
        (("--files", '["a.png", "b.png"]', "--sides", "-1", "2.5"), (("a.png", "b.png"), (-1.0, 2.5), None)),
        (("--files=[a.png]", "--sides=[1,2]", "--kinds", "a", "b"), (("a.png",), (1.0, 2.0), ["a", "b"])),
        (("--sides", "null", "--kinds=null", "--files=[]"), ((), None, None)),
        (("--files", "[a cat] on a mat"), (("[a cat] on a mat",), (1.0,), None)),
        (("--files=[a cat] on [a mat]",), (("[a cat] on [a mat]",), (1.0,), None)),
        (("--files", "[a cat"), (("[a cat",), (1.0,), None)),
        (("--files", "null"), (("null",), (1.0,), None)),
        (("--files", "[[a] cat, null b]", "--kinds", "null"), (("[[a] cat, null b]",), (1.0,), None)),
    ],
)
def test_lists_are_typed_as_people_type_them(argv, found):
    assert run("rooms.collect", collect, argv) == found


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--files",), "--files has no value"),
        (("--files=a", "--sides=1,x"), "--sides is [1, 'x'], expected a list [...] of numbers"),
        (("--files=a", "--kinds=c"), "--kinds is ['c'], expected a list [...] of values, each one of a, b"),
    ],
)
def test_a_wrong_list_is_told_as_it_was_read(capsys, argv, words):
    status, said = stopped(capsys, *argv, command=collect)
    assert status == 2 and words in said


def test_words_behind_a_list_are_not_taken_where_arguments_have_no_names():
    def stage(source: Path, sides: tuple[float, ...] = (1.0,)) -> tuple:
        """Run a stage.

        Args:
            source: folder
            sides: numbers
        """
        return source, sides

    assert run("rooms.stage", stage, ["--sides", "1,2", "in"], positional=True) == (Path("in"), (1.0, 2.0))


def test_help_teaches_without_types(capsys):
    with pytest.raises(SystemExit) as stop:
        run("rooms.furnish", furnish, ["--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: python -m rooms.furnish [options] The one command line: options, help and mistakes.")
    assert "chairs in it (a whole number; default 4)" in said
    assert "folder of the room (a path; required)" in said
    assert "--debug" in said and "CONFIG Path to a configuration file" not in said
    for python in ("<class", "Optional", "Union[", "pathlib", "type:", "default:"):
        assert python not in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number, or null"),
        (bool, "true or false"),
        (tuple[float, float], "a list [...] of numbers"),
        (list[Path] | None, "a list [...] of paths, or null"),
        (tuple[Literal["a", "b"], ...], "a list [...] of values, each one of a, b"),
        (dict[str, int], "a mapping"),
    ],
)
def test_types_in_words(kind, words):
    assert in_words(kind) == words


def test_parse_and_back():
    room = parse(Room, ["--name=hall", "--lamp.watts=7"])
    assert room == Room("hall", Lamp(7))
    assert "watts: 7" in to_yaml(room)
    assert parse_with(Lamp, Room, ["--watts=1", "--name=x"]) == (Lamp(1), Room("x"))
    with pytest.raises(SystemExit) as stop:
        parse(Room, ["--nam=hall"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{name: hall, lamp: {gone: 3}}", "there is no option lamp.gone"),
        ("{name: hall, lamp: {watts: -1}}", "--watts is -1"),
        ("lamp: {watts: 1}", "--name is missing"),
    ],
)
def test_a_file_that_is_no_command_line_is_told_by_its_path(tmp_path, content, words):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(Room("hall", Lamp(7))))
    assert read_config(Room, path) == Room("hall", Lamp(7))
    path.write_text(content)
    with pytest.raises(ValueError, match=f"config.yaml: {words}"):
        read_config(Room, path)


@dataclass(frozen=True)
class Shelf:
    """A shelf.

    Args:
        name: Name of the shelf.
        boards: Places of its boards.

    Attributes:
        former: Values that older files lack.
    """

    former: ClassVar[Mapping[str, object]] = {"boards": None}
    name: str
    boards: tuple[float, ...] | Literal["even"] | None = "even"


def test_what_an_older_file_lacks_may_have_been_null(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: low")
    assert read_config(Shelf, path) == Shelf("low", None)
    assert parse(Shelf, [f"--config={path}"]) == Shelf("low", "even")


def test_a_hub_that_is_not_reached_is_named_as_the_cause(capsys, monkeypatch):
    from transformers import CLIPModel  # the real error of a real library

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def command(room: Path) -> None:
        """Load a model."""
        CLIPModel.from_pretrained("nobody/nothing", local_files_only=True)

    status, said = stopped(capsys, "--room=a", command=command)
    assert status == 1
    assert "the hub was not reached: HF_HUB_OFFLINE is set" in said
    assert len(said.splitlines()) == 2


def test_what_is_missing_is_named_with_its_option(tmp_path):
    assert existing(str(tmp_path), "--room") == tmp_path
    with pytest.raises(ValueError, match=r"--room .*/none: there is no such folder of a room"):
        existing(tmp_path / "none", "--room", "folder of a room")
