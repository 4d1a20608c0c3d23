"""Errors that a command explains in a line, without a traceback."""


class ShardError(ValueError):
    """Shards cannot be made or used, for a reason that the user can change."""


class CaptionerError(Exception):
    """The captioner cannot go on; the message says what to change."""


_common = True


def work_begins() -> None:
    """Say that from here on an error may be that of one process alone, which then tells it itself.

    Before, while options, folders and models are looked at, all processes of a launch meet the same mistakes, and the
    first one tells them.
    """
    global _common
    _common = False


def mistakes_are_common() -> bool:
    """Whether no work has begun in this process, so that what goes wrong goes wrong in all of them."""
    return _common
