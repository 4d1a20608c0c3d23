"""The command line that all stages share: INPUT OUT and the options of a config dataclass."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from data.jobs.errors import CaptionerError, ShardError
from data.jobs.sharing import Ranks

Config = TypeVar("Config")


def run_command(
    stage: str,
    description: str | None,
    config_class: type[Config],
    run: Callable[[str, str, Config], Any],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses `INPUT OUT [--config FILE.yaml] [options]` and runs a stage.

    Options may be spelled with - or _ (`--unit-size`, `--unit_size`).

    Args:
        stage: name of the module, "caption" for data.caption.
        run: the stage, called with INPUT, OUT and the config.

    Raises:
        SystemExit: with status 2 for wrong options, with status 1 and a message when the stage cannot go on.
    """
    parser = ArgumentParser(prog=f"python -m data.{stage}", description=description)
    parser.add_argument("--config", action="config", help="YAML file of options; those after it override it")
    parser.add_argument("input", type=str, help="what the stage reads")
    parser.add_argument("out", type=str, help="folder of the shards that it makes")
    parser.add_class_arguments(config_class, as_group=False)
    words = parser.parse_args(underscored(sys.argv[1:] if arguments is None else arguments))
    try:
        found = parser.instantiate(words)
        source, out = found.input, found.out
        config = config_class(**{field.name: found[field.name] for field in fields(config_class)})  # type: ignore[arg-type]
        ranks = Ranks.of_launch()
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO if ranks.rank == 0 else logging.ERROR, format="%(message)s")
    warnings.filterwarnings("ignore", module="PIL")  # about single files; what is wrong with a file is counted
    try:
        run(source, out, config)
    except (ShardError, CaptionerError, OSError) as error:
        raise SystemExit(f"data.{stage}: {error}") from error


def underscored(arguments: Sequence[str]) -> list[str]:
    """The arguments with option names as the config's fields are spelled."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words.append(name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word)
    return words
