"""No docstring and no line of its Args begins with a bare preposition or pronoun; ruff holds what else is asked."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "data", "eval", "train", "scripts")
BARE = {"of", "as", "in", "by", "whose", "with", "that", "those", "for", "from", "on", "at", "to", "under", "between"}
BARE |= {"over", "beside", "behind", "after", "before", "it", "they", "its", "their", "also"}
_ARGUMENT = re.compile(r"\s+[\w, *]+: ([\w'-]+)")


def first_words(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, first word and text of every docstring and of every line of an Args section."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        line = getattr(node, "lineno", 1)
        yield line, text.split()[0].strip(",;:."), text.splitlines()[0]
        section = re.search(r"Args:\n(.*?)(?:\n\S|\n\n|\Z)", text, re.DOTALL)
        for argument in section.group(1).splitlines() if section else ():
            if found := _ARGUMENT.match(argument):
                yield line, found.group(1), argument.strip()


def bare(source: str) -> list[str]:
    """Lines whose first word says nothing of what they are about."""
    return [f"{line}: {text}" for line, word, text in first_words(source) if word.lower() in BARE]


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_are_sentences(package):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in bare(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


def test_bare_beginnings_are_found():
    assert bare('def f(x):\n    """Of the values."""') == ["1: Of the values."]
    assert bare('def f(x):\n    """Mean of the values.\n\n    Args:\n        x: of the scenes.\n    """') == [
        "1: x: of the scenes."
    ]
    assert bare('class A:\n    """A mean.\n\n    Args:\n        x: Values, at\n            most four.\n    """') == []
