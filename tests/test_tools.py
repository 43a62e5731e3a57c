"""Each tool explains itself: it imports, and --help ends with exit code 0. Those without a test file of their own run."""
import csv
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_pairs, write_roadscene

import metrics
from dataset import match_pairs
from tools import pixels

ROOT = Path(__file__).resolve().parent.parent
FILES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tools").glob("*.py"))}
TOOLS = [path.stem for path, text in FILES.items() if "\ndef main(" in text]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_explains_itself(tool, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tools.{tool}").main(["--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in TOOLS], ids=lambda path: path.stem)
def test_a_module_beside_the_tools_names_its_command(path):
    with pytest.raises(SystemExit, match=rf"{path.name} is a module; the commands? (is|are) .*\.py"):
        runpy.run_path(str(path), run_name="__main__")


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Two pairs of 48 x 56, and two losses."""
    write_pairs(tmp_path, "ab", (48, 56))
    monkeypatch.setattr(pixels, "named_pairs", lambda *_: match_pairs(tmp_path / "ir", tmp_path / "vis"))
    monkeypatch.setattr(pixels, "LOSSES", dict(list(pixels.LOSSES.items())[:2]))
    return tmp_path


@pytest.mark.parametrize("options, message", [
    (["--side", "49"], "--side 49: a has only 56x48 pixels; give a smaller side"),
    (["--out", "."], "--out .: is a folder")])
def test_pixels_says_in_one_line_what_is_wrong(few, monkeypatch, capsys, options, message):
    monkeypatch.chdir(few)
    assert pixels.main(options) == 1
    assert capsys.readouterr().err == f"pixels.py: {message}\n"
    assert not Path("runs").exists()


@pytest.mark.parametrize("error, code, message", [
    (KeyboardInterrupt(), 130, "pixels.py: interrupted"), (OSError(28, "No space left on device"), 1, "No space left")])
def test_pixels_keeps_the_rows_before_an_end(few, monkeypatch, capsys, error, code, message):
    whole = pixels.optimum

    def fail(loss, *rest):
        if loss is [*pixels.LOSSES.values()][1]:
            raise error
        return whole(loss, *rest)
    monkeypatch.setattr(pixels, "optimum", fail)
    monkeypatch.chdir(few)
    options = ["--count", "1", "--side", "48", "--steps", "2"]
    assert pixels.main(options) == code
    out, err = capsys.readouterr()
    with Path("runs/pixels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["average of the sources", "paper"] and message in err
    assert [line.partition("  ")[0] for line in out.splitlines()[2:]] == ["average of the sources", "paper"]
    assert [rows[0][name] for name in ("count", "side", "steps")] == ["1", "48", "2"]
    assert rows[0]["command"] == "python tools/pixels.py " + " ".join(options) and rows[0]["commit"]


@pytest.mark.parametrize("option", ["--count", "--side", "--steps"])
def test_pixels_needs_positive_numbers(option, capsys):
    with pytest.raises(SystemExit):
        pixels.main([option, "0"])
    assert f"{option}: '0' is no whole number" in capsys.readouterr().err


def test_the_pixels_that_a_loss_prefers(tmp_path):
    """One crop of an image of 48 x 48 is the whole image."""
    data, out = write_roadscene(tmp_path), tmp_path / "pixels.csv"
    pixels.main(["--data", str(data), "--count", "1", "--side", "48", "--steps", "2", "--out", str(out)])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["average of the sources", *pixels.LOSSES]
    ir, vis = pixels.central_crops(str(data), 1, 48)
    images = [np.uint8(x[0, 0].mul(255).round()) for x in ((ir + vis) / 2, ir, vis)]
    assert [float(rows[0][name]) for name in pixels.METRICS] == pytest.approx(
        [*metrics.evaluate(*images, names=pixels.METRICS).values()], abs=1e-4)
    assert len({row["EN"] for row in rows}) > 5
    loss = pixels.LOSSES["paper"]
    before, after = (loss(x, None, ir, vis)[0] for x in ((ir + vis) / 2, pixels.optimum(loss, ir, vis, 5)))
    assert after < before and torch.isfinite(after)


@pytest.mark.campaign       # several seconds
def test_the_samples_are_drawn_as_stored(tmp_path):
    script = ROOT / "tools" / "samples" / "draw.py"
    subprocess.run([sys.executable, str(script), "--only", "low_light", "--out", str(tmp_path)], check=True)
    for side in ("ir", "vis"):
        drawn, stored = (cv2.imread(str(root / side / "low_light.png"), cv2.IMREAD_UNCHANGED).astype(int)
                         for root in (tmp_path, ROOT / "samples"))
        assert np.abs(drawn - stored).max() <= 2        # gray levels
