"""`scripts.walk_request` names the files that a command runs through."""

from pathlib import Path

import pytest

from scripts.walk_request import walk_request


def test_files_stand_in_the_order_in_which_a_command_comes_to_them(tmp_path: Path):
    files = walk_request(f"data.scenes {tmp_path / 'scenes'} --num=2")
    assert files[0] == "data/scenes.py" and len(files) == len(set(files))
    assert {"data/jobs/command.py", "data/world/render.py", "data/jobs/files.py"} <= set(files)
    assert "models/backbone.py" not in files


@pytest.mark.parametrize("command", ["", "eval.nothing --num 1", "--num 1"])
def test_what_is_no_command_is_refused(command: str):
    with pytest.raises(ValueError, match=r"--command begins with .*expected a module and its options"):
        walk_request(command)
