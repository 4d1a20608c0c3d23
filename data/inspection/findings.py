"""Findings of an inspection: kinds of faults, each with what to do about it and the places where it is."""

from collections.abc import Iterable
from dataclasses import dataclass, field

LISTED = 50
"""Places of one kind that are kept; all are counted."""


@dataclass(frozen=True)
class Kind:
    """A kind of thing that can be found.

    Args:
        what: the mistake, in a sentence that fits one place and many.
        cure: what to do about it.
        wrong: whether training should not start before it is cured; False for a remark.
    """

    what: str
    cure: str
    wrong: bool = True


@dataclass
class Finding:
    """A kind that was found, with the number of places and the first of them in words."""

    kind: Kind
    count: int = 0
    places: list[str] = field(default_factory=list)


class Findings:
    """Everything that was found, by kind in the order in which it was found first."""

    def __init__(self) -> None:
        self._found: dict[Kind, Finding] = {}

    def add(self, kind: Kind, place: str) -> None:
        """One more place of a kind."""
        finding = self._found.setdefault(kind, Finding(kind))
        finding.count += 1
        if len(finding.places) < LISTED:
            finding.places.append(place)

    def extend(self, found: Iterable[tuple[Kind, str]]) -> None:
        """Several kinds with their places."""
        for kind, place in found:
            self.add(kind, place)

    @property
    def problems(self) -> list[Finding]:
        """Findings that keep a training from starting."""
        return [finding for finding in self._found.values() if finding.kind.wrong]

    @property
    def remarks(self) -> list[Finding]:
        """Findings that are worth knowing."""
        return [finding for finding in self._found.values() if not finding.kind.wrong]
