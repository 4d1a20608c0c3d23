"""Pictures from files: upright RGB of any common format, then the centre square at the training resolution."""

import io
import re
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.pictures.source import DamagedInput
from models.upright import UnsupportedPixels, to_rgb

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""File name endings, in lower case, that count as pictures in a folder."""

# Those that belong to the endings. Pillow knows more, some of which start other programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_STORED = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_JPEG_QUALITY = 95


class DamagedImage(DamagedInput):
    """A file that gives no picture."""


class DecodedPicture(NamedTuple):
    """A decoded picture.

    Args:
        image: upright RGB.
        size: width and height of the upright picture in its file; `image` may be an exact fraction of it.
        suffix: "jpg", "png" or "webp" where the file's own bytes are as good as `image`, since nothing but decoding
            lies between them; else None.
    """

    image: Image.Image
    size: tuple[int, int]
    suffix: str | None


def decode(content: bytes) -> Image.Image:
    """The bytes of an image file as an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, 16 bit becomes 8 bit, an animation gives its first
    frame.

    Raises:
        DamagedImage: "empty file", "not an image", "decompression bomb", "truncated or corrupt", "unsupported pixels"
            (floating point numbers without a known scale, Lab).
    """
    return read_picture(content).image


def read_picture(content: bytes, enough: int | None = None) -> DecodedPicture:
    """Decode a picture as `decode` does, and keep what the file said.

    Args:
        enough: length in pixels that the shorter side needs. A JPEG of at least twice as much is decoded at a half, a
            quarter or an eighth of its size if that divides both sides and leaves twice as much. On detailed pictures
            the square that is then made of it differs by 43 to 50 dB from that of the whole picture, where storing
            the square as JPEG costs 38 to 40 dB; a camera's picture is read in half the time or less.

    Raises:
        DamagedImage: see `decode`.
    """
    if not content:
        raise DamagedImage("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _load(image, enough)
    except DamagedImage:
        raise
    except UnidentifiedImageError as error:
        raise DamagedImage("not an image", f"it begins with {content[:16]!r}") from error
    except Image.DecompressionBombError as error:
        raise DamagedImage("decompression bomb", str(error)) from error
    except Exception as error:  # on broken files Pillow's decoders let through almost anything, struct.error included
        raise DamagedImage("truncated or corrupt", re.sub(r" at 0x[0-9a-f]+", "", repr(error))) from error


def _load(image: Image.Image, enough: int | None) -> DecodedPicture:
    # Pillow itself only warns between one and two times its limit.
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise DamagedImage("decompression bomb", f"{image.width}x{image.height} pixels")
    size = image.size
    kind = image.format
    if enough is not None and kind in ("JPEG", "MPO"):
        _reduce(image, enough)
    image.load()
    shape = image.size
    turned = _make_upright(image)
    as_it_is = (image.mode, image.size, turned) == ("RGB", size, False) and "transparency" not in image.info
    suffix = _STORED.get(kind or "") if as_it_is else None
    if suffix and getattr(image, "n_frames", 1) > 1:
        suffix = None
    if image.size != shape:
        size = (size[1], size[0])
    try:
        return DecodedPicture(to_rgb(image), size, suffix)
    except UnsupportedPixels as error:
        raise DamagedImage("unsupported pixels", str(error)) from error


def _reduce(image: Image.Image, enough: int) -> None:
    """Has a JPEG decoded at a fraction of its size that leaves at least twice `enough` and no pixel in part."""
    width, height = image.size
    for factor in (8, 4, 2):
        if min(width, height) >= 2 * enough * factor and width % factor == 0 and height % factor == 0:
            image.draft(None, (width // factor, height // factor))
            return


def _make_upright(image: Image.Image) -> bool:
    """Turn a loaded picture as its EXIF orientation says; returns whether that changed it."""
    pixels = image.im
    with suppress(Exception):  # broken EXIF raises anything; the pixels are whole all the same
        ImageOps.exif_transpose(image, in_place=True)
    return image.im is not pixels


def centre_crop(
    image: Image.Image, target: tuple[int, int], size: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The middle of a picture in the aspect of `target`, resized to it, with its crop (left, top, width, height).

    A picture that has this size already is returned as it is.

    Args:
        target: width and height in pixels.
        size: width and height that the picture has in its file, in whose pixels the crop is given, where `image` is an
            exact fraction of it; by default the image's own.
    """
    width, height = size or image.size
    share = min(width / target[0], height / target[1])
    kept = min(width, round(share * target[0])), min(height, round(share * target[1]))
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    crop = (left, top, *kept)
    if image.size == target:
        return image, crop
    factor = width / image.width
    box = (left / factor, top / factor, (left + kept[0]) / factor, (top + kept[1]) / factor)
    return image.resize(target, Image.Resampling.LANCZOS, box=box), crop


def encode(image: Image.Image, lossless: bool) -> tuple[str, bytes]:
    """The suffix and bytes of an image file: PNG, or JPEG at high quality without chroma subsampling."""
    stream = io.BytesIO()
    if lossless:
        image.save(stream, "PNG", compress_level=1)
        return "png", stream.getvalue()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "jpg", stream.getvalue()
