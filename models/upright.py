"""Pictures as people see them: turned as the camera was held, on white where they are transparent, in 8-bit RGB.

Training, evaluation and editing read pictures by these functions. They stand on Pillow and NumPy; HEIC and JPEG XL are
read where the Pillow plugins pillow-heif and pillow-jxl-plugin are installed.
"""

import io
from contextlib import suppress
from functools import cache
from importlib import import_module

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow knows more formats, some of which start other programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF", "JXL")
_BROUGHT_BY = {"AVIF": "'Pillow>=11.3'", "HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin"}
_JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""


class UnsupportedPixels(ValueError):
    """Pixels without a known way to RGB: floating point numbers of unknown scale, Lab."""


class MissingDecoder(ValueError):
    """A picture of a format that this installation cannot read; the message says what to install."""


def open_picture(content: bytes) -> Image.Image:
    """Open the bytes of a picture's file: JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, and HEIC and JPEG XL by plugins.

    Raises:
        MissingDecoder: AVIF, HEIC or JPEG XL that this installation cannot read.
        UnidentifiedImageError: the file of no such format.
        OSError, SyntaxError, ValueError and others of Pillow's: a damaged file.
    """
    try:
        return Image.open(io.BytesIO(content), formats=_readable())
    except UnidentifiedImageError as error:
        kind = _newer_format(content[:64])
        if kind is None:
            taken = ", ".join(_FORMATS)
            raise UnidentifiedImageError(f"it begins with {content[:16]!r}, expected one of {taken}") from error
        if kind not in _readable():
            raise MissingDecoder(f"needs pip install {_BROUGHT_BY[kind]}") from error
        raise OSError(f"the file begins as {kind}, and cannot be read on") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """An RGB picture of what a viewer shows; the same object if it is that already.

    EXIF orientation is applied, transparency is laid on white, 16 bit becomes 8 bit.

    Raises:
        UnsupportedPixels: floating point numbers or Lab.
    """
    picture.load()  # which turns a TIFF already
    turn = _TURNS.get(orientation(picture))
    if turn is not None:
        picture = picture.transpose(turn)
        for name in set(picture.info) - {"transparency"}:  # EXIF and XMP would have it turned again
            del picture.info[name]
    return to_rgb(picture)


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of a picture, 1 (upright) to 8; 1 where there is none, or none that can be read."""
    if picture.format == "JXL" and not getattr(picture, "jpeg", False):
        return 1  # ISO/IEC 18181-2: the codestream's own holds, which decoders apply; that of EXIF is ignored
    with suppress(Exception):  # broken EXIF raises anything; the pixels are whole all the same
        return int(picture.getexif().get(_ORIENTATION, 1))
    return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, transparency on white; the same object if it is that already.

    Raises:
        UnsupportedPixels: floating point numbers or Lab.
    """
    if image.mode.startswith("I"):  # 16 bit grey, which convert() would clip to 255
        return _from_16_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise UnsupportedPixels(f"mode {image.mode}")
    return image if image.mode == "RGB" else image.convert("RGB")


def fitted(picture: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The largest centre crop of a picture with the aspect of `size`, resized to it by Lanczos, in upright RGB.

    Args:
        size: width and height in pixels.

    Returns:
        The picture, the same object if it is that already, and its crop (left, top, width, height) in pixels of the
        upright original.

    Raises:
        UnsupportedPixels: floating point numbers or Lab.
    """
    upright = upright_rgb(picture)
    left, top, width, height = crop = centre_crop(upright.size, size)
    if upright.size == size:
        return upright, crop
    box = (left, top, left + width, top + height)
    return upright.resize(size, Image.Resampling.LANCZOS, box=box), crop


def centre_crop(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest crop (left, top, width, height) at the centre that has the aspect of `size`, to half a pixel.

    Args:
        original, size: width and height in pixels.
    """
    (width, height), (wide, high) = original, size
    kept_width = min(width, max(1, (2 * height * wide + high) // (2 * high)))
    kept_height = min(height, max(1, (2 * width * high + wide) // (2 * wide)))
    return (width - kept_width) // 2, (height - kept_height) // 2, kept_width, kept_height


@cache
def _readable() -> tuple[str, ...]:
    """The formats of _FORMATS that Pillow reads here, with its plugins."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        import_module("pillow_jxl")  # it registers itself
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _newer_format(start: bytes) -> str | None:
    """Which format a file that begins so has, if it is one that not every Pillow reads."""
    if start.startswith(_JXL_STARTS):
        return "JXL"
    if start[4:8] != b"ftyp":
        return None
    length = int.from_bytes(start[:4], "big")
    brands = [start[8:12], *(start[place : place + 4] for place in range(16, min(length, len(start)), 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else None


def _from_16_bit(image: Image.Image) -> Image.Image:
    wide = np.asarray(image).astype(np.int64)
    grey = (np.clip(wide, 0, 65535) // 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[wide == clear] = 255
    return Image.fromarray(grey, "L").convert("RGB")
