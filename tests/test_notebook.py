"""notebooks/quickstart.ipynb runs from top to bottom."""
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook's test needs nbclient: requirements-dev.txt")
nbclient = pytest.importorskip("nbclient", reason="the notebook's test needs nbclient: requirements-dev.txt")
pytest.importorskip("ipykernel", reason="the notebook's test needs ipykernel: requirements-dev.txt")
pytest.importorskip("matplotlib", reason="the notebook needs matplotlib: requirements-figures.txt")

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


def test_the_notebook_runs_and_its_stored_outputs_are_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(stored) >= 5 and NOTEBOOK.stat().st_size < 400_000
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    text = "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "exit code 0" in text and "average" in text
