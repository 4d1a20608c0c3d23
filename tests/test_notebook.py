"""The notebook runs as somebody would run it, and is stored without what it printed."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.processes import ROOT, environment, run
from tests.tiny_editing import tiny_pipeline

NOTEBOOK = ROOT / "scripts" / "notebooks" / "miniature.ipynb"
COMMANDS = ("data.scenes", "data.caption", "data.encode", "train.turboedit", "train.export", "eval.edit")


@pytest.fixture
def notebook() -> NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def with_parameters(notebook: NotebookNode, **values: object) -> None:
    """Puts other values into the cell of the parameters, all of which are named there."""
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert all(f"\n{name} = " in f"\n{cell.source}" for name in values)
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())


def executed(notebook: NotebookNode) -> list[NotebookNode]:
    """The outputs of all of its cells, in the folder in which it lies and on one core."""
    client = NotebookClient(
        notebook, timeout=280, startup_timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute(env=environment())
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_it_is_stored_without_outputs(notebook: NotebookNode):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_its_cells_edit_with_an_export(
    notebook: NotebookNode, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All cells but those that start commands, in this process."""
    tiny_pipeline(tiny_backbone).save_pretrained(tmp_path / "export")
    with_parameters(notebook, scenes=1, minutes=0.01, folder=str(tmp_path))
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict[str, Any] = {"export": str(tmp_path / "export")}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "step(" not in cell.source:
            exec(cell.source, names)
    assert names["edited"].mask.shape == (1, 1, 16, 16) and names["picture"].size == (64, 64)


def test_its_commands_know_their_options(notebook: NotebookNode):
    """Those that stand in the cells of their commands."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "step(" in cell.source]
    modules = [re.findall(r'step\("([\w.]+)"', cell) for cell in cells]
    assert [*itertools.chain(*modules)] == [*COMMANDS]
    for cell, started in zip(cells, modules, strict=True):
        known = "".join(run("-m", module, "--help").stdout for module in started).replace("-", "_")
        typed = {option.replace("-", "_") for option in re.findall(r'"--([\w.-]+)', cell)}
        assert typed and [option for option in typed if f"__{option}" not in known] == []


@pytest.mark.long
def test_it_runs_from_scenes_to_an_edit(notebook: NotebookNode, tmp_path: Path):
    with_parameters(notebook, scenes=32, minutes=0.02, folder=str(tmp_path / "made"))
    outputs = executed(notebook)
    said = "".join(output.get("text", "") for output in outputs)
    for command in COMMANDS:
        assert f"$ python -m {command}" in said
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5
    assert (tmp_path / "made" / "export" / "model_index.json").is_file()
    assert (tmp_path / "made" / "edits" / "picture_edited_1.png").is_file()
