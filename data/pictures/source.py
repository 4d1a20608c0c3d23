"""The interface of sources of pictures: inputs by number, with sorted names."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol

NO_HASH = "0" * 64
"""Stands for the hash of what cannot be read or is empty."""

CAPTION_COLUMNS = ("text", "caption")
"""Columns that hold a caption, the first that is there."""

TEXTS = (".txt", ".caption")
"""Endings of files with the caption of a picture of the same name, the first that is there; in any case."""

BAD_LINE = "bad line"
"""Damage of a line that lists pictures. It is no file, and does not count where the share of damaged files does."""


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
        caption: caption as written, the first of those that are taken; None where there is none.
        columns: all further columns, plain JSON.
        other_captions: the captions after the first.
    """

    content: bytes
    caption: str | None
    columns: dict[str, Any]
    other_captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourcePart:
    """A part of a source, which one process surveys.

    Args:
        digest: changes when the part does.
        size: how much it counts in a progress bar.
    """

    digest: str
    size: int


class NotTaken(defaultdict[str, list[str]]):
    """Names of files, or of members of tars, that are no input, by their kind: ".psd", "hidden", "no ending"."""

    def __init__(self) -> None:
        super().__init__(list)

    def add(self, name: str, kind: str | None = None) -> None:
        """Notes a name; its kind is by default its ending in lower case."""
        self[kind or PurePosixPath(name).suffix.lower() or "no ending"].append(name)

    def shown(self) -> str:
        """The counts in words, most first: "12 .psd, 3 .mp4"; "" for none."""
        kinds = sorted(self, key=lambda kind: (-len(self[kind]), kind))
        return ", ".join(f"{len(self[kind])} {kind}" for kind in kinds)


class Source(Protocol):
    """Pictures by number, in the sorted order of their names."""

    names: Sequence[str]
    """Distinct and sorted; what KEY.json calls `source`. Shards know them once `complete` was called."""

    digests: Mapping[str, str]
    """Of the files that hold captions or columns of many pictures, by what they are called in a stage's config."""

    not_taken: NotTaken
    """What lies in the input and is none. Shards know it once `complete` was called."""

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


@dataclass(frozen=True)
class CaptionPolicy:
    """Policy for captions of which there are several.

    Args:
        several: what is taken of a list of captions: the first, all of them joined by spaces, or all of them each for
            itself, of which every epoch takes one at random.
        lines: which lines of a text file are taken.
    """

    several: Literal["first", "joined", "random"] = "first"
    lines: Literal["all", "first"] = "all"

    def of_columns(self, columns: dict[str, Any]) -> list[str]:
        """Removes the caption columns from those of a picture; returns the captions that are taken.

        Raises:
            DamagedInput: "bad json" for a caption that is neither a string nor a list of strings, null or NaN.
        """
        found = [columns.pop(column, None) for column in CAPTION_COLUMNS]
        for value in found:
            try:
                check_caption(value, "the caption")
            except DamagedInput as error:
                raise DamagedInput("bad json", error.reason) from error
            texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
            if texts:
                return self._taken([text for text in texts if text.strip()] or texts[:1])
        return []

    def of_file(self, content: bytes) -> str:
        """The caption in the bytes of a text file.

        Raises:
            DamagedInput: "caption is not UTF-8".
        """
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DamagedInput("caption is not UTF-8", str(error)) from error
        return text if self.lines == "all" else next((line for line in text.splitlines() if line.strip()), "")

    def identity(self) -> dict[str, Any]:
        """What decides the captions, but for the defaults, which shards of before had without saying so."""
        found: dict[str, Any] = {} if self.several == "first" else {"several": self.several}
        return found | ({} if self.lines == "all" else {"lines": self.lines})

    def _taken(self, texts: list[str]) -> list[str]:
        if self.several == "joined":
            return [" ".join(texts)]
        return texts[:1] if self.several == "first" else texts


def check_caption(value: Any, called: str) -> None:
    """Raises DamagedInput for a value that is no caption: neither a string, null or NaN, nor a list of those."""
    if isinstance(value, list) and not all(map(_is_text_or_nothing, value)):
        raise DamagedInput(f"{called} is {value!r}, expected strings")
    if not isinstance(value, list) and not _is_text_or_nothing(value):
        raise DamagedInput(f"{called} is {value!r}, expected a string")


def _is_text_or_nothing(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, float) and value != value)


def content_hash(content: bytes) -> str:
    """sha256, hexadecimal; NO_HASH for empty content, which is damage and never a duplicate."""
    return hashlib.sha256(content).hexdigest() if content else NO_HASH


def digest_of_names(names: Sequence[str]) -> str:
    """sha256 of names that may hold any bytes."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
