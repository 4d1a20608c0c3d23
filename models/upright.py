"""Pictures as people see them: turned as the camera was held, on white where they are transparent, in 8-bit RGB.

Training and editing read pictures by this one function. It stands on Pillow and NumPy alone.
"""

from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps


class UnsupportedPixels(ValueError):
    """Pixels without a known way to RGB: floating point numbers of unknown scale, Lab."""


def upright_rgb(picture: Image.Image) -> Image.Image:
    """An RGB picture of what a viewer shows; the same object if it is that already.

    EXIF orientation is applied, transparency is laid on white, 16 bit becomes 8 bit.

    Raises:
        UnsupportedPixels: floating point numbers or Lab.
    """
    with suppress(Exception):  # broken EXIF raises anything; the pixels are whole all the same
        picture = ImageOps.exif_transpose(picture) if picture.getexif() else picture
    return to_rgb(picture)


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


def _from_16_bit(image: Image.Image) -> Image.Image:
    wide = np.asarray(image).astype(np.int64)
    grey = (np.clip(wide, 0, 65535) // 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[wide == clear] = 255
    return Image.fromarray(grey, "L").convert("RGB")
