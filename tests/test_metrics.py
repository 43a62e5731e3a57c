"""Scoring many images: means, ranks, tables, and the command."""
import csv
import dataclasses
import errno
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from metric_images import quietly, trio

import metrics
from dataset import Pair
from images import read_gray
from measures.tables import Runnings, escape
from metrics import METRICS, evaluate
from support.pairing import find_pairs

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


def test_a_missing_value_is_left_out_of_its_metric_alone():
    runnings = Runnings(["EN", "CC"])
    for values in ({"EN": 1, "CC": 3, "SD": 9}, {"EN": 5, "CC": math.nan}):
        runnings.add(values)
    assert runnings.means == {"EN": 3, "CC": 3} and runnings["CC"].count == 1


@pytest.mark.parametrize(("table", "published"), [("1", [2, 1, 3, 4, 5]), ("2", [2, 3, 1, 5, 4])])
def test_rank_of_ranks_reproduces_the_paper(table, published):
    rows = metrics.published_rows(table)[1]
    assert metrics.rank_of_ranks([row.means for row in rows]) == published


def test_ranks():
    assert metrics.ranks([0.5, 0.9, 0.9, math.nan]) == [3, 1, 1, 4]
    assert metrics.ranks([0.5, 0.9, 0.1], lower_is_better=True) == [2, 3, 1]


def test_published_rows_are_of_one_data_set():
    """Table 4 has three, with the same methods."""
    labels = [[row.label for row in metrics.published_rows(f"4:{name}")[1]] for name in ("TNO", "MSRS", "M3FD")]
    assert all(len({*names}) == len(names) > 5 for names in labels)


def test_published_rows_need_the_data_set():
    assert metrics.published_rows("4", "msrs")[0] == "MSRS"
    assert metrics.published_rows("1", "roadscene")[0] == "FLIR-val"
    assert metrics.published_rows("6", "mri-pet")[0] == "Harvard"
    for table in ("4", "4:", "4:nowhere"):
        with pytest.raises(ValueError, match=f"--paper {table}: say which data set, one of 4:TNO, 4:MSRS, 4:M3FD"):
            metrics.published_rows(table)
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


def scores(*values):
    return {str(i): {"CC": cc, "MSE": mse} for i, (cc, mse) in enumerate(values)}


def test_ror_is_of_common_images():
    """A method with the one easy image of three does not beat the method that is better there, too."""
    report = metrics.Report(["CC", "MSE"], None)
    for i, (cc, mse) in enumerate([(0.9, 0.01), (0.1, 0.09), (0.2, 0.08)]):
        values = {("whole", "definition"): {"CC": cc, "MSE": mse}}
        if i == 0:
            values["part", "definition"] = {"CC": 0.8, "MSE": 0.02}
        report.add(metrics.Scored(str(i), values, [], []))
    rows, shared = report.rows("definition", ["part", "whole"])
    assert shared == 1 and [row.images for row in rows] == [1, 3]
    assert [row.means["CC"] for row in rows] == pytest.approx([0.8, 0.4])
    lines = [line.split() for line in metrics.table(rows, ["CC", "MSE"]).splitlines()]
    assert lines[2] == ["part", "0.800", "0.0200", "1", "2"] and lines[3] == ["whole", "0.400", "0.0600", "3", "1"]
    # Best values are marked among the methods that have all images.
    assert "**0.400**" in metrics.table(rows, ["CC"], "markdown") and "*0.800*" not in metrics.table(rows, ["CC"], "markdown")


def test_a_mean_over_fewer_images_is_not_marked():
    """Without its value of 0.1, the second method would have the best CC."""
    report = metrics.Report(["CC", "MSE"], None)
    for i, (whole, part) in enumerate([(0.4, math.nan), (0.6, 0.9)]):
        report.add(metrics.Scored(str(i), {("whole", "definition"): {"CC": whole, "MSE": 0.2},
                                           ("part", "definition"): {"CC": part, "MSE": 0.1}}, [], []))
    rows, _ = report.rows("definition", ["whole", "part"])
    marked = metrics.table(rows, ["CC", "MSE"], "markdown")
    assert "**0.500**" in marked and " 0.900 " in marked and "**0.100**" in marked


def test_a_method_without_a_value_does_not_take_the_mark_of_the_best():
    """In many orders: a sort of values with nan goes wrong in some."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = rng.permutation([*rng.uniform(0.1, 1, 3), math.nan]).tolist()
        marked = metrics.table([metrics.Row("a", {"CC": value}, 3) for value in values], ["CC"], "markdown")
        *_, second, best = sorted(value for value in values if not math.isnan(value))
        assert f"**{best:.3f}**" in marked and f"<u>{second:.3f}</u>" in marked


def test_no_common_image_no_ror():
    report = metrics.Report(["CC"], None)
    for i, method in enumerate("ab"):
        report.add(metrics.Scored(str(i), {(method, "definition"): {"CC": 0.5}}, [], []))
    rows, shared = report.rows("definition", ["a", "b"])
    assert shared == 0
    assert [line.split()[-1] for line in metrics.table(rows, ["CC"]).splitlines()[2:]] == ["-", "-"]


def test_common_means_and_nan():
    a, b = scores((0.5, 1), (math.nan, 2), (0.7, 3)), scores((0.6, 5), (0.9, 6), (0.1, math.nan))
    shared, means = metrics.common_means({"a": a, "b": b}, ["CC", "MSE"])
    assert shared == 3
    assert means["a"] == pytest.approx({"CC": 0.6, "MSE": 1.5}) and means["b"] == pytest.approx({"CC": 0.35, "MSE": 5.5})
    never = scores((math.nan, 1), (math.nan, 1), (math.nan, 1))
    means = metrics.common_means({"never": never, "b": b}, ["CC"])[1]
    assert math.isnan(means["never"]["CC"]) and means["b"]["CC"] == pytest.approx(1.6 / 3)


@pytest.mark.parametrize(("name", "style", "shown"), [
    ("a\x1b[2Jb", "plain", r"a\x1b[2Jb"), ("two\nlines", "plain", r"two\nlines"), ("\u202egnp", "terminal", r"\u202egnp"),
    ("\udcff", "plain", r"\udcff"), ("\x9b1m", "plain", r"\x9b1m"), ("名前", "plain", "名前"),
    ("a|b", "markdown", r"a\|b"), ("<img>", "markdown", "&lt;img>"), ("x\ny", "markdown", r"x\\ny"),
    ("*a* _b_", "markdown", r"\*a\* \_b\_"), ("a&b", "markdown", "a&amp;b"),
    (r"\input{x}", "latex", r"\textbackslash{}input\{x\}"), ("a^b~c", "latex", r"a\textasciicircum{}b\textasciitilde{}c"),
    ("50%_&#$", "latex", r"50\%\_\&\#\$"), ("[3pt] a", "latex", "{[}3pt] a"), ("*a", "latex", "{*}a")])
def test_names_are_escaped(name, style, shown):
    assert escape(name, style) == shown
    lines = metrics.table([metrics.Row(name, {"CC": 0.5})], ["CC"], style).splitlines()
    assert sum(shown in line for line in lines) == 1 and len(lines) == (7 if style == "latex" else 3)


@pytest.mark.parametrize(("name", "cell"), [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"),
                                            ("a=b", "a=b"), ("a\tb", r"a\tb")])
def test_csv_cells_are_no_formulas(name, cell):
    assert metrics.csv_cell(name) == cell


def test_baselines():
    ir, vis = np.array([[1, 250]], np.uint8), np.array([[2, 255]], np.uint8)
    assert metrics.baseline("average", ir, vis).tolist() == [[2, 253]]
    assert metrics.baseline("max", ir, vis).tolist() == [[2, 255]]
    with pytest.raises(ValueError, match="no baseline 'maximum'; there are average, max"):
        metrics.baseline("maximum", ir, vis)
    with pytest.raises(ValueError, match="expected uint8 images, got float64 and uint8"):      # the average would be black
        metrics.baseline("average", ir / 255, vis)


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


def test_the_help_explains_the_last_column():
    assert "RoR, the last column, is the rank of ranks" in metrics.build_parser().format_help()


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


def test_notes_name_images_that_were_taken_another_way(tree, capsys):
    for n in (1, 2):
        cv2.imwrite(str(tree / "pairs" / f"IR{n}.png"), np.arange(64 * 72, dtype=np.uint16).reshape(64, 72))
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--metrics", "EN", "--workers", 1) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "16-bit infrared" in line and "IR1.png, IR2.png" in line


def test_command_paper_table(tree, capsys):
    assert command(tree, "--fused", tree / "ours", "--paper", "4:TNO", "--format", "markdown", "--workers", 1) == 0
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
    assert "2.png" in error and "1.png: is 5x5 and its sources are 72x64; fuse them again" in error
    assert f"note: no pair has the name of these images, which are left out: {tree / 'ours'}/ (sheet.png)" in error
    assert len((tree / "out.csv").read_text().splitlines()) == 2


def test_leading_zeros_match_only_where_clear(tree):
    from dataset import find_pairs
    pairs = find_pairs(tree / "pairs", tree / "pairs")[0]
    matched, missing, others = metrics.match_fused(pairs, tree / "other")
    assert {name: path.name for name, path in matched.items()} == {"1": "01.png", "2": "02.png"}
    assert len(missing) == 1 and "10" in missing[0] and not others
    (tree / "other" / "002.png").write_bytes((tree / "other" / "02.png").read_bytes())
    assert set(metrics.match_fused(pairs, tree / "other")[0]) == {"1"}


def test_fused_images_with_a_suffix_need_a_pattern(tree, capsys):
    shutil.copytree(tree / "ours", tree / "plain")
    for path in [*(tree / "ours").iterdir()]:
        path.rename(path.with_stem(f"{path.stem}_fused"))
    run = ["--fused", f"A={tree / 'ours'}", "--metrics", "EN", "--workers", 1]
    assert command(tree, *run) == 1
    assert capsys.readouterr().err == (
        f"skipped: {tree / 'ours'}: none of its 3 images (1_fused.png, 2_fused.png and 1 more) has the name of a pair, such "
        "as 1; give the right folder, or --fused-pattern '*_fused'\n")
    assert command(tree, *run, "--fused-pattern", "*_fused") == 0
    assert "means over 3 images" in capsys.readouterr().out
    run[1:1] = [f"B={tree / 'plain'}"]
    assert command(tree, *run, "--fused-pattern", "*_fused", "--csv", tree / "both.csv") == 0
    assert Counter(row["method"] for row in csv.DictReader((tree / "both.csv").open())) == {"A": 3, "B": 3}
    del run[1]
    assert command(tree, *run, "--fused-pattern", "*_f") == 1
    assert "--fused-pattern *_f: no such file among 1_fused.png" in capsys.readouterr().err
    assert command(tree, "--baselines", "--fused-pattern", "*_f") == 1
    assert "--fused-pattern goes with --fused" in capsys.readouterr().err


def test_an_option_for_several_methods_can_stand_several_times(tree, capsys):
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--fused", f"B={tree / 'ours'}", "--metrics", "EN", "--metrics", "SD",
                   "--workers", 1) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert [line[0] for line in lines[-2:]] == ["A", "B"] and {"EN", "SD"} <= {*lines[1]}


def test_folders_without_matching_images_are_explained(tmp_path):
    pairs = [Pair(name, tmp_path / "ir.png", tmp_path / "vis.png") for name in ("00", "001", "7")]
    for name in ("other/Mine_001_x.png", "nested/inner/001.png", "part/7.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    _, problems = metrics.match_methods(pairs, {name: tmp_path / name for name in ("other", "nested", "part")})
    assert "none of its 1 images (Mine_001_x.png) has the name of a pair" in problems[0]
    assert problems[0].endswith("or --fused-pattern 'Mine_*_x'")
    for stems, pattern in (([f"IFCNN_2020_{n}" for n in (7, 1, 20)], "'IFCNN_2020_*'"), (["a7", "b_1", "c"], "'*_fused'"),
                           (["x_98765_y"], "'x_*_y'")):             # in any order of the set of names, the longest
        names = ("1", "2", "7", "20", *("98765"[start:end] for start, end in combinations(range(6), 2)))
        numbered = [Pair(name, tmp_path / "ir.png", tmp_path / "vis.png") for name in names]
        assert metrics.pattern_of([f"{stem}.png" for stem in stems], numbered).endswith(f"--fused-pattern {pattern}")
    assert problems[1].endswith("; subfolders are not read (inner), so name one of them")
    assert problems[2:] == [f"{tmp_path / 'part'}: no fused image for 00, 001"]


def test_an_image_is_not_taken_from_the_pair_of_its_exact_name(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    pairs = [Pair(name, tmp_path / "ir.png", tmp_path / "vis.png") for name in ("01", "1")]
    assert metrics.match_fused(pairs, tmp_path) == ({"1": tmp_path / "1.png"}, [f"{tmp_path}: no fused image for 01"], [])


def test_fused_images_match_whatever_form_their_accents_have(tmp_path):
    (tmp_path / "cafe\u0301.png").write_bytes(b"")
    pairs = [Pair("caf\u00e9", tmp_path / "ir.png", tmp_path / "vis.png")]
    assert metrics.match_fused(pairs, tmp_path) == ({"caf\u00e9": tmp_path / "cafe\u0301.png"}, [], [])


def test_an_error_of_a_file_that_the_tasks_write_is_that_file(tmp_path):
    def tasks():
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.png"))
        yield
    with pytest.raises(OSError, match=r"No space left on device: .*a\.png"):
        metrics.Report(("EN",), None).collect(tasks(), ["definition"], 1, 1, "gallery", [])


def test_workers_that_cannot_be_started_leave_the_scores_so_far(tree, capsys, monkeypatch):
    score_all = metrics.score_all

    def only_the_first(tasks, protocols, names, workers):
        yield from score_all([next(iter(tasks))], protocols, names, 1)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    monkeypatch.setattr(metrics, "score_all", only_the_first)
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--metrics", "EN", "--workers", 2) == 1
    said = capsys.readouterr()
    assert "means over 1 image" in said.out
    assert "no worker process could be started (Resource temporarily unavailable); try fewer --workers" in said.err


def test_command_says_how_many_images_ror_compares(tree, capsys):
    command(tree, "--fused", f"A={tree / 'ours'}", f"B={tree / 'other'}", "--metrics", "EN", "CC", "--workers", 1)
    assert "means over 3 images; RoR over the 2 that all methods have" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "names"), [([], ["1", "2"]), (["--split", "train"], ["10"])], ids=str)
def test_command_scores_a_split_of_a_published_data_set(tree, options, names):
    for path in (tree / "ours").iterdir():
        if path.stem not in names:
            path.unlink()
    for split, stems in (("test", "12"), ("train", ["10"])):
        for folder, side in (("ir", "IR"), ("vi", "VIS")):
            (tree / "MSRS" / split / folder).mkdir(parents=True)
            for stem in stems:
                (tree / "pairs" / f"{side}{stem}.png").rename(tree / "MSRS" / split / folder / f"{stem}.png")
    assert metrics.main(["--fused", f"A={tree / 'ours'}", "--dataset", "msrs", "--data", str(tree / "MSRS"), *options,
                         "--metrics", "EN", "--csv", str(tree / "out.csv"), "--workers", "1"]) == 0
    with (tree / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["image"]: float(row["EN"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx({name: metrics.EN(read_gray(tree / "ours" / f"{name}.png")) for name in names}, abs=1e-4)


def test_command_heads_the_average_gradient(tree, capsys):
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--protocol", "paper", "--metrics", "SF", "cc", "--format", "latex",
                   "--csv", tree / "out.csv", "--workers", 1) == 0
    assert r"method & SF (AG) $\uparrow$ & CC $\uparrow$" in capsys.readouterr().out
    assert (tree / "out.csv").read_text().startswith("method,image,protocol,SF (AG),CC\n")


def test_small_images_keep_their_other_metrics(tree, capsys):
    for path in [*(tree / "pairs").iterdir(), *(tree / "ours").iterdir()]:
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:40, :40])
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--metrics", "EN", "VIF", "--workers", 1) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-2].split()[-1] == "nan"
    assert "note: VIF is undefined here (40x40 is below 41x41), and left out of the mean: 1, 2, 10\n" in output.err


def test_csv_holds_escaped_names(tree):
    for old, new in (("IR1", "IR-1"), ("VIS1", "VIS-1")):
        (tree / "pairs" / f"{old}.png").rename(tree / "pairs" / f"{new}.png")
    (tree / "pairs").rename(tree / "=cmd")
    for side in ("ir", "vis"):
        (tree / side).mkdir()
    for path in list((tree / "=cmd").iterdir()):
        side = "ir" if path.name.startswith("IR") else "vis"
        path.rename(tree / side / path.name.removeprefix(side.upper()))
    (tree / "ours" / "1.png").rename(tree / "ours" / "-1.png")
    (tree / "ours").rename(tree / "=ours\n")
    code = metrics.main(["--fused", str(tree / "=ours\n"), "--ir", str(tree / "ir"), "--vis", str(tree / "vis"),
                         "--metrics", "EN", "--csv", str(tree / "out.csv"), "--workers", "1"])
    lines = (tree / "out.csv").read_text().splitlines()
    assert code == 0 and len(lines) == 4
    assert all(line.startswith(r"'=ours\n,") for line in lines[1:]) and sum(",'-1," in line for line in lines) == 1


def test_csv_stays_if_nothing_can_be_scored(tree):
    (tree / "out.csv").write_text("earlier")
    (tree / "none").mkdir()
    assert command(tree, "--fused", tree / "none", "--csv", tree / "out.csv", "--workers", 1) == 1
    assert (tree / "out.csv").read_text() == "earlier"


def test_fused_images_of_16_bits_have_the_scores_of_8(tree, capsys):
    """Also dark ones, which use the lowest 12 bits alone."""
    (tree / "deep").mkdir()
    for path in (tree / "ours").iterdir():
        dark = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 20
        cv2.imwrite(str(path), dark)
        cv2.imwrite(str(tree / "deep" / path.name), dark.astype(np.uint16) * 257)
    assert command(tree, "--fused", f"A={tree / 'ours'}", f"B={tree / 'deep'}", "--metrics", "EN", "SD", "--workers", 1) == 0
    first, second = (line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (["A"], ["B"]))
    assert first[1:3] == second[1:3]


def test_fused_images_with_the_names_of_the_infrared_are_matched_but_not_the_infrared_itself(tree):
    (tree / "named").mkdir()
    pairs = find_pairs(tree / "pairs", tree / "pairs")[0]
    for pair in pairs:
        (tree / "named" / pair.ir.name).write_bytes((tree / "ours" / f"{pair.name}.png").read_bytes())
    assert [path.name for path in metrics.match_fused(pairs, tree / "named")[0].values()] == [pair.ir.name for pair in pairs]
    assert not metrics.match_fused(pairs, tree / "pairs")[0]


def test_a_link_to_a_folder_keeps_its_own_name(tree):
    (tree / "LRRNet").symlink_to(tree / "ours")
    assert list(metrics.collect_methods([str(tree / "LRRNet")])) == ["LRRNet"]


def test_csv_replaces_no_file_of_another_kind(tree, capsys):
    (tree / "own.py").write_text("kept")
    assert command(tree, "--baselines", "--csv", tree / "own.py", "--workers", 1) == 1
    assert "own.py: exists, and would be replaced; give a file that ends in .csv" in capsys.readouterr().err
    assert (tree / "own.py").read_text() == "kept"


@pytest.mark.parametrize("target", ["pairs/IR1.png", "pairs/VIS2.png", "ours/10.png", "new.png", "link.csv", "hard.csv"])
def test_csv_never_replaces_an_image(tree, capsys, target):
    (tree / "link.csv").symlink_to(tree / "pairs" / "IR2.png")
    (tree / "hard.csv").hardlink_to(tree / "ours" / "2.png")
    before = {path: path.read_bytes() for path in tree.rglob("*.png")}
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--csv", tree / target, "--workers", 1) == 1
    reason = "is an input" if target.endswith(".csv") else "this is an image's name; give a file that ends in .csv"
    assert reason in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tree.rglob("*.png")} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for the full disk; this system has none")
def test_full_disk_keeps_the_table(tree, capsys):
    code = command(tree, "--fused", f"A={tree / 'ours'}", "--metrics", "EN", "--csv", "/dev/full", "--workers", 1)
    output = capsys.readouterr()
    assert code == 1 and "means over 3 images" in output.out and len(output.out.splitlines()) == 5
    assert output.err.splitlines()[-1] == "metrics.py: --csv /dev/full: No space left on device; its last rows are missing"


@pytest.mark.parametrize(("options", "message"), [
    (["--baselines", "--csv", "nowhere/out.csv"], "--csv nowhere/out.csv: No such file or directory"),
    ([], "nothing to score"), (["--fused", "nowhere"], "nowhere: no such folder"),
    (["--baselines", "--metrics", "LPIPS"], "--metrics: no metric 'LPIPS' under protocol 'definition'; it has EN, MI"),
    (["--baselines", "--paper", "4:TNO", "--protocol", "definition"], "its rows hold the columns of --protocol paper"),
    (["--baselines", "--dataset", "msrs", "--data", "x", "--paper", "4:TNO"], "--paper 4:TNO: not of --dataset msrs"),
    (["--baselines", "--dataset", "msrs", "--data", "x", "--paper", "1"], "--paper 1: not of --dataset msrs"),
    (["--baselines", "--data", "x"], "--dataset NAME and --data FOLDER go together"),
    (["--baselines", "--fused", "max=x"], "the name max is taken"), (["--fused", "A="], "--fused A=: write NAME=DIR"),
    (["--fused", "=x"], "--fused =x: write NAME=DIR")])
def test_command_errors(tree, capsys, options, message):
    assert command(tree, *options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("insufficient memory")])
def test_an_image_that_exceeds_the_memory_is_skipped_and_named(tree, capsys, monkeypatch, error):
    error.code = cv2.Error.StsNoMem
    whole = cv2.imdecode
    large = (tree / "ours" / "2.png").read_bytes()

    def short_of_memory(data, flags):
        if data.tobytes() == large:
            raise error
        return whole(data, flags)

    monkeypatch.setattr(cv2, "imdecode", short_of_memory)
    assert command(tree, "--fused", f"A={tree / 'ours'}", "--workers", 1) == 1
    output = capsys.readouterr()
    assert "means over 2 images" in output.out
    assert f"skipped: {tree / 'ours' / '2.png'}: too large for the memory of this machine" in output.err


def test_sources_are_matched_and_read_as_by_test_py(tree, capsys):
    for n in (1, 2, 10):
        ir = cv2.imread(str(tree / "pairs" / f"IR{n}.png"), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(tree / "pairs" / f"IR{n}.png"), cv2.resize(ir, (36, 32)))
    options = ["--fused", f"A={tree / 'ours'}", "--ir-pattern", "IR*", "--vis-pattern", "VIS*", "--metrics", "EN",
               "--workers", 1]
    assert command(tree, *options) == 1
    assert "register them to one size first, or give --resize ir or --resize vis to test.py" in capsys.readouterr().err
    assert command(tree, *options, "--resize", "ir") == 0


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
    assert code == 130 and "means over 2 images" in output.out
    assert f"interrupted after 2 of 3 images; the rows above and {tree / 'out.csv'} hold only these" in output.err
    assert len((tree / "out.csv").read_text().splitlines()) == 3


def test_processes_give_the_same_and_draw_few_tasks_ahead(monkeypatch):
    drawn = 0
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)

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
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ     # as before
    assert [scored.name for scored in results] == [str(n) for n in range(12)]
    alone = list(metrics.score_all(tasks(), ["definition", "toolbox"], None, workers=1))
    for one, many in zip(alone, results):
        for key, values in one.values.items():
            assert many.values[key] == pytest.approx(values, rel=1e-12, nan_ok=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """They have its standard output, so reading this until its end waits for them."""
    (tmp_path / "parent.py").write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy, metrics
if __name__ == "__main__":
    task = metrics.Task("a", *numpy.zeros((2, 9, 9), numpy.uint8), {{}})
    scores = metrics.score_all([task] * 9, ["definition"], None, 2)
    next(scores)
    print("scored", flush=True)
    os.kill(os.getpid(), 9)
""")
    done = subprocess.run([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-9, b"scored\n")


def test_windows_has_at_most_61_processes(monkeypatch):
    started = []

    class Pool:
        def __init__(self, workers, *_):
            started.append(workers)

        def shutdown(self, cancel_futures):
            pass

    monkeypatch.setattr(metrics, "ProcessPoolExecutor", Pool)
    for platform, expected in (("win32", 61), ("linux", 100)):
        monkeypatch.setattr(sys, "platform", platform)
        assert list(metrics.score_all([], ["definition"], None, workers=100)) == [] and started.pop() == expected


def test_protocols_share_what_they_have_in_common(monkeypatch):
    calls = []
    entry = dataclasses.replace(METRICS["FMI"], compute=lambda trio: calls.append("FMI") or 0.5)
    monkeypatch.setitem(METRICS, "FMI", entry)
    f, ir, vis = trio(0)
    scored = metrics.score(metrics.Task("x", ir, vis, {"A": f}), ["definition", "toolbox"], None)
    assert calls == ["FMI"]
    assert scored.values["A", "toolbox"] == pytest.approx({**evaluate(f, ir, vis, "toolbox"), "FMI": 0.5})


def test_only_undefined_metrics_are_called_left_out(monkeypatch):
    def compute(trio):
        warnings.warn("an old function", DeprecationWarning, stacklevel=1)
        return 0.5
    monkeypatch.setitem(METRICS, "FMI", dataclasses.replace(METRICS["FMI"], compute=compute))
    f, ir, vis = trio(0, height=30, width=30)
    with pytest.warns(DeprecationWarning, match="an old function"):
        scored = metrics.score(metrics.Task("x", ir, vis, {"A": f}), ["definition"], ["FMI", "VIF"])
    (note,) = scored.notes
    assert note.startswith("VIF is undefined here")


def run(tree, *options, **keywords):
    command = [sys.executable, ROOT / "metrics.py", "--ir", tree / "pairs", "--vis", tree / "pairs", *options]
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=120, check=False, **keywords)


def test_runs_as_a_command(tree):
    done = run(tree, "--fused", tree / "ours", "--protocol", "paper", "--std", "--workers", "2", stdout=subprocess.PIPE,
               env=os.environ | {"PYTHONIOENCODING": "utf-8"}, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "means over 3 images" in done.stdout and "±" in done.stdout and "\033" not in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_without_unicode(tree, encoding):
    done = run(tree, "--fused", f"名={tree / 'ours'}", "--metrics", "CC", "MSE", "--std", "--workers", "1",
               stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": encoding}, text=True, encoding="ascii")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["method", "CC", "^", "MSE", "v"]
    assert lines[3].startswith("\\u540d ") and lines[3].count("+-") == 2


def test_nobody_reads_the_output(tree):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(tree, "--baselines", "--metrics", "EN", "--workers", "1", stdout=writer, text=True)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def test_closed_output(tree):
    code = ("import os, sys; os.close(1); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    done = subprocess.run([sys.executable, "-c", code, ROOT / "metrics.py", "--ir", tree / "pairs", "--vis", tree / "pairs",
                           "--baselines", "--metrics", "EN", "--csv", tree / "out.csv", "--workers", "1"],
                          stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert len((tree / "out.csv").read_text().splitlines()) == 7


def test_command_prints_the_columns_of_cddfuse(tree, capsys):
    options = ["--fused", f"A={tree / 'ours'}", "--protocol", "cddfuse", "--workers", 1]
    assert command(tree, *options) == 0
    heading = capsys.readouterr().out.splitlines()[1].split()
    assert [word for word in heading if word != "↑"] == ["method", "EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM"]
    assert command(tree, *options, "--metrics", "ssim", "AG", "PSNR", "CC", "MSE") == 0
    heading = capsys.readouterr().out.splitlines()[1].split()
    assert [word for word in heading if word not in "↑↓"] == ["method", "SSIM", "AG", "PSNR", "CC", "MSE"]
    assert command(tree, *options, "--metrics", "FMI") == 1
    assert "no metric 'FMI' under protocol 'cddfuse'; it has EN, SD" in capsys.readouterr().err


def test_equal_best_values_are_all_marked_as_best():
    marked = metrics.table([metrics.Row(name, {"CC": value}) for name, value in (("a", 0.75), ("b", 0.5), ("c", 0.75))],
                           ["CC"], "markdown")
    assert marked.count("**0.750**") == 2 and "<u>0.500</u>" in marked


def test_only_a_column_of_small_values_has_a_fourth_decimal():
    lines = [metrics.Row("a", {"CC": 0.05, "MSE": 0.05}), metrics.Row("b", {"CC": 0.5, "MSE": 0.02})]
    shown = metrics.table(lines, ["CC", "MSE"])
    assert "0.0500" in shown and " 0.050 " in shown and "0.500 " in shown and "0.0200" in shown


def test_a_killed_worker_leaves_the_scores_so_far(monkeypatch):
    def killed(*_):
        yield metrics.Scored("1", {("A", "definition"): {"EN": 5.0}}, [], [])
        raise BrokenProcessPool
    monkeypatch.setattr(metrics, "score_all", killed)
    report, problems = metrics.Report(["EN"], None), []
    assert report.collect([], ["definition"], 2, 2, "scoring", problems) is False
    assert report.scores["definition"]["A"] == {"1": {"EN": 5.0}} and "try fewer --workers" in problems[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_problems_have_one_order_for_any_number_of_workers(workers):
    def tasks():
        for number in range(6):
            if number == 2:
                problems.append("2: cannot be read")
            fused, ir, vis = trio(number, height=24, width=24)
            yield metrics.Task(str(number), ir, vis, {"A": fused[:8] if number == 1 else fused})
    problems = []
    metrics.Report(["EN"], None).collect(tasks(), ["definition"], workers, 6, "", problems)
    assert [problem[:4] for problem in problems] == ["2: c", "A, 1"]
