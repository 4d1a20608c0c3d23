"""Pictures from files: upright RGB of any common format, then the centre square at the training resolution."""

import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.pictures.source import DamagedInput
from models.upright import MissingDecoder, UnsupportedPixels, fitted, open_picture, upright_rgb

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jxl"}
)
"""File name endings, in lower case, that count as pictures in a folder."""

_STORED = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_JPEG_QUALITY = 95


class DamagedImage(DamagedInput):
    """A file that gives no picture."""


class DecodedPicture(NamedTuple):
    """A decoded picture.

    Args:
        image: upright RGB.
        suffix: "jpg", "png" or "webp" where the file's own bytes are as good as `image`, since nothing but decoding
            lies between them; else None.
    """

    image: Image.Image
    suffix: str | None


def decode(content: bytes) -> Image.Image:
    """The bytes of an image file as an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, 16 bit becomes 8 bit, an animation gives its first
    frame.

    Raises:
        DamagedImage: "empty file", "not an image", "decompression bomb", "truncated or corrupt", "unsupported pixels"
            (floating point numbers without a known scale, Lab), "needs pip install ..." (HEIC and JPEG XL without their
            plugins).
    """
    return read_picture(content).image


def read_picture(content: bytes) -> DecodedPicture:
    """Decode a picture as `decode` does, and say whether its file may be stored as it is.

    Raises:
        DamagedImage: see `decode`.
    """
    if not content:
        raise DamagedImage("empty file")
    try:
        with open_picture(content) as image:
            return _load(image)
    except DamagedImage:
        raise
    except MissingDecoder as error:
        raise DamagedImage(str(error)) from error
    except UnsupportedPixels as error:
        raise DamagedImage("unsupported pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise DamagedImage("not an image", str(error)) from error
    except Image.DecompressionBombError as error:
        raise DamagedImage("decompression bomb", str(error)) from error
    except Exception as error:  # on broken files Pillow's decoders let through almost anything, struct.error included
        raise DamagedImage("truncated or corrupt", re.sub(r" at 0x[0-9a-f]+", "", repr(error))) from error


def _load(image: Image.Image) -> DecodedPicture:
    # Pillow itself only warns between one and two times its limit.
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise DamagedImage("decompression bomb", f"{image.width}x{image.height} pixels")
    image.load()
    picture = upright_rgb(image)
    suffix = _STORED.get(image.format or "") if picture is image else None
    if suffix and getattr(image, "n_frames", 1) > 1:
        suffix = None
    return DecodedPicture(picture, suffix)


def centre_square(image: Image.Image, resolution: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The centre square, resized to `resolution` pixels, with its crop (left, top, width, height); see `fitted`."""
    return fitted(image, (resolution, resolution))


def encode(image: Image.Image, lossless: bool) -> tuple[str, bytes]:
    """The suffix and bytes of an image file: PNG, or JPEG at high quality without chroma subsampling."""
    stream = io.BytesIO()
    if lossless:
        image.save(stream, "PNG", compress_level=1)
        return "png", stream.getvalue()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "jpg", stream.getvalue()
