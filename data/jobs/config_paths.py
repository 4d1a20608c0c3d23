"""Paths in files of options, which count from the folder where the command is typed, not from the file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def misplaced_paths_named(words: Sequence[str]) -> Iterator[None]:
    """Within the block, an error that names a path which lies beside the --config file that gives it says so.

    Args:
        words: words of the command line, with `--config FILE` or `--config=FILE`.

    Raises:
        ValueError: the error with that sentence, in the place of the ValueError or OSError that named the path.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        for file in _config_files(words):
            for text in _texts(yaml.safe_load(file.read_text(encoding="utf-8"))):
                if text and text in str(error) and not Path(text).exists() and (file.parent / text).exists():
                    raise ValueError(
                        f"{error}; {text} lies beside {file}, whose paths count from the folder where the command is "
                        f"typed: type it in {file.parent}, or give the whole path there"
                    ) from error
        raise


def _config_files(words: Sequence[str]) -> list[Path]:
    """The files of options that could be read."""
    named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    named += [after for word, after in pairwise(words) if word == "--config"]
    with suppress(OSError):  # a config that is written out is no name that a file can have
        return [Path(name) for name in named if Path(name).is_file()]
    return []


def _texts(value: Any) -> Iterator[str]:
    """All texts within lists and mappings."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)
