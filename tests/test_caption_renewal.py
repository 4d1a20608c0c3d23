"""Folders of data.caption whose tokenizers an earlier version has named by all that its library wrote of them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.inspection.checks import inspect_shards, terminal_report
from data.inspection.config import InspectConfig
from data.inspection.fit import FORMER_TOKENIZERS, OTHER_TOKENIZERS
from data.jobs.errors import ShardError
from data.scenes import write_scenes
from data.shards.shard import MANIFEST, file_digest

STUDENT = "models/miniature/student"
FORMER = "0123456789abcdef"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_scenes(folder, num=8)
    return folder


@pytest.fixture(scope="module")
def captioned(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of four scenes each."""
    return caption(scenes, tmp_path_factory.mktemp("captioned") / "shards")


def caption(source: Path, out: Path, backbone: str = STUDENT, **options: Any) -> Path:
    caption_folder(source, out, CaptionConfig(resolution=64, unit_size=4, backbone=backbone, **options))
    return out


def as_before(folder: Path, copy: Path, units: Sequence[str] = ("unit-000000", "unit-000001", "manifest")) -> Path:
    """A copy with the names of the version before."""
    shutil.copytree(folder, copy)
    for name in units:
        path = copy / f"{name}.json"
        content = json.loads(path.read_text())
        content["config"]["tokenizers"] = f"{FORMER} {FORMER}"
        path.write_text(json.dumps(content))
    return copy


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")}


def test_a_folder_of_before_says_what_to_do_and_the_same_command_renews_it(scenes, captioned, tmp_path):
    former = as_before(captioned, tmp_path / "shards")
    found = inspect_shards(former, InspectConfig(backbone=STUDENT))
    remarks = [finding.kind for finding in found.findings.remarks]
    assert FORMER_TOKENIZERS in remarks and OTHER_TOKENIZERS not in remarks and not found.findings.problems
    assert "run the data.caption that made them once more" in terminal_report(found)
    caption(scenes, former)
    assert contents(former) == contents(captioned)
    again = inspect_shards(former, InspectConfig(backbone=STUDENT)).findings
    assert FORMER_TOKENIZERS not in [finding.kind for finding in again.remarks]


def test_an_unfinished_folder_goes_on(scenes, captioned, tmp_path):
    former = as_before(captioned, tmp_path / "shards")
    for name in (MANIFEST, "unit-000001.json", "unit-000001.tar"):
        (former / name).unlink()
    caption(scenes, former)
    assert contents(former) == contents(captioned)


def test_a_renewal_that_was_killed_goes_on(scenes, captioned, tmp_path):
    """The first unit is the last to be renewed."""
    former = as_before(captioned, tmp_path / "shards", ["unit-000000"])
    caption(scenes, former)
    assert contents(former) == contents(captioned)


def test_a_shard_that_was_lost_is_made_again(scenes, captioned, tmp_path):
    former = as_before(captioned, tmp_path / "shards")
    (former / "unit-000000.tar").unlink()
    caption(scenes, former)
    assert contents(former) == contents(captioned)


def test_a_folder_for_other_tokenizers_is_not_renewed(scenes, captioned, tmp_path, tiny_backbone):
    former = as_before(captioned, tmp_path / "shards")
    before = contents(former)
    with pytest.raises(ShardError, match=r"for other tokenizers than these: its tokens_raw of \S+ are \[.*\], and \["):
        caption(scenes, former, tiny_backbone)
    assert contents(former) == before


def test_other_options_are_refused_as_ever(scenes, captioned, tmp_path):
    former = as_before(captioned, tmp_path / "shards")
    before = contents(former)
    with pytest.raises(ShardError, match="was made with another config"):
        caption(scenes, former, clean=True)
    assert contents(former) == before
