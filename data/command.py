"""The command line that all stages share: INPUT OUT and the options of a config dataclass."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from data.shards import ShardError

Config = TypeVar("Config")


def run_command(
    stage: str,
    description: str | None,
    config_class: type[Config],
    run: Callable[[str, str, Config], Any],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses `INPUT OUT [options]` and runs a stage.

    Options may be spelled with - or _ (`--unit-size`, `--unit_size`).

    Args:
        stage: name of the module, "caption" for data.caption.
        run: the stage, called with INPUT, OUT and the config.

    Raises:
        SystemExit: with status 2 for wrong options, with status 1 and a message when the stage cannot go on.
    """
    parser = ArgumentParser(prog=f"python -m data.{stage}", description=description)
    parser.add_argument("input", type=str, help="folder that the stage reads")
    parser.add_argument("out", type=str, help="folder of the shards that it makes")
    parser.add_class_arguments(config_class, as_group=False)
    found = parser.parse_args(_underscored(sys.argv[1:] if arguments is None else arguments)).as_dict()
    source, out = found.pop("input"), found.pop("out")
    try:
        config = config_class(**found)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(source, out, config)
    except ShardError as error:
        raise SystemExit(f"data.{stage}: {error}") from error


def _underscored(arguments: Sequence[str]) -> list[str]:
    """The arguments with option names as the config's fields are spelled."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words.append(name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word)
    return words
