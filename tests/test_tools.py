"""Each tool explains itself: it imports, and --help ends with exit code 0. Also tools/pixels.py on small pairs."""
import csv
import importlib
from pathlib import Path

import pytest
from conftest import write_pairs

from dataset import match_pairs
from tools import pixels

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py")
               if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_explains_itself(tool, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tools.{tool}").main(["--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Two pairs of 48 x 56, and two losses."""
    write_pairs(tmp_path, "ab", (48, 56))
    monkeypatch.setattr(pixels, "named_pairs", lambda *_: match_pairs(tmp_path / "ir", tmp_path / "vis"))
    monkeypatch.setattr(pixels, "LOSSES", dict(list(pixels.LOSSES.items())[:2]))
    return tmp_path


def test_pixels_writes_a_row_for_each_loss(few):
    assert pixels.main(["--count", "5", "--side", "44", "--steps", "1", "--out", str(few / "out.csv")]) == 0
    with (few / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["average of the sources", *pixels.LOSSES]
    assert all(float(row["VIF"]) > 0 and float(row["hot"]) > 0 for row in rows)


@pytest.mark.parametrize("options, message", [
    (["--side", "49"], "--side 49: a has only 56x48 pixels; give a smaller side"),
    (["--out", "absent/a.csv"], "--out absent/a.csv: no such folder")])
def test_pixels_says_in_one_line_what_is_wrong(few, capsys, options, message):
    assert pixels.main(options) == 1
    assert capsys.readouterr().err == f"pixels.py: {message}\n"


@pytest.mark.parametrize("option", ["--count", "--side", "--steps"])
def test_pixels_needs_positive_numbers(option, capsys):
    with pytest.raises(SystemExit):
        pixels.main([option, "0"])
    assert f"{option}: '0' is no whole number" in capsys.readouterr().err
