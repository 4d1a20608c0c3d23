"""A labelled grid of preview images: a column for each kind of image, its name on top, a row for each sample."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.pictures import to_uint8

MIN_CELL = 128  # pixels; smaller images are enlarged so that names and details can be read
LABEL_HEIGHT = 20
GAP = 2
LINE_HEIGHT = 15
CHARACTER_WIDTH = 6.5


def preview_grid(columns: dict[str, Tensor], words: Sequence[str] = ()) -> Image.Image:
    """Draw the grid. Its `info` has the names of the columns, the height of their line, and the words below each row.

    Args:
        columns: Images by column name, each [n, 3, H, W] in [-1, 1]; values outside are clipped. Columns may differ
            in size.
        words: What stands below each of the n rows; () for nothing.

    Raises:
        ValueError: a column has another shape, or the columns differ in their number of images.
    """
    for name, images in columns.items():
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"preview column {name!r} has shape {tuple(images.shape)}, expected [n, 3, H, W]")
    counts = {name: images.shape[0] for name, images in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"preview columns differ in their number of images: {counts}")
    side = max(MIN_CELL, *(max(images.shape[2:]) for images in columns.values()))
    rows = next(iter(counts.values()))
    width = len(columns) * (side + GAP) + GAP
    lines = [textwrap.wrap(text, int(width / CHARACTER_WIDTH)) for text in words or [""] * rows]
    height = side + GAP + LINE_HEIGHT * max(map(len, lines))
    sheet = Image.new("RGB", (width, LABEL_HEIGHT + rows * height + GAP), "white")
    sheet.info = {"columns": list(columns), "top": LABEL_HEIGHT, "words": list(words)}
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, (name, images) in enumerate(columns.items()):
        left = GAP + column * (side + GAP)
        draw.text((left + side / 2, LABEL_HEIGHT / 2), name, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(_pictures(images, side)):
            sheet.paste(picture, (left, LABEL_HEIGHT + GAP + row * height))
    for row, text in enumerate(lines):
        draw.text((GAP, LABEL_HEIGHT + GAP + row * height + side), "\n".join(text), fill="black", font=font)
    return sheet


def _pictures(images: Tensor, side: int) -> list[Image.Image]:
    pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in to_uint8(images).cpu()]
    scale = side / max(images.shape[2:])
    width, height = round(images.shape[3] * scale), round(images.shape[2] * scale)
    return [picture.resize((width, height), Image.Resampling.NEAREST) for picture in pictures]
