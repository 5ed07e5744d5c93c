"""Every notebook runs with few steps, and holds its outputs."""

from pathlib import Path

import pytest
from tests.docs.test_code_blocks import shrink

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path) -> None:
    """From its first cell to its last, in a fresh kernel."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = shrink(cell.source)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_its_outputs_and_is_small(file: Path) -> None:
    """So that it can be read without being run."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells)
    assert file.stat().st_size < 200_000
