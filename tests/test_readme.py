"""README's numbers are those that are recorded in the files beside it."""
import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("EN", "SF", "SD", "CC", "SCD", "VIF")


def rows_between(start, end):
    """Rows of the tables between two lines of README, each a list of cells."""
    text = (ROOT / "README.md").read_text()
    part = text[text.index(f"\n{start}"):]
    lines = part[:part.index(f"\n{end}")].splitlines()
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if re.search(r"\d\.\d", row[-1])]


def recorded(name):
    with (ROOT / "results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def same(cells, values):
    """Whether each cell is the value, rounded to the cell's digits; an empty cell is an empty value."""
    def rounded(cell, value):
        return abs(float(cell) - float(value)) <= 0.5001 * 10.0 ** -len(cell.partition(".")[2])
    return all(cell == value == "" or cell and value and rounded(cell, value) for cell, value in zip(cells, values, strict=True))


@pytest.mark.parametrize(("file", "start", "end", "least"), [
    ("study.csv", "### Study", "`python results/pixels.py", 10), ("pixels.csv", "| L_s, pixels optimised", "What a crop", 5)])
def test_study_tables_repeat_recorded_rows(file, start, end, least):
    rows = rows_between(start, end)
    known = [[row[name] for name in COLUMNS] for row in recorded(file)]
    unknown = [row for row in rows if not any(same(row[-6:], values) for values in known)]
    assert len(rows) >= least and not unknown


def test_results_of_the_shipped_weights_are_those_beside_them():
    measured = json.loads((ROOT / "checkpoints" / "rpfnet.json").read_text())["measured"]
    printed = [row[-6:] for row in rows_between("**float protocol**", "**paper protocol**") if row[1] == "ours, plain"]
    kept = [list(map(str, scores.values())) for scores in measured.values() if isinstance(scores, dict)]
    assert len(printed) == len(kept) == 3
    assert all(same(cells, values) for cells, values in zip(printed, kept))


@pytest.mark.parametrize(("table", "label"), [("1", "paper, Table 1"), ("4", "paper, Table 4")])
def test_the_papers_rows_are_the_papers(table, label):
    printed, = (row[-6:] for row in rows_between("**paper protocol**", "Bold:") if row[1] == label)
    assert any(same(printed, list(row.values())[-6:]) for row in recorded("paper_tables.csv") if table in row.values())
