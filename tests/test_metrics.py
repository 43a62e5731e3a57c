"""Scoring many images: means, ranks, tables, and the command."""
import csv
import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from metric_images import quietly, trio

import metrics
from dataset import read_gray
from metrics import METRICS, evaluate

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------------------------
# Means, ranks, tables


def test_running_equals_numpy():
    values = [3.0, math.nan, 4.5, -1.0, 8.0]
    running = metrics.Running()
    for value in values:
        running.add(value)
    kept = [v for v in values if not math.isnan(v)]
    assert (running.count, running.mean, running.std) == pytest.approx((4, np.mean(kept), np.std(kept, ddof=1)))
    running.add(math.inf)
    running.add(1.0)
    assert running.mean == math.inf


@pytest.mark.parametrize(("table", "published"), [("1", [2, 1, 3, 4, 5]), ("2", [2, 3, 1, 5, 4])])
def test_rank_of_ranks_reproduces_the_paper(table, published):
    rows = metrics.published_rows(table)[1]
    assert metrics.rank_of_ranks([row.means for row in rows]) == published


def test_ranks():
    assert metrics.ranks([0.5, 0.9, 0.9, math.nan]) == [3, 1, 1, 4]
    assert metrics.ranks([0.5, 0.9, 0.1], lower_is_better=True) == [2, 3, 1]


def test_published_rows_need_the_data_set():
    assert metrics.published_rows("4", "msrs")[0] == "MSRS"
    assert metrics.published_rows("1", "roadscene")[0] == "FLIR-val"
    assert metrics.published_rows("6", "mri-pet")[0] == "Harvard"
    with pytest.raises(ValueError, match="4:TNO, 4:MSRS, 4:M3FD"):
        metrics.published_rows("4")
    with pytest.raises(ValueError, match="no table 9"):
        metrics.published_rows("9")


ROWS = [metrics.Row("a_b", {"CC": 0.5, "MSE": 0.02}, 3, {"CC": 0.125, "MSE": 0.001}),
        metrics.Row("c", {"CC": 0.75, "MSE": 0.03}, 3, {"CC": 0.25, "MSE": 0.001}),
        metrics.Row("d (paper)", {"CC": 0.7, "MSE": 0.01}, printed={"CC": "0.70", "MSE": "0.01"})]


def test_table_styles():
    plain = metrics.table(ROWS, ["CC", "MSE"]).splitlines()
    assert plain[0].split() == ["method", "CC", "↑", "MSE", "↓", "RoR", "↓"]
    assert [line.split()[-3:] for line in plain[2:]] == [["0.500", "0.0200", "3"], ["0.750", "0.0300", "2"],
                                                         ["0.70", "0.01", "1"]]
    assert len({len(line) for line in plain}) == 1
    markdown = metrics.table(ROWS, ["CC", "MSE"], "markdown")
    assert "**0.750**" in markdown and "<u>0.70</u>" in markdown and "**0.01**" in markdown
    latex = metrics.table(ROWS, ["CC", "MSE"], "latex", std=True)
    assert r"a\_b" in latex and r"\textbf{0.750 $\pm$ 0.250}" in latex and latex.endswith(r"\end{tabular}")
    terminal = metrics.table(ROWS, ["CC", "MSE"], "terminal")
    assert "\033[1m0.750\033[0m" in terminal and "\033[4m0.0200\033[0m" in terminal


# ---------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def tree(tmp_path):
    """Three pairs in one IR{n}/VIS{n} folder, two methods' results, one of them in colour and short of an image."""
    for folder in ("pairs", "ours", "other"):
        (tmp_path / folder).mkdir()
    for n in (1, 2, 10):
        f, ir, vis = trio(n, height=64, width=72)
        cv2.imwrite(str(tmp_path / "pairs" / f"IR{n}.png"), ir)
        cv2.imwrite(str(tmp_path / "pairs" / f"VIS{n}.png"), vis)
        cv2.imwrite(str(tmp_path / "ours" / f"{n}.png"), f)
        if n != 10:
            cv2.imwrite(str(tmp_path / "other" / f"{n:02d}.png"), np.dstack([f, ir, vis]))
    return tmp_path


def command(tree, *options):
    folder = str(tree / "pairs")
    return metrics.main(["--ir", folder, "--vis", folder, *map(str, options)])


def test_command_writes_every_image_and_protocol(tree, capsys):
    code = command(tree, "--fused", f"A={tree / 'ours'}", f"B={tree / 'other'}", "--baselines", "--protocol", "both",
                   "--csv", tree / "out.csv", "--workers", 1)
    output = capsys.readouterr()
    with open(tree / "out.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["method", "image", "protocol", *metrics.NAMES]
    assert len(lines) == 2 * (3 + 2 + 3 + 3)
    scored = {(line["method"], line["image"]) for line in lines}
    assert scored >= {("A", "10"), ("B", "2"), ("average", "1"), ("max", "10")}
    line = next(x for x in lines if (x["method"], x["image"], x["protocol"]) == ("B", "2", "toolbox"))
    images = [read_gray(tree / path) for path in ("other/02.png", "pairs/IR2.png", "pairs/VIS2.png")]
    wanted = quietly(*images, "toolbox")
    assert float(line["SD"]) == wanted["SD"] and float(line["Qabf"]) == wanted["Qabf"]
    assert output.out.count("protocol") == 2 and "RoR" in output.out and "images" in output.out
    assert code == 1 and f"{tree / 'other'}: no fused image for 10" in output.err
    assert "MS-SSIM is undefined" in output.err


def test_command_paper_table(tree, capsys):
    assert command(tree, "--fused", tree / "ours", "--paper", "4:TNO", "--markdown", "--workers", 1) == 0
    output = capsys.readouterr().out
    assert "average gradient" in output and "| RPFNet (paper)" in output and "\n| ours" in output


def test_damaged_and_foreign_files_are_listed_and_the_rest_is_scored(tree, capsys):
    (tree / "ours" / "2.png").write_bytes(b"not an image")
    cv2.imwrite(str(tree / "ours" / "1.png"), np.zeros((5, 5), np.uint8))
    cv2.imwrite(str(tree / "ours" / "sheet.png"), np.zeros((5, 5), np.uint8))
    code = command(tree, "--fused", f"A={tree / 'ours'}", "--metrics", "EN", "cc", "--csv", tree / "out.csv",
                   "--workers", 1)
    error = capsys.readouterr().err
    assert code == 1
    assert "2.png" in error and "fused is 5x5 and ir 72x64" in error and "sheet.png: no pair of this name" in error
    assert len((tree / "out.csv").read_text().splitlines()) == 2


def test_leading_zeros_match_only_where_clear(tree):
    from dataset import find_pairs
    pairs = find_pairs(tree / "pairs", tree / "pairs")[0]
    matched, problems = metrics.match_fused(pairs, tree / "other")
    assert {name: path.name for name, path in matched.items()} == {"1": "01.png", "2": "02.png"} and len(problems) == 1
    (tree / "other" / "002.png").write_bytes((tree / "other" / "02.png").read_bytes())
    assert set(metrics.match_fused(pairs, tree / "other")[0]) == {"1"}


@pytest.mark.parametrize(("options", "message"), [
    ([], "nothing to score"), (["--fused", "nowhere"], "nowhere: no such folder"),
    (["--baselines", "--metrics", "LPIPS"], "--metrics LPIPS: protocol definition has EN MI"),
    (["--baselines", "--paper", "4:TNO", "--protocol", "definition"], "its rows hold the columns of --protocol paper"),
    (["--baselines", "--data", "x"], "--dataset NAME and --data FOLDER go together"),
    (["--fused", "max=x"], "the name max is taken")])
def test_command_errors(tree, capsys, options, message):
    assert command(tree, *options) == 1
    assert message in capsys.readouterr().err


def test_interrupt_keeps_what_is_done(tree, capsys, monkeypatch):
    score_all = metrics.score_all

    def interrupted(*args):
        results = score_all(*args)
        yield next(results)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics, "score_all", interrupted)
    code = command(tree, "--fused", f"A={tree / 'ours'}", "--csv", tree / "out.csv", "--workers", 1)
    output = capsys.readouterr()
    assert code == 130 and "means over 2 images" in output.out and "interrupted" in output.err
    assert len((tree / "out.csv").read_text().splitlines()) == 3


def test_processes_give_the_same_and_draw_few_tasks_ahead():
    drawn = 0

    def tasks():
        nonlocal drawn
        for n in range(12):
            drawn += 1
            f, ir, vis = trio(n, height=64, width=72)
            yield metrics.Task(str(n), ir, vis, {"A": f, "average": metrics.baseline("average", ir, vis)})

    ahead, results = 0, []
    for scored in metrics.score_all(tasks(), ["definition", "toolbox"], None, workers=2):
        results.append(scored)
        ahead = max(ahead, drawn - len(results))
    assert ahead <= 4
    assert [scored.name for scored in results] == [str(n) for n in range(12)]
    alone = list(metrics.score_all(tasks(), ["definition", "toolbox"], None, workers=1))
    for one, many in zip(alone, results):
        for key, values in one.values.items():
            assert many.values[key] == pytest.approx(values, rel=1e-12, nan_ok=True)


def test_protocols_share_what_they_have_in_common(monkeypatch):
    calls = []
    entry = dataclasses.replace(METRICS["FMI"], compute=lambda trio: calls.append("FMI") or 0.5)
    monkeypatch.setitem(METRICS, "FMI", entry)
    f, ir, vis = trio(0)
    scored = metrics.score(metrics.Task("x", ir, vis, {"A": f}), ["definition", "toolbox"], None)
    assert calls == ["FMI"]
    assert scored.values["A", "toolbox"] == pytest.approx({**evaluate(f, ir, vis, "toolbox"), "FMI": 0.5})


def test_runs_as_a_command(tree):
    pairs = tree / "pairs"
    done = subprocess.run([sys.executable, ROOT / "metrics.py", "--fused", tree / "ours", "--ir", pairs, "--vis", pairs,
                           "--protocol", "paper", "--std", "--workers", "2"],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "means over 3 images" in done.stdout and "±" in done.stdout and "\033" not in done.stdout


def test_command_prints_the_columns_of_cddfuse(tree, capsys):
    options = ["--fused", f"A={tree / 'ours'}", "--protocol", "cddfuse", "--workers", 1]
    assert command(tree, *options) == 0
    heading = capsys.readouterr().out.splitlines()[1].split()
    assert [word for word in heading if word != "↑"] == ["method", "EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM"]
    assert command(tree, *options, "--metrics", "ssim", "AG", "PSNR", "CC", "MSE") == 0
    heading = capsys.readouterr().out.splitlines()[1].split()
    assert [word for word in heading if word not in "↑↓"] == ["method", "SSIM", "AG", "PSNR", "CC", "MSE"]
    assert command(tree, *options, "--metrics", "FMI") == 1
    assert "protocol cddfuse has EN SD" in capsys.readouterr().err
