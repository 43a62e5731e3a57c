"""The modules import one another in one direction, as CONTRIBUTING.md draws it.

`python tests/test_imports.py` draws the picture again.
"""
import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("measures", "support", "tools", "video")
DRAWING = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)


def imported(file: Path) -> set[str]:
    """First parts of the modules that a file imports when it is loaded."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def import_graph() -> dict[str, set[str]]:
    """{module or package: what it imports}, among those of this repository."""
    files = {path.stem: [path] for path in ROOT.glob("*.py")}
    files |= {package: sorted((ROOT / package).rglob("*.py")) for package in PACKAGES}
    return {name: set.union(*map(imported, paths)) & files.keys() - {name} for name, paths in files.items()}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the edges that follow from others. Raises graphlib.CycleError for a circle."""
    below: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        below[name] = graph[name].union(*(below[other] for other in graph[name]))
    return {name: others - set().union(*(below[other] for other in others)) for name, others in graph.items()}


def drawing() -> str:
    edges = [f"    {name} --> {other}" for name, others in sorted(reduced(import_graph()).items()) for other in sorted(others)]
    return "\n".join(["graph TD", *edges, ""])


def test_there_is_no_circle_and_the_picture_is_that_of_the_imports():
    (drawn,) = DRAWING.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert drawn == drawing()


def test_only_commands_and_tools_are_on_top():
    graph = import_graph()
    used = set().union(*graph.values())
    assert graph.keys() - used <= {"test", "train", "tools", "hubconf"}
    assert not graph["support"]


def test_images_data_sets_and_metrics_load_no_pytorch():
    """Neither by what they import themselves nor by what that imports."""
    code = "import sys, images, dataset, metrics, measures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_circle_and_an_edge_that_follows_from_others_are_noticed():
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    with pytest.raises(CycleError):
        reduced({"a": {"b"}, "b": {"a"}})


if __name__ == "__main__":
    page = ROOT / "CONTRIBUTING.md"
    page.write_text(DRAWING.sub(lambda _: f"```mermaid\n{drawing()}```", page.read_text(encoding="utf-8")), encoding="utf-8")
