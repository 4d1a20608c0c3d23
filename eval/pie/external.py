"""Pictures that something else has edited, taken into a PIE-Bench evaluation as a row of their own."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from data.jobs.files import file_digest
from data.jobs.kept import KeptFolder
from data.pictures.images import DamagedImage, decode
from data.world.pie_layout import IMAGES
from eval.pie.cases import PieCase
from eval.pie.edits import PICTURES, PieRow

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def take_external(name: str, source: Path, cases: Sequence[PieCase], edits: Path) -> PieRow:
    """Copy the edits of `cases` from `source` to EDITS/NAME; returns their row.

    A case's picture is SOURCE/KEY.png (.jpg, .webp), or lies under the name that the benchmark's own picture has. Of a
    picture that is no square the right end counts, as in the official script, whose runners save strips of four.

    Raises:
        ValueError: the row exists with another source, or there is no picture of any case.
    """
    kept = KeptFolder(edits / name, {"external": str(source)})
    missing = 0
    for case in cases:
        try:
            path = _find(source, case)
            digest = file_digest(path)
            if (kept.read(case.key) or {}).get("digest") == digest:
                continue
            square = _last_square(path, case.mask.shape)
        except ValueError as error:
            missing += 1
            kept.forget(case.key, *PICTURES)
            kept.keep(case.key, {"error": str(error)})
            continue
        record = {"source_prompt": case.source_prompt, "target_prompt": case.target_prompt, "digest": digest}
        kept.keep(case.key, record, {".png": partial(square.save, format="PNG")})
    if missing == len(cases):
        raise ValueError(f"{source} has a picture of none of the {len(cases)} cases; expected KEY.png or {IMAGES}/...")
    return PieRow(name, None, mask="unsaid")


def _find(source: Path, case: PieCase) -> Path:
    """The file of a case. Raises ValueError where there is none."""
    relative = Path(*case.image.parts[case.image.parts.index(IMAGES) + 1 :])
    places = [source / f"{case.key}{suffix}" for suffix in _SUFFIXES]
    places += [source / relative, source / IMAGES / relative]
    for path in places:
        if path.is_file():
            return path
    raise ValueError("there is no picture of this case")


def _last_square(path: Path, size: tuple[int, ...]) -> Image.Image:
    """The picture, or the square at its right end. Raises ValueError if it cannot be read or has another size."""
    try:
        picture = decode(path.read_bytes())
    except DamagedImage as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    side = min(picture.size)
    square = picture.crop((picture.width - side, picture.height - side, picture.width, picture.height))
    if (square.height, square.width) != size:
        raise ValueError(f"{path.name} has {square.width} px, expected {size[1]}x{size[0]}")
    return square
