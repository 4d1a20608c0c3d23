"""The notebook runs as somebody would run it, and is stored without what it printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.processes import ROOT, environment

NOTEBOOK = ROOT / "scripts" / "notebooks" / "miniature.ipynb"


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


def test_it_runs_from_scenes_to_an_edit(notebook: NotebookNode, tmp_path: Path):
    with_parameters(notebook, scenes=32, minutes=0.02, folder=str(tmp_path / "made"))
    outputs = executed(notebook)
    said = "".join(output.get("text", "") for output in outputs)
    for command in ("data.scenes", "data.caption", "data.encode", "train.turboedit", "train.export", "eval.edit"):
        assert f"$ python -m {command}" in said
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5
    assert (tmp_path / "made" / "export" / "model_index.json").is_file()
    assert (tmp_path / "made" / "edits" / "picture_edited_1.png").is_file()
