"""The list that `scripts.mutants` works through is of lines and tests that are there."""

import ast
from pathlib import Path

import pytest

from scripts.faults.broken_lines import BROKEN_LINES, BrokenLine


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: line.name)
def test_a_broken_line_stands_in_its_file_and_has_its_tests(line: BrokenLine):
    source = Path(line.path).read_text(encoding="utf-8")
    assert source.count(line.original) == 1
    ast.parse(source.replace(line.original, line.broken))
    for test in line.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in Path(path).read_text(encoding="utf-8")


def test_names_are_told_apart():
    assert len({line.name for line in BROKEN_LINES}) == len(BROKEN_LINES)
