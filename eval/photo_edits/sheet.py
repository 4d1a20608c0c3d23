"""A sheet that shows a photograph's edits: pictures in rows, each with a title above and its text below."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from models.upright import fitted

_SHOWN = 256
"""Least side in pixels at which a picture is shown."""
_MARGIN = 16
_TITLE, _LINE, _GAP = 26, 17, 8

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet; those of one aspect are shown whole, others cropped at the centre."""

    title: str
    picture: Image.Image
    caption: str


def draw_sheet(rows: Sequence[Sequence[Tile]], size: tuple[int, int]) -> Image.Image:
    """Rows of tiles, one below the other.

    Args:
        size: width and height in pixels in which the pictures are shown, enlarged where that is very small.
    """
    zoom = -(-_SHOWN // min(size))
    shown = size[0] * zoom, size[1] * zoom
    font = ImageFont.load_default(size=13)
    texts = [[_wrapped(tile.caption, font, shown[0]) for tile in row] for row in rows]
    heights = [_TITLE + shown[1] + _GAP + _LINE * max(map(len, row)) + _MARGIN for row in texts]
    width = _MARGIN + max(map(len, rows)) * (shown[0] + _MARGIN)
    sheet = Image.new("RGB", (width, _MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, lines) in enumerate(zip(rows, texts, strict=True)):
        top = _MARGIN + sum(heights[:number])
        for column, (tile, of_tile) in enumerate(zip(row, lines, strict=True)):
            left = _MARGIN + column * (shown[0] + _MARGIN)
            draw.text((left, top), tile.title, fill="#1d2430", font=ImageFont.load_default(size=16))
            picture = fitted(tile.picture, size)[0].resize(shown, Image.Resampling.BICUBIC)
            sheet.paste(picture, (left, top + _TITLE))
            for place, line in enumerate(of_tile):
                draw.text((left, top + _TITLE + shown[1] + _GAP + _LINE * place), line, fill="#5b6676", font=font)
    return sheet


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, words whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]
