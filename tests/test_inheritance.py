"""Files of options that inherit from others."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from data.jobs.command import parse, read_config, to_yaml
from data.jobs.inheritance import flattened
from train.plan import find_method


@dataclass(frozen=True)
class Leg:
    """A leg of a table."""

    length: float = 70.0
    """Length in cm."""
    wood: str = "oak"
    """Its wood."""
    screws: tuple[int, ...] = (4, 5)
    """Sizes of its screws."""


@dataclass(frozen=True)
class Table:
    """A table."""

    name: str
    """Name of the table."""
    round: str = "no"
    """A word that YAML would take for false."""
    leg: Leg = field(default_factory=Leg)
    """Each of its legs."""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """A file whose base, in the folder above, has a base of its own."""
    write(tmp_path / "table.yaml", 'name: plain  # and no more\nround: "no"\nleg: {length: 7e1, screws: [1, 2]}\n')
    write(tmp_path / "rows" / "red.yaml", "base: ../table.yaml\nname: red\nleg:\n  wood: beech\n")
    return write(tmp_path / "rows" / "low" / "low.yaml", "base: ../red.yaml\nleg: {length: 4.5e+1, screws: [3]}\n")


def test_values_override_those_of_the_chain_section_by_section(low: Path):
    expected = Table("red", "no", Leg(45.0, "beech", (3,)))
    assert parse(Table, ["--config", str(low)]) == expected
    assert parse(Table, [f"--config={low}", "--leg.wood=pine"]).leg == Leg(45.0, "pine", (3,))
    assert read_config(Table, low) == expected
    assert "base" not in yaml.safe_load(to_yaml(expected)) and "base" not in yaml.safe_load(flattened(low))


def test_a_file_without_a_base_stays_as_it_is(low: Path):
    path = low.parent.parent.parent / "table.yaml"
    assert flattened(path) == path.read_text()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ("base: ../gone.yaml", 1, "wrong.yaml: base ../gone.yaml: there is no such file"),
        ("base: wrong.yaml", 1, "leads back to it (wrong.yaml -> wrong.yaml)"),
        ("base: high.yaml", 1, "leads back to it (wrong.yaml -> high.yaml -> wrong.yaml)"),
        ("name: x\nbase: high.yaml", 1, "base high.yaml stands behind other keys; make it the first one"),
        ("base: high\nname: x", 2, "base is no option here: to inherit, a file names another .yaml by it"),
        ("base: list.yaml", 1, "base list.yaml: it holds no options by name"),
        ("base: broken.yaml", 1, "base broken.yaml: it cannot be read as YAML"),
        ("base: lengthy.yaml", 2, "there is no option leg.lenght"),
    ],
)
def test_a_wrong_base_is_one_sentence(tmp_path: Path, capsys, content: str, status: int, words: str):
    write(tmp_path / "high.yaml", "base: wrong.yaml\n")
    write(tmp_path / "list.yaml", "[1, 2]\n")
    write(tmp_path / "broken.yaml", "name: [\n")
    write(tmp_path / "lengthy.yaml", "name: x\nleg: {lenght: 3}\n")
    path = write(tmp_path / "wrong.yaml", content)
    with pytest.raises(SystemExit) as stop:
        parse(Table, [f"--config={path}", "--name=y"], name="tables")
    code = stop.value.code
    said = str(code) if isinstance(code, str) else capsys.readouterr().err
    assert (1 if isinstance(code, str) else code) == status
    assert words in said and len(said.splitlines()) <= 2


def test_the_plan_finds_the_method_in_the_base(tmp_path: Path):
    path = write(tmp_path / "row.yaml", f"base: {Path('configs/stylediffusion/sd15.yaml').resolve()}\n")
    assert find_method(["--config", str(path)]).name == "stylediffusion"
