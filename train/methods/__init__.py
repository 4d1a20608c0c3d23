"""The methods that can be trained, one folder each; METHODS is the one list of them."""

from collections.abc import Mapping
from typing import Any

from train.method import Method
from train.methods.instruct_pix2pix import METHOD as INSTRUCT_PIX2PIX
from train.methods.stylediffusion import METHOD as STYLEDIFFUSION
from train.methods.turboedit import METHOD as TURBOEDIT

METHODS: list[Method] = [TURBOEDIT, STYLEDIFFUSION, INSTRUCT_PIX2PIX]


def method_of(parts: Mapping[str, Any], where: object) -> Method:
    """Return the method of a config, by its key `method`, or else by the section that only one method has.

    Args:
        parts: The config as plain values.
        where: Name of the config, for the error.

    Raises:
        ValueError: It is the config of no method in METHODS.
    """
    if "method" in parts:
        found = [method for method in METHODS if method.name == parts["method"]]
        expected = f"method is {parts['method']!r}, expected one of {[method.name for method in METHODS]}"
    else:
        found = [method for method in METHODS if method.section in parts]
        expected = f"it has none of {[method.section for method in METHODS]}"
    if not found:
        raise ValueError(f"{where} is the config of no method that is known here: {expected}")
    return found[0]
