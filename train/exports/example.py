"""The picture on which an export is tried out, and what the card shows of it: a scene, which anyone may pass on."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from data.world.render import render
from data.world.splits import sample_edits
from train.method import Example

EXAMPLE_FILE = "example.png"
KIND = "change_colour"
SIDE, MARGIN, LINE = 256, 8, 20
"""Pixels of a picture on the card's sheet, between pictures, and of a line of text."""


def scene_example() -> Example:
    """The first scene of the test split, and the first edit of its colour."""
    edit = sample_edits("test", seed=0, index=0, kind=KIND)
    return Example(Image.fromarray(render(edit.source)), *edit.captions(), edit.instruction)


def sheet(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures side by side, each below its title."""
    drawn = Image.new("RGB", (len(pictures) * (SIDE + MARGIN) + MARGIN, SIDE + LINE + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(drawn)
    for number, (title, picture) in enumerate(pictures.items()):
        left = MARGIN + number * (SIDE + MARGIN)
        pen.text((left, MARGIN), title, fill="black", font=ImageFont.load_default(size=14))
        drawn.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, MARGIN + LINE))
    return drawn
