"""The cases of a PIE-Bench evaluation (Ju et al. 2024): the edits of a data set, with pictures as they are edited.

A bad annotation is listed with its reason and does not stop an evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.jobs.files import whole
from data.pictures.images import DamagedImage, decode, encode
from eval.benchmarks.entries import NO_MASK, BadAnnotation, Entry, Unusable
from eval.benchmarks.forms import read_entries
from eval.benchmarks.masks import mask_of
from models.shapes import Cutout, nearest_shape, shapes, side_multiple
from models.upright import centre_crop, fitted, open_picture, orientation

ORIGINS = ("natural", "artificial")
"""Origins of PIE-Bench's pictures: photographs, or drawn and made; those of the type "random" are not told apart."""


@dataclass(frozen=True)
class PieCase:
    """One image with its edit.

    Args:
        key: name of the entry, "000000000000".
        type_id: "0" to "9".
        image: the picture's file; truth: that of the true edit, where it is known.
        image_path: name of the picture in the benchmark, with folders.
        source_prompt, target_prompt: without the brackets that mark the words that differ; a source's may be empty.
        long_prompts: detailed descriptions of both, where the folder has such.
        instruction: the edit as an order; empty where there is none.
        blended: the words of source and target whose places the edit concerns, or None.
        more_blended: further such pairs, of edits of several things.
        mask: the places that may change, bool [H, W]; all of them where there is no annotation.
        masked: whether the mask is annotated.
        cutout: what of the data set's picture `image` shows; None where it is that picture itself.
        turned: the data set's picture was turned upright by its EXIF orientation.
    """

    key: str
    type_id: str
    image: Path
    source_prompt: str
    target_prompt: str
    instruction: str
    blended: tuple[str, str] | None
    mask: NDArray[np.bool_]
    truth: Path | None = None
    long_prompts: tuple[str, str] | None = None
    image_path: str = ""
    more_blended: tuple[tuple[str, str], ...] = ()
    masked: bool = True
    cutout: Cutout | None = None
    turned: bool = False

    @property
    def all_blended(self) -> tuple[str, str] | None:
        """All words of the source, and of the target, whose places the edit concerns, for people."""
        if self.blended is None:
            return None
        sources, targets = zip(self.blended, *self.more_blended, strict=True)
        return ", ".join(sources), ", ".join(targets)

    @property
    def origin(self) -> str | None:
        """Origin of the picture by a folder of its name ("1_artificial", "2_natural"), or None where none says it."""
        parts = [part.partition("_") for part in PurePosixPath(self.image_path).parts[:-1]]
        return next((word for number, _, word in parts if number.isdigit() and word in ORIGINS), None)


def read_pie_bench(
    data: Path, side: int | None = None, pictures: Path | None = None
) -> tuple[list[PieCase], list[BadAnnotation]]:
    """The cases of a data set in its order, and what is wrong in it.

    Args:
        data: a data set in any of the forms of `eval.benchmarks.forms.read_entries`.
        side: side in pixels of the squares that the editors work on; pictures that are neither such a square nor of one
            of the shapes of about its area (models.shapes) are cropped at the centre and resized to the nearest of
            these. None takes any size.
        pictures: folder for the pictures that do not lie in `data` as they are edited: those of Parquet files, and
            those that are resized. None leaves them out.

    Raises:
        ValueError: there is no data set, it cannot be read, or no case is left.
    """
    cases: dict[str, PieCase] = {}
    bad = []
    for entry in read_entries(data):
        if isinstance(entry, BadAnnotation):
            bad.append(entry)
            continue
        try:
            if entry.key in cases:
                raise Unusable("another entry has the same key")
            case, notes = _case(entry, side, pictures)
        except Unusable as error:
            bad.append(BadAnnotation(entry.key, str(error)))
            continue
        cases[case.key] = case
        bad += [BadAnnotation(case.key, note, left_out=False) for note in (*entry.notes, *notes)]
    if not cases:
        reason = f"{bad[0].key}: {bad[0].reason}" if bad else "no entries"
        raise ValueError(f"no case of --data {data} can be used; the first reason: {reason}")
    return list(cases.values()), bad


def _case(entry: Entry, side: int | None, pictures: Path | None) -> tuple[PieCase, list[str]]:
    """The case, and what was mended in it. Raises Unusable."""
    if not entry.key or entry.key.startswith(".") or set(entry.key) & set("/\\\0"):
        raise Unusable("its key cannot be the name of a file; expected no slashes, and no dot at its beginning")
    taken = _taken(entry.picture)
    width, height = taken.image.size
    masked = entry.mask is not NO_MASK
    mask = mask_of(entry.mask, height, width) if masked else np.ones((height, width), dtype=bool)
    truth, notes = _truth(entry.truth, taken.image.size)
    cutout = _cutout(taken.image, side)
    if cutout is not None:
        mask = _cut_mask(mask, cutout)
        if truth is not None:
            truth = _written(pictures, f"{entry.key}.true.png", _cut(decode(truth.read_bytes()), cutout))
        notes.append(f"{width}x{height} px, cropped at the centre and resized to {cutout.size[1]}x{cutout.size[0]}")
    return PieCase(
        entry.key,
        entry.type_id,
        _image(entry, taken, cutout, pictures),
        entry.source_prompt,
        entry.target_prompt,
        entry.instruction,
        entry.blended[0] if entry.blended else None,
        mask,
        truth,
        entry.long_prompts,
        entry.image_path,
        entry.blended[1:],
        masked,
        cutout,
        taken.turned,
    ), notes


class _Taken(NamedTuple):
    """A picture: the bytes of its file, what they show, upright, and whether it was turned for that."""

    content: bytes
    image: Image.Image
    turned: bool


def _taken(picture: Path | bytes) -> _Taken:
    """A picture that can be read. Raises Unusable."""
    name = f"{picture.parent.name}/{picture.name}" if isinstance(picture, Path) else "its picture"
    try:
        content = picture.read_bytes() if isinstance(picture, Path) else picture
        image = decode(content)
    except OSError:
        raise Unusable(f"no picture at {name}") from None
    except DamagedImage as error:
        raise Unusable(f"{name} cannot be read ({error})") from error
    with open_picture(content) as opened:
        return _Taken(content, image, orientation(opened) != 1)


def _cutout(image: Image.Image, side: int | None) -> Cutout | None:
    """What of a picture is edited by models that work at `side` pixels; None for all of it, as it is."""
    if side is None:
        return None
    size, admitted = (image.height, image.width), [(side, side), *shapes(side, side_multiple(side))]
    if size in admitted:
        return None
    height, width = nearest_shape(size, admitted, side)
    return Cutout(size, centre_crop(image.size, (width, height)), (height, width))


def _cut(image: Image.Image, cutout: Cutout) -> bytes:
    """The file of what a cutout shows of a picture."""
    height, width = cutout.size
    return encode(fitted(image, (width, height))[0], lossless=True)[1]


def _cut_mask(mask: NDArray[np.bool_], cutout: Cutout) -> NDArray[np.bool_]:
    left, top, width, height = cutout.crop
    box = (left, top, left + width, top + height)
    resized = Image.fromarray(mask).resize((cutout.size[1], cutout.size[0]), Image.Resampling.NEAREST, box=box)
    return np.asarray(resized)


def _image(entry: Entry, taken: _Taken, cutout: Cutout | None, pictures: Path | None) -> Path:
    """The file of the picture that is edited, written where the data set has none. Raises Unusable."""
    if cutout is not None:
        return _written(pictures, f"{entry.key}.png", _cut(taken.image, cutout))
    if isinstance(entry.picture, Path):
        return entry.picture
    return _written(pictures, entry.key + PurePosixPath(entry.image_path).suffix, taken.content)


def _written(folder: Path | None, name: str, content: bytes) -> Path:
    """The file of a picture in `folder`, left alone where it is that already. Raises Unusable for no folder."""
    if folder is None:
        raise Unusable("its picture is not a file of the size that is edited, and there is no folder to write one")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.is_file() or path.read_bytes() != content:
        with whole(path) as temporary:
            temporary.write_bytes(content)
    return path


def _truth(path: Path | None, size: tuple[int, int]) -> tuple[Path | None, list[str]]:
    """The picture of the true edit; where it is named and cannot be used, None, and the reason."""
    if path is None:
        return None, []
    try:
        if _taken(path).image.size == size:
            return path, []
        return None, [f"the true edit {path.name} has another size than the picture"]
    except Unusable as error:
        return None, [f"the true edit is not known: {error}"]


def in_turn(cases: Sequence[PieCase], num: int | None) -> list[PieCase]:
    """Choose at most `num` cases, the types taking turns, in the order in which they are given."""
    seen: dict[str, int] = {}
    order = []
    for case in cases:
        seen[case.type_id] = seen.get(case.type_id, 0) + 1
        order.append((seen[case.type_id], case.type_id, case.key))
    chosen = {key for _, _, key in sorted(order)[:num]}
    return [case for case in cases if case.key in chosen]
