"""Configs from the command line: a YAML file and `--part.field value` overrides, typed and strict; and back to YAML."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import jsonargparse

Config = TypeVar("Config")
Own = TypeVar("Own")


def parse(config_class: type[Config], argv: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Parse a config dataclass: `--config FILE.yaml`, then overrides such as `--optim.lr 2e-5`.

    Keys that the class does not have are refused. `--help` shows the documentation of each field, `--print_config`
    the whole config.

    Args:
        config_class: A dataclass of dataclasses.
        argv: Words after the program's name; by default those of this process.
        description: First lines of `--help`.
    """
    parser = _parser(config_class, description)
    return _take(config_class, parser.instantiate(parser.parse_args(argv)))


def parse_with(
    config_class: type[Config],
    own_class: type[Own],
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> tuple[Config, Own]:
    """`parse`, with the options of a command itself, a dataclass too, beside those of the config."""
    parser = _parser(config_class, description)
    parser.add_class_arguments(own_class, as_group=False)
    values = parser.instantiate(parser.parse_args(argv))
    return _take(config_class, values), _take(own_class, values)


def to_yaml(config: Any) -> str:
    """A config as the YAML that `parse` reads back to an equal one."""
    parser = _parser(type(config), None)
    return parser.dump(parser.parse_object(asdict(config)), skip_unset=False)


def _take(kind: type[Config], values: Any) -> Config:
    return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _parser(config_class: type, description: str | None) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description)
    parser.add_argument("--config", action="config", help="YAML file; options after it override it")
    parser.add_class_arguments(config_class)
    return parser
