"""Errors that a command explains in a line, without a traceback."""


class ShardError(ValueError):
    """Shards cannot be made or used, for a reason that the user can change."""


class CaptionerError(Exception):
    """The captioner cannot go on; the message says what to change."""
