"""Pictures that something else has edited, taken into a PIE-Bench evaluation as a row of their own."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from data.jobs.files import file_digest, write_json
from data.jobs.kept import SETTINGS, KeptFolder, digest
from data.pictures.images import SUFFIXES, DamagedImage, decode
from data.world.pie_layout import IMAGES
from eval.external.options import OPTION, ExternalRow
from eval.pie.cases import PieCase
from eval.pie.edits import PICTURES, PieRow
from models.upright import open_picture

logger = logging.getLogger(__name__)

ASPECT_TOLERANCE = 0.05
"""Share by which the aspect of a picture that is resized may differ: editors round sides to multiples of 16 or 64."""

_SHOWN = 5
_SOURCE = "external"


@dataclass(frozen=True)
class _Taken:
    """A picture as it is measured: whether its file was a JPEG, and its size before it was resized, if it was."""

    picture: Image.Image
    jpeg: bool
    resized_from: tuple[int, int] | None


def take_external(name: str, row: ExternalRow, cases: Sequence[PieCase], edits: Path) -> PieRow:
    """Copy the edits of `cases` from the row's folder to EDITS/NAME; returns their row.

    A case's picture is FOLDER/KEY.png, or lies under the name that the benchmark's own picture has, whatever its
    suffix. Of a strip of pictures the one at the right end counts, as in the official script, whose runners save strips
    of four. Pictures that cannot be used are failed edits with a reason, and the log lists them. The same name may be
    given another folder later: what differs is taken anew.

    Raises:
        ValueError: there is no picture of any case that can be used, or EDITS/NAME holds edits that were made here.
    """
    find = _finder(row.folder)
    places: dict[str, Path] = {}
    faults: dict[str, str] = {}
    for case in cases:
        try:
            places[case.key] = find(case)
        except ValueError as error:
            faults[case.key] = str(error)
    if not places:
        raise ValueError(
            f"{OPTION}{name}: {row.folder} has a picture of none of the {len(cases)} cases; expected KEY.png, such as "
            f"{cases[0].key}.png, or {cases[0].image_path}; the first reason: {next(iter(faults.values()))}"
        )
    _claim(edits / name, row.folder)
    kept = KeptFolder(edits / name)
    resized = 0
    for case in cases:
        try:
            if case.key in places:
                resized += _keep(kept, case, places[case.key], row.resize)
        except ValueError as error:
            faults[case.key] = str(error)
        if case.key in faults:
            kept.forget(case.key, *PICTURES)
            kept.keep(case.key, {"error": faults[case.key]})
    if len(faults) == len(cases):
        raise ValueError(f"{OPTION}{name}: no picture of {row.folder} can be used; {_listed(faults)}")
    _tell(name, row, len(cases), resized, faults)
    return PieRow(
        name,
        None,
        prompts=row.prompts,
        mask=row.mask,
        steps=row.steps,
        title=row.title,
        seconds=(row.seconds_invert, row.seconds_edit),
    )


def _claim(folder: Path, source: Path) -> None:
    """Say in a row's folder where its pictures are from. Raises ValueError if edits were made there."""
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if _SOURCE not in before:
            raise ValueError(f"{folder} holds edits that this evaluation has made itself; give the row another name")
        if before[_SOURCE] != str(source):
            logger.info("%s: pictures are taken from %s, before from %s", folder.name, source, before[_SOURCE])
    write_json(path, {_SOURCE: str(source)})


def _keep(kept: KeptFolder, case: PieCase, path: Path, resize: bool) -> bool:
    """Keep a case's picture, if it is not there already; whether it was resized. Raises ValueError if it is no use."""
    height, width = case.mask.shape
    known = digest(file_digest(path), [width, height], resize)
    record = kept.read(case.key) or {}
    if record.get("digest") != known:
        taken = _taken(path, (width, height), resize)
        record = {"source_prompt": case.source_prompt, "target_prompt": case.target_prompt, "digest": known}
        record |= {"jpeg": True} if taken.jpeg else {}
        record |= {"resized_from": taken.resized_from} if taken.resized_from else {}
        kept.keep(case.key, record, {".png": partial(taken.picture.save, format="PNG")})
    return "resized_from" in record


def _finder(folder: Path) -> Callable[[PieCase], Path]:
    """A function from a case to its file, which raises ValueError for no picture or several different ones."""

    @cache
    def pictures(parent: Path) -> Mapping[str, Sequence[Path]]:
        """The pictures of one folder by their names without suffix."""
        found: dict[str, list[Path]] = {}
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if path.suffix.lower() in SUFFIXES and path.is_file():
                found.setdefault(path.stem, []).append(path)
        return found

    def find(case: PieCase) -> Path:
        own = PurePosixPath(case.image_path)
        places = {folder / case.key, folder / own.with_suffix(""), folder / IMAGES / own.with_suffix("")}
        found = [path for place in sorted(places) for path in pictures(place.parent).get(place.name, ())]
        if not found:
            raise ValueError("there is no picture of this case")
        if len(found) > 1 and len({file_digest(path) for path in found}) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise ValueError(f"there are several pictures of this case: {names}")
        return found[0]

    return find


def _taken(path: Path, size: tuple[int, int], resize: bool) -> _Taken:
    """The picture of a file in the size (width, height) that the case has. Raises ValueError if that cannot be."""
    content = path.read_bytes()
    try:
        picture = decode(content)
    except DamagedImage as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    with open_picture(content) as opened:
        jpeg = opened.format == "JPEG"
    picture = _last_of_strip(picture, size)
    if picture.size == size:
        return _Taken(picture, jpeg, None)
    words = f"{path.name} has {picture.width}x{picture.height} px, expected {size[0]}x{size[1]}"
    if not resize:
        raise ValueError(f"{words}; the row's resize brings it to that")
    aspect = picture.width * size[1] / (picture.height * size[0])
    if abs(aspect - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"{words}: another aspect, which resizing would distort")
    return _Taken(picture.resize(size, Image.Resampling.LANCZOS), jpeg, picture.size)


def _last_of_strip(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The panel at the right end of a strip of two or more with the aspect of `size`; else the picture itself."""
    panel = round(picture.height * size[0] / size[1])
    if panel < 1 or picture.width < 2 * panel:
        return picture
    return picture.crop((picture.width - panel, 0, picture.width, picture.height))


def _tell(name: str, row: ExternalRow, count: int, resized: int, faults: Mapping[str, str]) -> None:
    words = f"{name}: {count - len(faults)} of {count} pictures are taken from {row.folder}"
    if resized:
        words += f", {resized} of them resized"
    if faults:
        logger.warning("%s; left out: %s", words, _listed(faults))
    else:
        logger.info("%s", words)


def _listed(faults: Mapping[str, Any]) -> str:
    """The first faults with their keys, and how many more there are."""
    shown = [f"{key}: {reason}" for key, reason in list(faults.items())[:_SHOWN]]
    more = len(faults) - len(shown)
    return "; ".join([*shown, f"and {more} more, see results.json"] if more else shown)
