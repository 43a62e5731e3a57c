"""notebooks/quickstart.ipynb runs from top to bottom, and its stored scores are those of the code."""
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook's test needs nbclient: requirements-dev.txt")
nbclient = pytest.importorskip("nbclient", reason="the notebook's test needs nbclient: requirements-dev.txt")
pytest.importorskip("ipykernel", reason="the notebook's test needs ipykernel: requirements-dev.txt")
pytest.importorskip("matplotlib", reason="the notebook needs matplotlib: requirements-figures.txt")

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


def printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)


def scores(notebook):
    """The numbers of the lines of the two images, EN to VIF."""
    lines = re.findall(r"^(?:fused|average) .*VIF.*$", printed(notebook), re.MULTILINE)
    return [float(number) for line in lines for number in re.findall(r"\d+\.\d+", line)]


def test_the_text_names_the_columns_in_which_the_average_is_ahead():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    fused, average = scores(notebook)[:6], scores(notebook)[6:]
    ahead = [name for name, ours, theirs in zip(("EN", "SF", "SD", "CC", "SCD", "VIF"), fused, average) if theirs > ours]
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert f"here in {' and '.join(ahead)}." in text


def test_the_notebook_runs_and_its_stored_outputs_are_small(monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = scores(notebook)
    stored = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(stored) >= 5 and NOTEBOOK.stat().st_size < 400_000
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**27))        # as support.runtime.keep_freed_memory
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    assert "exit code 0" in printed(notebook)
    assert len(before) == 12 and scores(notebook) == pytest.approx(before, abs=0.02)
