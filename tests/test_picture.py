"""The README's picture: which edits it shows, and that it is put together of the right pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.world.description import has_heldout_pair
from data.world.edits import EDIT_KINDS
from data.world.render import SIDE, render
from data.world.splits import sample_scene
from eval.harness.exports import load_encoder
from scripts.picture import LINE, MARGIN, ZOOM, draw_picture, edits_of
from tests.tiny_editing import tiny_pipeline


def test_edits_are_three_of_the_scene_of_different_kinds_in_turn():
    first_kinds = []
    for number in range(6):
        scene = sample_scene("test", 0, number)
        edits = edits_of(scene, number, 0)
        assert edits == edits_of(scene, number, 0)
        assert len({edit.kind for edit in edits}) == 3
        assert all(edit.source == scene != edit.target and not has_heldout_pair(edit.target) for edit in edits)
        first_kinds.append(EDIT_KINDS.index(edits[0].kind))
    assert [kind // 3 for kind in first_kinds] == [0, 1, 2, 0, 1, 2]


def test_picture_holds_the_source_its_reconstruction_and_edits_by_the_target_captions(
    tiny_backbone: str, tmp_path: Path
):
    tiny_pipeline(tiny_backbone).save_pretrained(tmp_path / "export")
    out = draw_picture(tmp_path / "export", tmp_path / "new" / "picture.png", rows=1)

    pipeline, scene = load_encoder(tmp_path / "export"), sample_scene("test", 0, 0)
    edits = edits_of(scene, 0, 0)
    source = Image.fromarray(render(scene))
    inversion = pipeline.invert(source, edits[0].captions()[0])
    targets = [pipeline.edit(inversion, edit.captions()[1]).images[0] for edit in edits]
    expected = [source, pipeline.decode(inversion.reconstructions[-1])[0], *targets]

    side = ZOOM * SIDE
    with Image.open(out) as sheet:
        assert sheet.width == MARGIN + 5 * (side + MARGIN)
        top = sheet.height - MARGIN - side
        assert top >= MARGIN + LINE  # room for titles
        for number, picture in enumerate(expected):
            left = MARGIN + number * (side + MARGIN)
            shown = np.asarray(sheet.crop((left, top, left + side, top + side)))
            assert np.array_equal(shown, np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)))
        assert np.asarray(sheet.crop((0, 0, sheet.width, top))).min() < 100  # titles stand there


def test_folder_that_is_no_export_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match="not an exported encoder"):
        draw_picture(tmp_path, tmp_path / "picture.png")
