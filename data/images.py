"""Pictures from files: any of Pillow's formats to upright RGB, then the centre square at the training resolution."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""File name endings, in lower case, that count as pictures in a folder."""

_JPEG_QUALITY = 95


class DamagedImage(Exception):
    """A file that gives no picture; `reason` is one of a few fixed texts that can be counted.

    Args:
        reason: what kind of damage.
        detail: what exactly happened.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def decode(content: bytes) -> Image.Image:
    """The bytes of an image file as an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, 16 bit becomes 8 bit, an animation gives its first
    frame.

    Raises:
        DamagedImage: "empty file", "not an image", "decompression bomb", "truncated or corrupt".
    """
    if not content:
        raise DamagedImage("empty file")
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise DamagedImage("not an image", str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DamagedImage("decompression bomb", str(error)) from error
    except Exception as error:  # on broken files Pillow's decoders let through almost anything, struct.error included
        raise DamagedImage("truncated or corrupt", repr(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit grey, which convert() would clip to 255
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8), "L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def centre_square(image: Image.Image, resolution: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The centre square, resized to `resolution` pixels, with its crop (left, top, width, height).

    A picture that has this size already is returned as it is.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    crop = (left, top, side, side)
    if (width, height) == (resolution, resolution):
        return image, crop
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box), crop


def encode(image: Image.Image, lossless: bool) -> tuple[str, bytes]:
    """The suffix and bytes of an image file: PNG, or JPEG at high quality without chroma subsampling."""
    stream = io.BytesIO()
    if lossless:
        image.save(stream, "PNG", compress_level=1)
        return "png", stream.getvalue()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "jpg", stream.getvalue()


def to_array(image: Image.Image) -> np.ndarray:
    """An RGB picture as float32 [3, H, W] in [-1, 1]."""
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
