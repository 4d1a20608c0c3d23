"""The objects and photographs of which composites are made; what cannot be used is listed with its reason."""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from data.compositing.colours import colour_of, other_colours
from data.compositing.pasting import resized
from data.compositing.wording import can_be_coloured, first_sentence, noun_phrase
from data.jobs.prefetch import in_order
from data.pictures.buckets import nearest_bucket
from data.pictures.files import open_source
from data.pictures.images import decode
from data.pictures.source import CaptionPolicy, DamagedInput, Input, Source, content_hash
from models.upright import fitted, open_picture

LARGEST_ENLARGEMENT = 1.25
"""Factor by which an object is enlarged at most."""

SMALLEST_OBJECT = 0.25
"""Side of an object at least, as a share of the picture's shorter side: the root of its width times its height."""

_FREE_SHARE = 0.02
"""An object covers at least this share of its picture, and leaves as much of it free."""
_OPAQUE = 8
"""Level of the alpha channel from which on something is seen."""
_LONGEST_NAME = 8
"""Words that the name of an object has at most."""
_THUMBNAIL = 96
_READS_AHEAD = 16
_THREADS = 8

Usable = TypeVar("Usable")


@dataclass(frozen=True)
class PastedObject:
    """An object that can be used.

    Args:
        number: number in the source, by which it is read.
        name: name of its file.
        digest: digest of its content and caption.
        phrase: what it is called: "a cup of tea".
        size: width and height in pixels of what is seen of it.
        colour: the colour by which it is called, where it has one.
        others: the colours that it may be given.
    """

    number: int
    name: str
    digest: str
    phrase: str
    size: tuple[int, int]
    colour: str | None
    others: tuple[str, ...]


@dataclass(frozen=True)
class GroundPhotograph:
    """A photograph that can be used.

    Args:
        number: number in the source, by which it is read.
        name: name of its file.
        digest: digest of its content and caption.
        caption: all that is said of it.
        size: width and height in pixels of the picture that becomes of it.
    """

    number: int
    name: str
    digest: str
    caption: str
    size: tuple[int, int]


@dataclass(frozen=True)
class LeftOut:
    """An input that is not used: the reason, of a few that can be counted, and what exactly was found."""

    what: Literal["object", "photograph"]
    name: str
    reason: str
    detail: str = ""


def open_captioned(path: Path, lines: Literal["all", "first"] = "all") -> Source:
    """A folder, list or shards of pictures with captions, ready to be read.

    Args:
        lines: which lines of text files are taken.

    Raises:
        ShardError: nothing of these is there.
    """
    source = open_source(path, policy=CaptionPolicy(lines=lines))
    if source.needs_survey:
        with ThreadPoolExecutor(1) as pool:
            source.complete(source.survey(part, False, pool, lambda: None) for part in range(len(source.parts())))
    return source


def read_objects(
    source: Source, resolution: int, leave_out: Collection[str], shown: bool
) -> tuple[list[PastedObject], list[LeftOut]]:
    """All objects of a source that can be used, in its order, and those that cannot.

    Args:
        resolution: side in pixels of the pictures on which they are to stand.
        leave_out: names of folders whose objects are not wanted.
        shown: whether there is a bar.
    """
    found: list[PastedObject] = []
    others: list[LeftOut] = []
    numbers = []
    for number, name in enumerate(source.names):
        if unwanted := set(PurePosixPath(name).parts[:-1]) & set(leave_out):
            others.append(LeftOut("object", name, "in a folder of --leave_out", ", ".join(sorted(unwanted))))
        else:
            numbers.append(number)

    def read(number: int) -> PastedObject | LeftOut:
        return _usable("object", source, number, lambda name, entry: _object(number, name, entry, resolution))

    for item in _read_ahead(read, tqdm(numbers, desc="objects", unit="object", disable=not shown)):
        others.append(item) if isinstance(item, LeftOut) else found.append(item)
    return found, others


def read_photographs(
    source: Source, order: Iterable[int], wanted: int, resolution: int, buckets: bool, min_size: int, shown: bool
) -> tuple[list[GroundPhotograph], list[LeftOut]]:
    """The first `wanted` photographs of a source that can be used, and those before them that cannot.

    Args:
        order: the numbers in the order in which they are tried.
        resolution: side in pixels of the square, or of the square with the area of the buckets.
        buckets: whether pictures keep about their aspect (data.pictures.buckets).
        min_size: shorter side of a photograph in pixels, at least.
        shown: whether there is a bar.
    """

    def shape(size: tuple[int, int]) -> tuple[int, int]:
        return nearest_bucket(size, resolution) if buckets else (resolution, resolution)

    def read(number: int) -> GroundPhotograph | LeftOut:
        return _usable(
            "photograph", source, number, lambda name, entry: _photograph(number, name, entry, shape, min_size)
        )

    found: list[GroundPhotograph] = []
    others: list[LeftOut] = []
    with tqdm(total=min(wanted, len(source.names)), desc="photographs", unit="photograph", disable=not shown) as bar:
        for item in _read_ahead(read, order):
            others.append(item) if isinstance(item, LeftOut) else found.append(item)
            bar.update(len(found) - bar.n)
            if len(found) == wanted:
                break
    return found, others


def object_picture(content: bytes) -> Image.Image:
    """What is seen of an object, RGBA and upright.

    Raises:
        DamagedInput: the file gives no picture.
        ValueError: it has no transparency, or hardly anything that is seen or transparent.
    """
    decode(content)  # names what is wrong with a file
    picture = open_picture(content)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        raise _Unfit("no transparency", f"mode {picture.mode}")
    picture = picture.convert("RGBA")
    seen = np.asarray(picture)[..., 3] >= _OPAQUE
    if not _FREE_SHARE <= seen.mean() <= 1 - _FREE_SHARE:
        raise _Unfit("no shape of its own", f"{seen.mean():.0%} of the picture is seen")
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def photograph_pixels(source: Source, photograph: GroundPhotograph) -> np.ndarray:
    """The picture, uint8 [H, W, 3], that becomes of a photograph: upright, cropped at its centre and resized."""
    return np.asarray(fitted(decode(source.read(photograph.number).content), photograph.size)[0])


class _Unfit(ValueError):
    """An input that can be read and not be used: the reason, and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def _usable(
    what: Literal["object", "photograph"], source: Source, number: int, make: Callable[[str, Input], Usable]
) -> Usable | LeftOut:
    """What `make` gives of an input with a caption, or why it cannot be used."""
    name = source.names[number]
    try:
        entry = source.read(number)
        if not (entry.caption or "").strip():
            raise _Unfit("no caption")
        return make(name, entry)
    except (DamagedInput, _Unfit) as error:
        return LeftOut(what, name, error.reason, error.detail)


def _object(number: int, name: str, entry: Input, resolution: int) -> PastedObject:
    phrase = noun_phrase(entry.caption or "")
    if not 0 < len(phrase.split()) <= _LONGEST_NAME:
        raise _Unfit("its caption names no object", f"{entry.caption!r}")
    picture = object_picture(entry.content)
    width, height = picture.size
    if LARGEST_ENLARGEMENT * (width * height) ** 0.5 < SMALLEST_OBJECT * resolution:
        raise _Unfit("too small", f"{width}x{height} px")
    scale = _THUMBNAIL / max(width, height)
    small = resized(picture, (max(1, round(scale * width)), max(1, round(scale * height))))
    colour = colour_of(*small)
    others = other_colours(*small, colour) if colour and can_be_coloured(phrase, colour) else ()
    return PastedObject(number, name, _digest(entry), phrase, picture.size, colour, others)


def _photograph(
    number: int, name: str, entry: Input, shape: Callable[[tuple[int, int]], tuple[int, int]], min_size: int
) -> GroundPhotograph:
    picture = decode(entry.content)
    if min(picture.size) < min_size:
        raise _Unfit("too small", f"{picture.width}x{picture.height} px, --min_size is {min_size}")
    caption = " ".join((entry.caption or "").split())
    if not first_sentence(caption):
        raise _Unfit("no caption")
    return GroundPhotograph(number, name, _digest(entry), caption, shape(picture.size))


def _digest(entry: Input) -> str:
    return content_hash(entry.content + (entry.caption or "").encode())


def _read_ahead(read: Callable[[int], Usable], numbers: Iterable[int]) -> Iterator[Usable]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from in_order(pool, read, numbers, _READS_AHEAD)
