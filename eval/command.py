"""Command lines of evaluations: options from a function's arguments, errors that teach instead of tracebacks."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

from data.jobs.errors import CaptionerError


def run_command(function: Callable[..., Any], arguments: Sequence[str] | None = None, positional: bool = False) -> None:
    """Calls `function` with the options of the command line; its docstring is the help.

    Args:
        positional: arguments without a default are given by their place, without a name.

    Raises:
        SystemExit: with status 2 for wrong options, with status 1 and the message for a ValueError, OSError or
            CaptionerError.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        jsonargparse.auto_cli(function, as_positional=positional, args=arguments)
    except (ValueError, OSError, CaptionerError) as error:
        raise SystemExit(f"error: {error}") from error
