"""The interface of sources of pictures: inputs by number, with sorted names."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

NO_HASH = "0" * 64
"""Stands for the hash of what cannot be read or is empty."""

CAPTION_COLUMNS = ("text", "caption")
"""Columns that hold a caption, the first that is there."""


class DamagedInput(Exception):
    """An input that cannot be read; `reason` is one of a few fixed texts that can be counted.

    Args:
        reason: what kind of damage.
        detail: what exactly happened.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Input:
    """One picture with what came with it.

    Args:
        content: the bytes of its file.
        caption: caption as written; None where there is none.
        columns: all further columns, plain JSON.
    """

    content: bytes
    caption: str | None
    columns: dict[str, Any]


@dataclass(frozen=True)
class SourcePart:
    """A part of a source, which one process surveys.

    Args:
        digest: changes when the part does.
        size: how much it counts in a progress bar.
    """

    digest: str
    size: int


class Source(Protocol):
    """Pictures by number, in the sorted order of their names."""

    names: Sequence[str]
    """Distinct and sorted; what KEY.json calls `source`. Shards know them once `complete` was called."""

    digests: Mapping[str, str]
    """Of the files that hold captions or columns of many pictures, by what they are called in a stage's config."""

    needs_survey: bool
    """Whether `complete` has to be called before anything can be read."""

    counted: str
    """What the sizes of its parts count: "image", "tar"."""

    def read(self, number: int) -> Input:
        """One input.

        Raises:
            DamagedInput: with the reason.
        """

    def texts_digest(self, numbers: Sequence[int], pool: Executor) -> str:
        """Digest of the captions that lie in files of their own; "" where there are none."""

    def parts(self) -> list[SourcePart]:
        """Parts to survey, in order."""

    def survey(self, part: int, hashed: bool, pool: Executor, beat: Callable[[], None]) -> dict[str, Any]:
        """Facts that the inventory keeps of a part, as plain JSON.

        Args:
            hashed: give "sha256", the digests of the pictures' contents, 64 digits each one after the other
                (NO_HASH where there is none).
            pool: threads that may read.
            beat: function to be called often; says that the work goes on.
        """

    def complete(self, surveys: Iterable[dict[str, Any]]) -> None:
        """Takes the surveys of all parts, in order, to the last one."""


def take_caption(columns: dict[str, Any]) -> str | None:
    """Removes the caption columns from a picture's columns; returns the caption, or None.

    Raises:
        DamagedInput: "bad json" for a caption that is no string.
    """
    found = [columns.pop(name, None) for name in CAPTION_COLUMNS]
    caption = next((text for text in found if text is not None), None)
    if not isinstance(caption, str | None):
        raise DamagedInput("bad json", f"the caption is {caption!r}, expected a string")
    return caption


def content_hash(content: bytes) -> str:
    """sha256, hexadecimal; NO_HASH for empty content, which is damage and never a duplicate."""
    return hashlib.sha256(content).hexdigest() if content else NO_HASH


def digest_of_names(names: Sequence[str]) -> str:
    """sha256 of names that may hold any bytes."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
