"""Edits at the size of their photographs: own pixels outside of the mask, whatever the size and shape."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models.full_size import at_full_size
from models.shapes import Cutout
from models.turboedit_pipeline import TurboEditPipeline
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET = "a red star", "a blue star"
SIZES = [(640, 480), (301, 517), (64, 64), (1000, 250)]


@pytest.fixture(scope="module")
def pipeline(tiny_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_backbone)


def photograph(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def drawn(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=255)
    return mask


@pytest.mark.parametrize("size", SIZES)
def test_outside_of_a_drawn_mask_every_pixel_is_the_photographs(pipeline: TurboEditPipeline, size: tuple[int, int]):
    photo, mask = photograph(size), drawn(size)
    output = pipeline(photo, SOURCE, TARGET, mask=mask)
    [full] = output.at_full_size(photo, mask)
    assert full.size == size
    before, after, inside = (np.asarray(picture) for picture in (photo, full, mask))
    assert np.array_equal(after[inside == 0], before[inside == 0])
    assert not np.array_equal(after[inside > 0], before[inside > 0])


@pytest.mark.parametrize("size", SIZES)
def test_outside_of_the_edits_own_mask_too(pipeline: TurboEditPipeline, size: tuple[int, int]):
    photo = photograph(size)
    output = pipeline(photo, SOURCE, TARGET, mask=drawn(size))
    [full] = output.at_full_size(photo)
    [cutout] = output.inversion.cutouts
    left, top, width, height = cutout.crop
    weights = torch.nn.functional.interpolate(output.mask, (height, width), mode="bilinear")[0, 0].numpy()
    kept = np.ones(size[::-1], bool)
    kept[top : top + height, left : left + width] = np.round(weights * 255) == 0
    assert kept.mean() > 0.3 and np.array_equal(np.asarray(full)[kept], np.asarray(photo)[kept])


def test_without_a_mask_it_is_the_whole_edit_in_the_photographs_shape(pipeline: TurboEditPipeline):
    photo = photograph((640, 400))
    output = pipeline(photo, SOURCE, TARGET)
    [full] = output.at_full_size(photo)
    [cutout] = output.inversion.cutouts
    assert full.size == cutout.crop[2:] and full.width / full.height == pytest.approx(1.6, rel=0.1)
    small = full.resize(output.images[0].size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small, float) - np.asarray(output.images[0], float)).mean() < 4


def test_a_mask_softens_within_itself():
    photo, edit = Image.new("RGB", (400, 400)), Image.new("RGB", (64, 64), "white")
    mask = drawn((400, 400))
    [full] = at_full_size(photo, [edit], [Cutout((400, 400), (0, 0, 400, 400), (64, 64))], mask)
    row, inside = np.asarray(full)[150, :, 0], np.asarray(mask)[150]
    assert row[150] == 255 and (row[inside == 0] == 0).all()
    edge = int(np.flatnonzero(inside)[0])
    assert (np.diff(row[edge : edge + 12].astype(int)) >= 0).all() and 0 < row[edge + 4] < 255


@pytest.mark.parametrize(
    ("name", "box", "full_share"),
    [("dot", (490, 370, 510, 390), 0.1), ("stroke", (100, 370, 900, 382), 0.3), ("disk", (470, 345, 530, 405), 0.15)],
)
def test_a_thin_mask_is_not_lost(name: str, box: tuple[int, int, int, int], full_share: float):
    photo, edit = Image.new("RGB", (1000, 750)), Image.new("RGB", (576, 448), "white")
    mask = Image.new("L", (1000, 750))
    draw = ImageDraw.Draw(mask)
    (draw.rectangle if name == "stroke" else draw.ellipse)(box, fill=255)
    draw.ellipse((box[0] + 15, box[3] + 20, box[0] + 400, 740), fill=255)  # a wide part below does not take it away
    cutout = Cutout((750, 1000), (18, 0, 964, 750), (448, 576))
    [full] = at_full_size(photo, [edit], [cutout], mask)
    pasted, inside = np.asarray(full)[: box[3] + 1, :, 0] / 255, np.asarray(mask)[: box[3] + 1] > 0
    assert (pasted[~inside] == 0).all()
    assert pasted.max() > 0.95 and (pasted[inside] > 0.7).mean() > full_share and pasted[inside].mean() > 0.3


def test_a_mask_of_the_edited_pictures_aspect_lies_where_it_was_drawn():
    photo, edit = Image.new("RGB", (1200, 900)), Image.new("RGB", (576, 448), "white")
    cutout = Cutout((900, 1200), (21, 0, 1157, 900), (448, 576))
    mask = Image.new("L", (576, 448))
    mask.paste(255, (0, 0, 60, 60))
    [full] = at_full_size(photo, [edit], [cutout], mask)
    rows, columns = np.nonzero(np.asarray(full)[:, :, 0])
    assert columns.min() == 21 and abs(columns.max() - (21 + 60 * 1157 / 576)) < 4
    assert rows.min() == 0 and abs(rows.max() - 60 * 900 / 448) < 4
    for other in (Image.new("L", (100, 900)), torch.zeros(1, 1, 100, 900)):
        with pytest.raises(ValueError, match="expected a mask of the same aspect"):
            at_full_size(photo, [edit], [cutout], other)


def test_several_edits_of_one_photograph_and_files(pipeline: TurboEditPipeline, tmp_path: Path):
    photo = photograph((320, 200)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    inversion = pipeline.invert(tmp_path / "photo.png", SOURCE)
    output = pipeline.edit(inversion, TARGET, [0.5, 1.0], mask=drawn((320, 200)))
    pictures = output.at_full_size(tmp_path / "photo.png", drawn((320, 200)))
    assert [picture.size for picture in pictures] == [(320, 200)] * 2


def test_what_does_not_go_together_is_told(pipeline: TurboEditPipeline):
    photo = photograph((320, 200))
    output = pipeline(photo, SOURCE, TARGET)
    with pytest.raises(
        ValueError, match="the photograph has 100 x 100 pixels, and the one that was inverted had 320 x 200"
    ):
        output.at_full_size(photograph((100, 100)))
    with pytest.raises(ValueError, match="2 photographs for 1 edited pictures"):
        output.at_full_size([photo, photo])
    with pytest.raises(ValueError, match="edit with output_type 'pil'"):
        pipeline(photo, SOURCE, TARGET, output_type="pt").at_full_size(photo)
