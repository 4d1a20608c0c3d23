"""Files of options that inherit: the first key `base: ../other.yaml` lays a file over another one."""

from pathlib import Path

import yaml
from yaml import MappingNode, Node, ScalarNode

BASE = "base"
"""First key of a file that inherits; its value is a YAML file, relative to the file itself."""

_ENDINGS = (".yaml", ".yml")


class InheritanceError(ValueError):
    """A file of options that cannot be laid over the one that it names."""


def flattened(path: Path) -> str:
    """Return the YAML of a file of options with all that it inherits.

    Values of the file override those of its base, and within a section only those that it names; a base may have one of
    its own. A file without a base is returned as it is.

    Raises:
        InheritanceError: A base is not there, is no YAML or no mapping, is named behind other keys, or leads back.
    """
    text = path.read_text(encoding="utf-8")
    try:
        # Nodes keep what was typed: "no" stays a text, and 4e-5 the number that the command reads.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return text  # the command says what is wrong with it
    if not isinstance(node, MappingNode) or _base_of(path, node) is None:
        return text
    return yaml.serialize(_merged(path, node, (path,)), Dumper=yaml.SafeDumper)


def _merged(path: Path, node: MappingNode, chain: tuple[Path, ...]) -> MappingNode:
    """The options of a file over those that it inherits; `chain` ends with the file and begins with what is read."""
    base = _base_of(path, node)
    if base is None:
        return node
    place, words = path.parent / base, f"{path}: base {base}"
    if place.resolve() in [earlier.resolve() for earlier in chain]:
        circle = " -> ".join(found.name for found in (*chain, place))
        raise InheritanceError(f"{words} leads back to it ({circle}): take the key out of one of these")
    if not place.is_file():
        raise InheritanceError(f"{words}: there is no such file; its place is relative to the file that names it")
    try:
        below = yaml.compose(place.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InheritanceError(f"{words}: it cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(below, MappingNode):
        raise InheritanceError(f"{words}: it holds no options by name")
    return _over(MappingNode(node.tag, node.value[1:]), _merged(place, below, (*chain, place)))


def _base_of(path: Path, node: MappingNode) -> str | None:
    """The file that a file of options inherits from, as it names it; None where it names none."""
    for place, (key, value) in enumerate(node.value):
        # train.export has an option of this name too, for a hub id.
        if key.value == BASE and isinstance(value, ScalarNode) and value.value.endswith(_ENDINGS):
            if place > 0:
                raise InheritanceError(f"{path}: base {value.value} stands behind other keys; make it the first one")
            return value.value
    return None


def _over(upper: MappingNode, lower: MappingNode) -> MappingNode:
    """`lower` with the values of `upper` in the place of its own, section by section."""
    for key, _ in (*lower.value, *upper.value):
        if not isinstance(key, ScalarNode):
            place = f"{key.start_mark.name}, line {key.start_mark.line + 1}"
            raise InheritanceError(f"{place}: expected the name of an option, found a list or a mapping")
    found: dict[str, tuple[Node, Node]] = {key.value: (key, value) for key, value in lower.value}
    for key, value in upper.value:
        _, below = found.get(key.value, (None, None))
        both = isinstance(value, MappingNode) and isinstance(below, MappingNode)
        found[key.value] = (key, _over(value, below) if both else value)  # type: ignore[arg-type]
    return MappingNode(lower.tag, list(found.values()))
