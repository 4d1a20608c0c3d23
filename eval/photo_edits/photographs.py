"""Photographs as people give them, opened once: upright, in RGB, with a name and a digest of their pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.pictures.images import DamagedImage, decode
from models.upright import UnsupportedPixels, upright_rgb


@dataclass(frozen=True)
class Photograph:
    """A photograph.

    Args:
        picture: upright RGB.
        name: the file, as settings name it.
        digest: digest of the pixels, so that a photograph is inverted once wherever it comes from.
    """

    picture: Image.Image
    name: str
    digest: str


def open_photograph(source: str | Path | Image.Image, name: str | None = None) -> Photograph:
    """A photograph of a file or a picture of any kind that Pillow reads.

    Args:
        source: the file, or a picture in memory.
        name: name in settings and messages; that of the file by default.

    Raises:
        ValueError: there is no such file, it cannot be read, or it gives no picture; the message names it.
    """
    if isinstance(source, Image.Image):
        named = name or "the picture"
        try:
            picture = upright_rgb(source)
        except UnsupportedPixels as error:
            raise ValueError(f"{named} has pixels that are no 8-bit or 16-bit levels ({error}); give RGB") from error
    else:
        named, path = name or str(source), Path(source)
        try:
            if not path.is_file():
                raise ValueError(f"there is no picture at {path}")
            picture = decode(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{named} cannot be read ({error.strerror or error})") from error
        except DamagedImage as error:
            raise ValueError(f"{named} is not a picture that can be read ({error})") from error
    if not picture.width or not picture.height:
        raise ValueError(f"{named} has no pixels: it is {picture.width}x{picture.height}")
    digest = hashlib.sha256(f"{picture.width}x{picture.height}".encode() + picture.tobytes()).hexdigest()
    return Photograph(picture, named, digest)
