"""The documents tell what the files beside them hold, and their commands run."""
import csv
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def tables(text: str) -> list[list[list[str]]]:
    """Markdown tables, each a list of rows of cells."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]


@cache
def csv_rows() -> list[list[str]]:
    """The rows of all CSV files in results/."""
    rows = []
    for path in (ROOT / "results").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.reader(file)
    return rows


@cache
def recorded_values() -> set[str]:
    """Every number in results/, as written, and rounded to 1 to 3 digits."""
    values = set()
    for path in (ROOT / "results").glob("*.json"):
        for number in re.findall(r"\d+\.\d+", path.read_text()):
            values |= {f"{float(number):.{digits}f}" for digits in (1, 2, 3)}
    for cell in (cell for row in csv_rows() for cell in row):
        values.add(cell)
        if re.fullmatch(r"-?\d+\.\d+", cell):
            values |= {f"{float(cell):.{digits}f}" for digits in (1, 2, 3)}
    return values


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_measured_numbers_are_recorded(path):
    """Cells with three decimals are metrics: each must stand in results/, signed differences apart."""
    known = recorded_values()
    cells = [cell for table in tables(path.read_text()) for row in table for cell in row]
    numbers = [cell for cell in cells if re.fullmatch(r"\d+\.\d{3}", cell)]
    assert [number for number in numbers if number not in known] == []


@cache
def recorded_rows() -> list[set[str]]:
    """Each row of the CSV files in results/: its numbers, rounded to three digits."""
    return [{f"{float(cell):.3f}" for cell in row if re.fullmatch(r"-?\d+\.\d+", cell)} for row in csv_rows()]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "speed.md"], ids=lambda path: path.name)
def test_the_numbers_of_a_row_are_recorded_together(path):
    """The three-decimal cells of a row stand together in one row of a CSV file.

    Rows of differences are computed from two rows. docs/speed.md is compared with its files in test_bench.py.
    """
    known, wrong = recorded_rows(), []
    for row in (row for table in tables(path.read_text()) for row in table):
        numbers = {cell for cell in row if re.fullmatch(r"-?\d+\.\d{3}", cell)}
        if not any("difference" in cell for cell in row) and not any(numbers <= values for values in known):
            wrong.append(row)
    assert wrong == []


def test_no_table_is_repeated():
    rows = [tuple(row) for path in DOCUMENTS for table in tables(path.read_text()) for row in table[2:]
            if sum(bool(re.search(r"\d\.\d", cell)) for cell in row) >= 3]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_exist(path):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_readme_is_a_page():
    assert len(README.splitlines()) <= 200


def commands(path: Path) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part) for line in lines for part in line.split("#")[0].split("&&")]
    return [[word for word in command if "=" not in word or word.startswith("--") or command.index(word)]
            for command in words if "python" in command]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documented_options_exist(path, monkeypatch, capsys):
    """Every command of a document that is one of ours is understood by its parser."""
    import dataset
    import metrics
    import test as fuse_command
    import train

    parsers = {"train.py": train.build_parser, "test.py": fuse_command.build_parser, "metrics.py": metrics.build_parser}
    for command in commands(path):
        script, *options = command[command.index("python") + 1:]
        if script == "tools/figures.py":
            pytest.importorskip("matplotlib")
        if script.startswith("tools/"):
            parsers[script] = importlib.import_module(f"tools.{Path(script).stem}").build_parser
        if script in parsers:
            options = options[:options.index("--")] if "--" in options else options     # tables.py: the rest is for train.py
            parsers[script]().parse_args(options)
        elif script == "dataset.py" and "NAME" not in command:
            assert command[-2] in dataset.DATASETS
        elif script.endswith(".py"):
            assert (ROOT / script).is_file()


def test_the_notebook_snippet_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(snippet, scope)
    assert scope["fused"].shape == scope["vis"].shape
