"""The documents tell what the files beside them hold, and their commands run."""
import argparse
import csv
import importlib
import json
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_roadscene

import metrics
import recipe
from net import RPFNet
from tools import students
from tools.tables import RESULTS, collect_lines, p_value

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EACH_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
NUMBER = r"[-+]?\d+\.\d+"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tables(path: Path) -> list[list[list[str]]]:
    """The tables of a document, each a list of rows of cells."""
    found = re.findall(r"(?:^\|.*\n)+", read(path), re.MULTILINE)
    return [[[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]


def table_rows(path: Path) -> list[list[str]]:
    return [row for table in tables(path) for row in table]


def prose(path: Path) -> str:
    """A document without its blocks of code and its tables."""
    return re.sub(r"```.*?```|^\|.*?$", "", read(path), flags=re.DOTALL | re.MULTILINE)


# --- measured numbers ---


@cache
def records() -> dict[str, list[dict[str, str]]]:
    """The rows of each CSV file in results/."""
    found = {}
    for path in (ROOT / "results").rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.relative_to(ROOT / "results").with_suffix("").as_posix()] = list(csv.DictReader(file))
    return found


def numbers_of(row: dict[str, str]) -> list[float]:
    return [float(cell) for cell in row.values() if re.fullmatch(rf"{NUMBER}|\d+", cell or "")]


def printed(numbers: Iterable[float]) -> set[str]:
    """The numbers as a document may print them, with one to four decimals."""
    return {f"{number:.{digits}f}" for number in numbers for digits in (1, 2, 3, 4)}


@cache
def recorded() -> list[set[str]]:
    """The numbers that belong together: those of a row of a file, and all of results/facts.csv, which has one in a row."""
    facts = [float(number) for row in records()["facts"] for number in re.findall(NUMBER, f"{row['what']} {row['value']}")]
    return [printed(facts), *(printed(numbers_of(row)) for rows in records().values() for row in rows)]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "speed.md"], ids=lambda path: path.name)
def test_the_numbers_of_a_row_are_recorded_together(path):
    """Three decimal fractions in a row of a table, or one with three decimals, stand together in one row of a CSV file.

    Rows of differences and of p-values are computed, see below. docs/speed.md is compared with its files in test_bench.py.
    """
    wrong = []
    for row in table_rows(path):
        cells = {cell for cell in row if re.fullmatch(NUMBER, cell)}
        measured = len(cells) >= 3 or any(re.search(r"\.\d{3}", cell) for cell in cells)
        if measured and not row[1].startswith("difference") and row[0] != "p" and not any(cells <= known for known in recorded()):
            wrong.append(row)
    assert wrong == []


@cache
def means_of_seeds() -> list[set[str]]:
    """"mean ± standard deviation" of each column, for each row that was measured with several seeds."""
    groups = defaultdict(list)
    for row in records()["tables"]:
        groups["tables", *(row[key] for key in ("table", "dataset", "method", "use", "range", "protocol", "steps"))].append(row)
    for row in records()["readings"]:
        groups["readings", row["variant"].partition(", seed ")[0]].append(row)
    for row in records()["detection"]:
        groups["detection", row["dataset"], row["method"], row["split"], row["epochs"]].append(row)
    return [{f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
             for values in zip(*map(numbers_of, rows), strict=True)} for rows in groups.values() if len(rows) > 1]


@EACH_DOCUMENT
def test_means_and_deviations_are_those_of_the_recorded_seeds(path):
    rows = [{cell for cell in row if "±" in cell} for row in table_rows(path)]
    assert [cells for cells in rows if not any(cells <= known for known in means_of_seeds())] == []
    assert any(rows) == (path.name in ("results.md", "detection.md"))


@EACH_DOCUMENT
def test_numbers_in_sentences_are_recorded(path):
    """Those of three and more decimals, also as means of seeds and without their sign.

    Not compared: code, addresses, what is defined and not measured, and differences ("0.009 worse").
    """
    text = re.sub(r"`[^`]*`|\(https?:[^)]*\)|quantile \S+ to \S+|1\.164 \(Y - 16\)|\S+ (better|worse)", "", prose(path))
    means = {cell.split()[0] for cells in means_of_seeds() for cell in cells}
    known = {number.lstrip("-") for number in means.union(*recorded())}
    assert {*re.findall(r"(?<![\d.,])\d+\.\d{3,}(?![\d.])", text)} <= known


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_differences_are_those_to_the_printed_row(name):
    printed, above, count = [], [], 0
    for row in table_rows(ROOT / name):
        cells = row[2:]
        if row[1:2] == ["printed"]:
            printed = cells
        elif row[1:2] == ["difference"]:
            expected = [float(mine) - float(theirs) for mine, theirs in zip(above, printed, strict=True)]
            assert [*map(float, cells)] == pytest.approx(expected, abs=0.0011), row
            count += 1
        above = cells
    assert count >= 6


def test_p_values_are_printed_by_the_tool_that_computes_them():
    lines = [line for table in ("1", "3") for line in collect_lines(table, "FLIR-val", "paper", RESULTS)]
    expected = {line.method: [p_value(value) for value in line.p_values.values()]
                for line in lines if line.kind == "eval, plain" and line.p_values}
    rows = table_rows(ROOT / "docs" / "results.md")
    assert {above[0]: row[1:] for above, row in zip(rows, rows[1:]) if row[0] == "p"} == expected


def test_the_differences_of_the_small_networks_are_printed_by_their_tool(capsys):
    assert students.main(["--print"]) == 0
    printed = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    rows = [[cell for cell in row if cell] for row in table_rows(ROOT / "docs" / "results.md")]
    differences = [line for line in printed if line[0].startswith("difference")]
    assert len(differences) == 6 and [line for line in differences if line not in rows] == []


def test_no_table_is_repeated():
    rows = [tuple(row) for path in DOCUMENTS for table in tables(path) for row in table[2:]
            if sum(bool(re.search(r"\d\.\d", cell)) for cell in row) >= 3]
    assert len(rows) == len(set(rows))


def test_the_table_of_recipes_is_that_of_their_files():
    """The rows of docs/training.md, without those of the steps and of the loss, which are words."""
    (table,) = (table for table in tables(ROOT / "docs" / "training.md") if table[0][1:2] == ["`paper`"])
    names = [cell.strip("`") for cell in table[0][1:]]
    stored = [json.loads(read(ROOT / "recipes" / f"{name}.json"))["recipe"] for name in names]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "recipes").glob("*.json"))

    def word(value):
        return f"{value:,}" if value else "no"

    expected = {
        "crops a step": [f"{r['batch']} of {r['crop']}" for r in stored],
        "crops, new in each epoch": [f"{r['crops']:,}, {'no' if r['fixed_crops'] else 'yes'}" for r in stored],
        "flips; `--dim`": [f"{'yes' if r['flips'] else 'no'}; {r['dim']}" for r in stored],
        "learning rate": [f"{r['lr']}, {r['schedule']}" for r in stored],
        "clipping; `--fixed-statistics`": [f"{word(r['clip'])}; {word(r['fixed_statistics'])}" for r in stored],
        "channels, iterations": [f"{r['channels']}, {r['stages']}" for r in stored],
        "bfloat16 (`--amp`)": ["yes" if r["amp"] else "no" for r in stored],
    }
    rows = {row[0]: row[1:] for row in table[2:]}
    assert {name: rows[name] for name in expected} == expected
    assert rows["steps"] == [f"{r['steps']:,}" if r["steps"] else f"{r['epochs']} epochs of {-(-r['crops'] // r['batch'])}"
                             for r in stored]


# --- links, options and commands ---


def test_the_table_of_metrics_is_that_of_their_docstrings():
    rows = [row for row in table_rows(ROOT / "docs" / "metrics.md") if len(row) == 5][2:]
    assert [row[0] for row in rows] == list(metrics.NAMES)
    for name, _, limits, better, source in rows:
        described = " ".join(getattr(metrics, name.replace("-", "_")).__doc__.split())
        assert f"{limits}" in described and f"{better} is better" in described
        assert (better == "lower") == (name in metrics.LOWER_IS_BETTER)
        assert all(word in described for word in source.replace(",", "").split()) and ("Source" in described) == bool(source)


def anchors(path: Path) -> list[str]:
    """The addresses that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", read(path), flags=re.DOTALL), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@EACH_DOCUMENT
def test_links_inside_the_repository_exist(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", read(path)):
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_readme_is_a_page():
    assert len(README.splitlines()) <= 200


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of our commands and tools, by the file's name as a document writes it."""
    scripts = ["train.py", "test.py", "metrics.py", *sorted(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))]
    modules = {script: importlib.import_module(script.removesuffix(".py").replace("/", ".")) for script in scripts}
    modules["train.py"] = recipe        # which holds its options
    return {script: module.build_parser() for script, module in modules.items() if hasattr(module, "build_parser")}


def test_a_wrong_option_is_not_hidden_below_a_long_usage():
    """Each action of detection.py has few options, and a usage of its own."""
    usages = {script: parser.format_usage() for script, parser in parsers().items() if script != "tools/detection.py"}
    assert [script for script, usage in usages.items()
            if not usage.startswith(f"usage: python {script} ") or usage.count("\n") != 1] == []


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All options of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from options_of(choice)


@EACH_DOCUMENT
def test_options_in_sentences_and_tables_exist(path):
    known = {option for parser in parsers().values() for option in options_of(parser)}
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", read(path), flags=re.DOTALL))
    assert {option for span in spans for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span)} <= known


def commands(path: Path) -> list[list[str]]:
    """The words of each command that starts Python, without the variables that are set before it."""
    blocks = re.findall(r"```bash\n(.*?)```", read(path), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part) for line in lines for part in line.split("#")[0].split("&&")]
    return [[word for word in command if "=" not in word or word.startswith("--") or command.index(word)]
            for command in words if {"python", "torchrun"} & {*command}]


@EACH_DOCUMENT
def test_documented_options_exist(path):
    """Every command of a document that is one of ours is understood by its parser, and no other command follows in its line."""
    import dataset

    known = parsers()
    for command in commands(path):
        assert command[0] in ("python", "torchrun") and not {"python", "torchrun"} & {*command[1:]}, command
        script, *options = [word for word in command[1:] if not word.startswith("--nproc_per_node")]
        if script in known:
            options = options[:options.index("--")] if "--" in options else options     # tables.py: the rest is for train.py
            known[script].parse_args(options)
        elif script == "dataset.py" and "NAME" not in command:
            assert command[-2] in dataset.DATASETS
        elif script.endswith(".py"):
            assert (ROOT / script).is_file()


def test_the_training_loop_runs(tmp_path, monkeypatch):
    code, whole = re.findall(r"```python\n(.*?)```", read(ROOT / "docs" / "training.md"), re.DOTALL)
    for printed, small in (("RPFNet()", "RPFNet(channels=4, stages=1)"), ("size=128", "size=32"), ("range(10)", "range(2)"),
                           ("length=400", "length=6"), ("batch=8", "batch=2")):
        assert printed in code
        code = code.replace(printed, small)
    write_roadscene(tmp_path / "data" / "RoadScene")
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    image = np.zeros((32, 32), np.uint8)
    fused = RPFNet.from_pretrained("checkpoints/own.pth").fuse(image, image)
    assert fused.shape == (32, 32) and math.isfinite(scope["total"].item()) and "L_grad" not in scope["terms"]
    exec(whole, scope)
    assert math.isfinite(scope["total"].item()) and {"L_total", "L_grad"} <= scope["terms"].keys()


def test_the_notebook_snippet_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    read = cv2.imread       # smaller images are fused faster
    monkeypatch.setattr(cv2, "imread", lambda *args: cv2.resize(read(*args), (160, 120), interpolation=cv2.INTER_AREA))
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(snippet, scope)
    assert scope["fused"].shape == scope["vis"].shape
