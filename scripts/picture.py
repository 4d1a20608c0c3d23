"""Draw the README's picture: test scenes, what an encoder reconstructs of them, and three edits of each.

python -m scripts.picture --encoder runs/demo/export --out docs/picture.jpg

Nothing is chosen by eye: the scenes are the first of the test split, and their edits take the nine kinds in turn.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.jobs.command import run

if TYPE_CHECKING:
    from PIL import Image

    from data.world.description import Scene
    from data.world.edits import Edit
    from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)

ZOOM = 3
"""Times that a scene of 64 pixels is enlarged."""
MARGIN, LINE = 12, 20
EDITS = 3
SPLIT = "test"
EDIT_STREAM = 100
"""Number of the random numbers that draw this picture's edits; those of the evaluations lie below it."""


def draw_picture(encoder: str, out: Path = Path("docs/picture.jpg"), rows: int = 3, seed: int = 0) -> Path:
    """Draw test scenes, their reconstructions and edits in one picture.

    Args:
        encoder: Folder or hub id of an export of a TurboEdit encoder on the miniature.
        out: File to write; its ending says the format.
        rows: Number of scenes.
        seed: Seed of scenes and edits.
    """
    from eval.harness.exports import load_encoder

    pipeline = load_encoder(encoder)
    pipeline.set_progress_bar_config(disable=True)
    sheet = _sheet([_row(pipeline, number, seed) for number in range(rows)])
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, quality=90, subsampling=0)
    logger.info("wrote %s, %d x %d, %.0f kB", out, *sheet.size, out.stat().st_size / 1e3)
    return out


def edits_of(scene: "Scene", number: int, seed: int) -> list["Edit"]:
    """Three edits of a scene; the kinds go on where those of the scene before ended, past those that it cannot have."""
    from data.world.description import has_heldout_pair
    from data.world.edits import EDIT_KINDS, edit_of
    from data.world.splits import stream

    rng = stream(SPLIT, seed, number, EDIT_STREAM)
    turn = EDITS * number % len(EDIT_KINDS)
    found = (edit_of(rng, scene, kind) for kind in EDIT_KINDS[turn:] + EDIT_KINDS[:turn])
    return [edit for edit in found if edit is not None and not has_heldout_pair(edit.target)][:EDITS]


def _row(pipeline: "TurboEditPipeline", number: int, seed: int) -> list[tuple[str, "Image.Image"]]:
    """Title and picture of the source, its reconstruction and its edits."""
    from PIL import Image

    from data.world.render import render
    from data.world.splits import sample_scene
    from eval.editors.turboedit import from_pictures
    from eval.metrics.pixels import psnr

    scene = sample_scene(SPLIT, seed, number)
    edits = edits_of(scene, number, seed)
    source = Image.fromarray(render(scene))
    inversion = pipeline.invert(source, edits[0].captions()[0])
    reconstruction = pipeline.decode(inversion.reconstructions[-1])[0]
    fidelity = psnr(from_pictures([reconstruction]), from_pictures([source])).item()
    row = [("source", source), (f"reconstruction, {fidelity:.1f} dB", reconstruction)]
    return row + [(edit.instruction, pipeline.edit(inversion, edit.captions()[1]).images[0]) for edit in edits]


def _sheet(rows: Sequence[Sequence[tuple[str, "Image.Image"]]]) -> "Image.Image":
    """Pictures in rows, each below its title."""
    from PIL import Image, ImageDraw, ImageFont

    side = ZOOM * rows[0][0][1].width
    font = ImageFont.load_default(size=14)
    lines = [[list(_wrapped(title, side, font.getlength)) for title, _ in row] for row in rows]
    heights = [MARGIN + LINE * max(map(len, titles)) + side for titles in lines]
    sheet = Image.new("RGB", (MARGIN + len(rows[0]) * (side + MARGIN), sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, titles, height in zip(rows, lines, heights, strict=True):
        below = top + height - side
        for number, ((_, picture), title) in enumerate(zip(row, titles, strict=True)):
            left = MARGIN + number * (side + MARGIN)
            for line, text in enumerate(reversed(title), start=1):
                draw.text((left, below - LINE * line), text, fill="#1d2430", font=font)
            sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left, below))
        top += height
    return sheet


def _wrapped(text: str, width: int, length: Callable[[str], float]) -> Iterator[str]:
    """Lines of `text` at most `width` pixels long, words whole."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and length(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.picture", draw_picture, argv)


if __name__ == "__main__":
    main()
