"""The words of command lines: types and defaults in `--help`, and what is wrong with an option."""

import re
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import jsonargparse

from data.jobs.inheritance import BASE

WRONG_INPUT, WRONG_OPTION, STOPPED = 1, 2, 130
"""Exit statuses: work that cannot go on, options that cannot be read, Ctrl-C."""


class Wording(jsonargparse.DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help without Python's types in it: what a value is, and its default."""

    def add_usage(self, usage: str | None, actions: Any, *args: Any, **kwargs: Any) -> None:
        """One line, however many options there are."""
        places = [action.metavar or action.dest.upper() for action in actions if not action.option_strings]
        super().add_usage(" ".join([self._prog, *map(str, places), "[options]"]), actions, *args, **kwargs)

    def add_argument(self, action: Action) -> None:
        """Every option but those that stand for a group and take a file of it."""
        if type(action).__name__ != "_ActionConfigLoad":
            super().add_argument(action)

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if getattr(action, "_jsonargparse_preexpanded_help", False):  # it has been through here
            return text
        if isinstance(action, jsonargparse.ActionConfigFile) or type(action).__name__ == "_HelpAction":
            return text
        facts = []
        kind = kind_of(action)
        if kind is not None and get_origin(kind) is not Literal:  # choices stand beside the option's name
            facts.append(in_words(kind))
        if action.required:
            facts.append("required")
        elif action.option_strings and action.default != "==SUPPRESS==" and "%(default)" not in text:
            facts.append(f"default {_plain(action.default)}")
        joined = "; ".join(fact for fact in facts if fact)
        return f"{text} ({joined})" if joined else text

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return action.dest.rpartition(".")[2].upper()


def kind_of(action: Action) -> Any:
    """The type of an option's values; None where jsonargparse knows none."""
    kind = getattr(action, "_typehint", None) or action.type
    return kind if isinstance(kind, type | UnionType) or get_origin(kind) is not None else None


def in_words(kind: Any) -> str:
    """A type as a user would say it: "a whole number", "one of adamw, adamw8bit", "a number, or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        known = [in_words(part) for part in arguments if part is not NoneType]
        return ", or ".join(dict.fromkeys([*known, *(["null"] if NoneType in arguments else [])]))
    if origin is Literal:
        return f"one of {', '.join(map(_plain, arguments))}"
    if is_mapping(kind):
        return "a mapping"
    if origin is not None and arguments:
        return f"a list [...] of {_several(in_words(arguments[0]))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(kind, "")


def is_mapping(kind: Any) -> bool:
    """Whether values of a type are mappings, or null."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(issubclass(get_origin(part) or object, Mapping) for part in parts if get_origin(part) is not Literal)


def element_of(kind: Any) -> Any:
    """The type of a list's values, where they are numbers, texts, paths or words to choose from; else None."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    lists = [part for part in parts if part is not NoneType]
    if len(lists) != 1 or get_origin(lists[0]) not in (list, tuple):
        return None
    element = get_args(lists[0])[0]
    if get_args(element) == (int, float):
        return float
    return element if element in (int, float, str, Path) or get_origin(element) is Literal else None


def _several(words: str) -> str:
    plural = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "a path": "paths"}
    return plural.get(words, f"values, each {words}" if words else "values")


def _plain(value: Any) -> str:
    """A default as it would be typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value) if str(value) else '""'


def explained(message: str, options: Mapping[str, Any]) -> tuple[str, int]:
    """One line on what is wrong with a command line, and the exit status.

    Args:
        message: The words of jsonargparse.
        options: Type of each option's values by its name, such as "--optim.lr".
    """
    for pattern, explain in _EXPLANATIONS:
        if found := re.search(pattern, message, re.DOTALL):
            return explain(found, options)
    return " ".join(message.split()), WRONG_OPTION


def _unknown(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    word = found["words"].split()[0].partition("=")[0]
    if not word.startswith("-"):
        return f"{word!r} is one word too many: values stand behind options, --some_option value", WRONG_OPTION
    return f"there is no option {word}{_similar(word, options)}", WRONG_OPTION


def _unknown_key(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    word = ".".join(part for part in (found.groupdict().get("group"), found["key"]) if part)
    if word == BASE:
        return f"{BASE} is no option here: to inherit, a file names another .yaml by it, as its first key", WRONG_OPTION
    return f"there is no option {word}{_similar(f'--{word}', options)}", WRONG_OPTION


def _similar(word: str, options: Mapping[str, Any]) -> str:
    near = get_close_matches(word, options, n=1, cutoff=0.7)
    last = word.lstrip("-").rpartition(".")[2]
    if not near:  # the right name in another group, or without its group
        near = [option for option in options if option.lstrip("-").rpartition(".")[2] == last][:2]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _value(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    name, value, kind = f"--{found['key']}", found["value"].strip(), options.get(f"--{found['key']}")
    choices = _choices(kind)
    wanted = in_words(kind)
    if not wanted:  # an option within an option, of which jsonargparse tells the type alone
        choices = re.findall(r"'([^']*)'", found.groupdict().get("kind") or "")
        wanted = f"one of {', '.join(choices)}" if choices else "another value"
    near = get_close_matches(value, choices, n=1)
    return f"{name} is {value}, expected {wanted}{f'; did you mean {near[0]}?' if near else ''}", WRONG_OPTION


def _choices(kind: Any) -> list[str]:
    """The words among which a value is chosen, wherever in a type they stand."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _alternatives(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    """The mistake within the one type that is not null, or the value as a whole."""
    key = found["key"]
    errors = [error for error in re.split(r"\n\s*- |^\s*- ", found["errors"]) if error and "NoneType" not in error]
    inner = errors[0].strip() if len(errors) == 1 else ""
    if inner and not inner.startswith("Expected a"):
        if key:
            inner = re.sub(r"(Parser key \"|Option ')", rf"\g<1>{key}.", inner, count=1)
        return explained(inner, options)
    return _value(found, options) if key else (" ".join(found[0].split()), WRONG_OPTION)


def _missing(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    names = [name.strip() for name in found["names"].split(",")]
    given = [f"--{name}" if f"--{name}" in options else name.upper() for name in names]
    return f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} missing", WRONG_OPTION


def _no_value(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    return f"{found['option']} has no value: give one behind it", WRONG_OPTION


def _group(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    first = next((option for option in options if option.startswith(f"--{found['key']}.")), "")
    return f"--{found['key']} stands for several options; give one of them, such as {first}", WRONG_OPTION


def _no_file(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    path = Path(found["path"])
    here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"--{found['key']} {here}: there is no such file", WRONG_INPUT


def _no_yaml(found: re.Match[str], options: Mapping[str, Any]) -> tuple[str, int]:
    return f"--config cannot be read as YAML: {' '.join(found['why'].split())}", WRONG_INPUT


_EXPLANATIONS = (
    (
        r"(?:Parser key \"(?P<key>[^\"]*)\":\s+)?Does not validate against any of the Union subtypes.*?"
        r"Errors:(?P<errors>.*)\n\s*Given value type:.*?Given value: (?P<value>[^\n]*)",
        _alternatives,
    ),
    (r"unrecognized arguments: (?P<words>.+)", _unknown),
    (r"Group '(?P<group>[^']*)' does not accept option '(?P<key>[^']*)'", _unknown_key),
    (r"Option '(?P<key>[^']*)' is not accepted", _unknown_key),
    (r"Parser key \"(?P<key>[^\"]*)\": File does not exist: '(?P<path>[^']*)'", _no_file),
    (r"Parser key \"(?P<key>[^\"]*)\":\s+Expected an? (?P<kind>[^\n]*?)\. Got value: (?P<value>[^\n]*)", _value),
    (r"Parser key \"(?P<key>[^\"]*)\":\s+Unable to load config", _group),
    (r"the following arguments are required: (?P<names>.+)", _missing),
    (r"argument (?P<option>\S+): expected one argument", _no_value),
    (r"Problems parsing config: (?P<why>.+)", _no_yaml),
)
