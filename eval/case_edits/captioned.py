"""Captioned pictures alone, of PIE-Bench too: for commands that give pictures back and edit nothing."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from eval.case_edits.cases import is_pie_bench
from eval.harness.captioned import CaptionedImage, each_captioned_image, stacked
from eval.harness.options import Shapes
from eval.pie.cases import read_pie_bench
from eval.pie.edits import read_pixels
from eval.scene_edits.edit_set import EditSet, PictureEdit
from models.pictures import from_picture

logger = logging.getLogger(__name__)


def captioned_pictures(
    data: Path, side: int, num: int | None = None, shapes: Shapes = "square"
) -> Iterator[CaptionedImage]:
    """Yield the first `num` pictures of PIE-Bench with its source prompts, of shards, or of a folder with captions.

    Args:
        data: The folder.
        side: Side in pixels of the squares on which the model works.
        num: Number of pictures; None for all.
        shapes: Shapes of the pictures of a folder. PIE-Bench's are taken as they are, in the shapes that a model of
            that side has; squares alone where "square" is asked for.

    Raises:
        ValueError: None can be used.
    """
    if not is_pie_bench(data):
        yield from each_captioned_image(data, side, num, shapes)
        return
    cases, bad = read_pie_bench(data, side)
    for note in (note for note in bad if note.left_out):
        logger.warning("%s is left out: %s", note.key, note.reason)
    usable = [case for case in cases if shapes == "buckets" or case.mask.shape == (side, side)]
    if len(usable) < len(cases):
        logger.warning("%d pictures are left out: they are no squares", len(cases) - len(usable))
    if not usable:
        raise ValueError(f"no picture of {data} is a square of {side} px")
    for case in usable[:num]:
        yield CaptionedImage(case.key, from_picture(read_pixels(case.image)).contiguous(), case.source_prompt)


def unedited(pictures: Sequence[CaptionedImage], device: torch.device) -> EditSet:
    """Pictures of one size as edits that change nothing."""
    sources = stacked(pictures).to(device)
    captions = tuple(picture.caption for picture in pictures)
    return EditSet(
        tuple(PictureEdit(picture.key, "picture", "") for picture in pictures),
        sources,
        torch.full_like(sources[:1, :1, :1, :1], torch.nan).expand_as(sources),
        torch.ones_like(sources[:, :1], dtype=torch.bool),
        captions,
        captions,
    )
