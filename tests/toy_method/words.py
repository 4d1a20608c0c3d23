"""A sibling of the pipeline's file."""


def greeting() -> str:
    """Return a greeting."""
    return "hello"
