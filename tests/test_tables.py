"""The paper's tables: what is printed of known rows, and a tiny --run from training to the recorded row."""
import csv
import json
import os
import shutil
import signal
import subprocess

import cv2
import numpy as np
import pytest
import torch
from conftest import write_roadscene
from scipy import stats

import metrics
import train
from dataset import named_pairs
from images import luma, read_gray
from inference import fuse_pair
from net import RPFNet
from recipe import LOSS, read_recipe
from support.console import handling
from support.records import hashed_name
from tools import table_rows, tables
from tools.released import ReleasedNet
from tools.table_rows import COLUMNS, CONFIGURATIONS, FULL, RELEASED, Run, identity, record, without_cpm, without_spectrum

TINY = ["--steps", "2", "--batch", "2", "--crops", "4", "--seeds", "5"]
TRAIN = ["--", "--channels", "4", "--crop", "32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of data sets with a generated RoadScene."""
    root = tmp_path_factory.mktemp("data")
    write_roadscene(root / "RoadScene")
    return root


@pytest.fixture(scope="module", autouse=True)
def few_pairs():
    """Scoring takes the first four pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_rows, "named_pairs", lambda *place: named_pairs(*place)[:4])
        yield


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Table 1's N=1, trained for two steps: the options that did it, with --results and --out."""
    place = tmp_path_factory.mktemp("measured")
    options = ["--table", "1", "--run", "--rows", "N=1", "--data", str(data), "--results", str(place / "results"),
               "--out", str(place / "runs"), *TINY]
    assert tables.main([*options, *TRAIN]) == 0
    return place, options


@pytest.fixture
def no_training(monkeypatch):
    def refuse(options):
        raise AssertionError(f"trained: {options}")
    monkeypatch.setattr(table_rows, "call_train", refuse)


def rows_in(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(method, values, **more):
    """A row of Table 1, eval, protocol paper."""
    return dict.fromkeys(COLUMNS, "") | dict(zip(("EN", "AG", "SD", "CC", "SCD", "VIFF"), values)) | {
        "table": "1", "dataset": "FLIR-val", "method": method, "use": "eval", "range": "plain", "protocol": "paper",
        "images": "40", "seed": "0", "steps": "300", "crops": "8 of 128"} | more


@pytest.mark.parametrize("path", sorted(table_rows.RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_the_recorded_results_are_whole_rows(path):
    assert table_rows.read_rows(path)


@pytest.mark.parametrize("row", ["ours, recipe paper,1", "RPFNet"])
def test_a_row_with_too_many_or_too_few_cells_is_named(tmp_path, row):
    (tmp_path / "tables.csv").write_text(f"method,EN\nA,1\n{row}\n")
    with pytest.raises(table_rows.TableError, match=r"tables\.csv: row 2 has another number of cells"):
        table_rows.read_rows(tmp_path / "tables.csv")


def test_a_published_data_set_is_trained_on_one_split_and_validated_on_the_other(data, tmp_path, monkeypatch, capsys):
    """Four pairs of each, because metrics take a while."""
    asked = []
    monkeypatch.setattr(train, "named_pairs", lambda *which: asked.append(which[2]) or named_pairs(*which)[:4])
    assert train.main(["--data", str(data / "RoadScene"), "--channels", "4", "--stages", "1", "--crop", "32", "--crops", "4",
                       "--batch", "2", "--steps", "2", "--val-every", "1", "--out", str(tmp_path)]) == 0
    assert asked == ["train", "val"]
    assert f"4 training pairs of {data / 'RoadScene'}, 4 validation pairs" in capsys.readouterr().out
    about = json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))
    assert about["recipe"]["dataset"] == "roadscene"
    assert 0 < about["validation"]["val_loss"] and 0 < about["validation"]["EN"] < 8


# --- printing ---


@pytest.fixture
def results(tmp_path):
    """N=3 (two seeds) leads five columns; N=1 leads EN and shares SD with N=5. Rank sums 7, 13, 15."""
    record(tmp_path / "tables.csv", COLUMNS, [
        measured("N=5", (7.3, 5, 10, 0.65, 1.75, 0.5)), measured("N=1", (7.559, 6, 10, 0.6, 1.7, 0.6)),
        measured("N=3", (7.4, 7, 11, 0.7, 1.8, 0.7)), measured("N=3", (7.6, 7, 11, 0.7, 1.8, 0.7), seed="1")], identity)
    return tmp_path


def test_lines_by_definition_have_the_order_of_the_paper_too(results):
    for method in ("N=5", "N=1"):
        row = measured(method, (7, 5, 10, 0.65, 1.75, 0.5)) | {"protocol": "definition", "SF": "10", "VIF": "0.5"}
        record(results / "tables.csv", COLUMNS, [row], identity)
    assert [line.method for line in tables.collect_lines("1", "FLIR-val", "definition", results)] == ["N=1", "N=5"]


def test_a_file_that_excel_saved_is_read(results):
    before = table_rows.read_rows(results / "tables.csv", COLUMNS)
    text = (results / "tables.csv").read_text(encoding="utf-8")
    (results / "tables.csv").write_text(text, encoding="utf-8-sig")
    assert table_rows.read_rows(results / "tables.csv", COLUMNS) == before


def test_parts_that_no_row_names_are_a_line(results, capsys):
    assert tables.main(["--table", "parts", "--run", "--results", str(results), "--data", "nowhere", "--datasets", "MRI-PET",
                        "--rows", "ours, small"]) == 1
    assert "--rows names no network that is measured on these --datasets" in capsys.readouterr().err


def test_ranks_differences_and_seeds_of_known_rows(results):
    lines = tables.collect_lines("1", "FLIR-val", "paper", results)
    assert [line.method for line in lines] == ["N=1", "N=1", "N=3", "N=3", "N=5", "N=5", "N=7", "N=9"]
    assert [line.rank for line in lines if line.kind == "eval, plain"] == [2, 1, 3]
    one, three = (line for line in lines if line.kind == "eval, plain" and line.method in ("N=1", "N=3"))
    assert one.differences["EN"] == pytest.approx(7.559 - 7.459) and one.stds == {}
    assert three.means["EN"] == pytest.approx(7.5) and three.differences["EN"] == pytest.approx(7.5 - 7.434)
    assert three.stds["EN"] == pytest.approx(0.1 * 2 ** 0.5) and three.stds["AG"] == 0
    assert "seeds 0, 1" in three.budget and "300 steps, crops 8 of 128" in three.budget


def test_another_budget_is_a_line_of_its_own_and_a_repeated_measurement_replaces(results):
    path = results / "tables.csv"
    record(path, COLUMNS, [measured("N=1", (7, 6, 10, 0.6, 1.7, 0.6), steps="21200")], identity)
    record(path, COLUMNS, [measured("N=1", (7.2, 6, 10, 0.6, 1.7, 0.6))], identity)
    lines = [line for line in tables.collect_lines("1", "FLIR-val", "paper", results) if line.method == "N=1"]
    assert {line.kind: line.means["EN"] for line in lines} == {
        "printed": 7.459, "eval, plain, 300 steps, crops 8 of 128": 7.2,
        "eval, plain, 21200 steps, crops 8 of 128": 7.0}


def test_columns_that_were_added_by_hand_are_kept(results):
    path = results / "tables.csv"
    path.write_text("\n".join(line + end for line, end in zip(path.read_text().splitlines(), (",remark", *",,,", ",good"))))
    record(path, COLUMNS, [measured("N=1", (7.2, 6, 10, 0.6, 1.7, 0.6))], identity)
    assert [(row["method"], row["seed"], row["remark"]) for row in rows_in(path)] == [
        ("N=5", "0", ""), ("N=1", "0", ""), ("N=3", "0", ""), ("N=3", "1", "good")]


@pytest.mark.parametrize("table, name", [("1", "tables"), ("parts", "parts")])
def test_a_file_with_another_table_is_found_before_the_measurement(data, tmp_path, no_training, capsys, table, name):
    (tmp_path / f"{name}.csv").write_text("method,EN\nA,1\n")
    assert tables.main(["--table", table, "--run", "--data", str(data), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"{name}.csv: has no column" in error and "not measured" not in error


def test_the_printed_table_and_its_csv(results, capsys):
    assert tables.main(["--table", "1", "--results", str(results), "--csv", str(results / "out.csv")]) == 0
    printed = capsys.readouterr().out
    assert "7.500 ± 0.141" in printed and "+0.100" in printed and "-0.581" in printed       # N=1: EN, SF
    assert "No rows have been measured" not in printed
    rows = {(row["method"], row["rows"]): row for row in rows_in(results / "out.csv")}
    assert len(rows) == 8 and rows["N=3", "eval, plain"]["EN std"] == "0.141421"
    assert rows["N=1", "eval, plain"]["EN difference"] == "0.100000" and rows["N=1", "eval, plain"]["RoR"] == "2"
    assert rows["N=1", "eval, plain"]["SF (AG)"] == "6.000000" and {row["protocol"] for row in rows.values()} == {"paper"}
    assert rows["N=7", "printed"]["EN difference"] == "" and rows["N=7", "printed"]["RoR"] == "4"


def test_the_csv_is_written_also_if_the_reader_of_the_output_ends(results, monkeypatch):
    def closed(*_):
        raise BrokenPipeError
    monkeypatch.setattr(tables, "show", closed)
    with pytest.raises(BrokenPipeError):
        tables.main(["--table", "1", "--results", str(results), "--csv", str(results / "out.csv")])
    assert len(rows_in(results / "out.csv")) == 8


@pytest.mark.parametrize("name, message", [
    ("results/tables.csv", "tables.csv: is an input"), ("results/parts.csv", "parts.csv: is an input"),
    (table_rows.RESULTS / "tables.csv", "tables.csv: is an input"), ("results", "is a folder"),
    ("absent/a.csv", "no such folder"), ("a.png", "this is an image's name")])
def test_csv_never_replaces_recorded_rows_and_is_checked_before_the_measurement(results, monkeypatch, capsys, name, message):
    """parts.csv does not exist yet."""
    def refuse(*_):
        raise AssertionError("measured")
    monkeypatch.setattr(tables, "run_shipped", refuse)
    (results / "results").mkdir()
    (results / "tables.csv").rename(results / "results" / "tables.csv")
    before = {path: path.read_bytes() for folder in (results, table_rows.RESULTS) for path in folder.rglob("*.csv")}
    options = ["--table", "main", "--run", "--results", str(results / "results"), "--csv", str(results / name)]
    assert tables.main(options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("style", "line"), [
    ("markdown", "| N=5    | printed     |         7.415 |"), ("latex", r"N=5    & printed     &             7.415 &")])
def test_markdown_and_latex(results, capsys, style, line):
    assert tables.main(["--table", "1", "--results", str(results), "--format", style]) == 0
    printed = capsys.readouterr().out
    assert line in printed
    assert len({text.count(line[-1]) for text in printed.splitlines() if line[-1] in text}) == 1    # equal columns


@pytest.mark.parametrize(("style", "cell"), [
    ("terminal", "a|b^{_} => lambda2 ±"), ("markdown", r"a\|b^{\_} => lambda2 ±"),
    ("latex", r"a\textbar{}b\textasciicircum{}\{\_\} $\Rightarrow$ $\lambda_2$ $\pm$")])
def test_names_are_escaped_for_the_style(style, cell):
    assert cell in tables.layout([["method", "EN"], ["a|b^{_} => lambda2 ±", "1"]], style, 1)


def test_the_papers_rows_do_not_stand_beside_another_protocol(results, capsys):
    assert tables.main(["--table", "1", "--results", str(results), "--protocol", "definition"]) == 0
    assert "7.459" not in capsys.readouterr().out


@pytest.mark.parametrize(("options", "message"), [
    (["5"], "invalid choice"),
    (["1", "--run", "--rows", "N=2"], "N=1"),
    (["4", "--datasets", "MRI-PET"], "TNO, MSRS, M3FD"),
    (["4", "--run", "--", "--amp"], "Tables 1 to 3"),
    (["4", "--run", "--fused", "DIR"], "NAME=DIR"),
    (["4", "--run", "--fused", "=DIR"], "=DIR: write NAME=DIR"),
    (["4", "--run", "--fused", "A="], "A=: write NAME=DIR"),
    (["4", "--run", "--fused", "average=DIR"], "the name average is taken"),
    (["4", "--run", "--fused", "A=x", "A=y"], "the name A is taken"),
    (["4", "--rows", "average"], "--rows has no effect without --run"),
    (["main", "--fused", "A=DIR"], "--fused has no effect without --run"),
    (["1", "--run", "--fused", "A=DIR"], "--fused has no effect on table 1; it goes with 4, 6, main"),
    (["4", "--run", "--again"], "--again has no effect on table 4"),
    (["parts", "--run", "--seeds", "1"], "--seeds has no effect on table parts"),
    (["parts", "--protocol", "definition"], "--protocol has no effect on table parts"),
])
def test_what_cannot_be_asked_for_is_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        tables.main(["--table", *options])
    assert message in capsys.readouterr().err


# --- Tables 1 to 3 ---

CHANGES = {
    "N=1": {"stages": 1}, "N=5": {"stages": 5}, "N=7": {"stages": 7}, "N=9": {"stages": 9},
    "lambda2=4": {"lambda_2": 4}, "lambda2=4.8": {"lambda_2": 4.8}, "lambda2=5.2": {"lambda_2": 5.2},
    "lambda2=6": {"lambda_2": 6}, "w/o L_s": {"lambda_2": 0}, "L_c => freq. l1-norm": {"negatives": False},
    "w/o freq. domain L_c": {"contrast_domain": "spatial"}, "w/o L_SS": {"saliency": False},
    "w/o w and 1-w": {"weight": "none"}, "FDFM => Trans.block": {"global_branch": "transformer"},
    "w/o CPM": {"cpm": False}, "w/o res prior": {"prior": False, "saliency": False},
    "N=3": {}, "lambda2=5": {}, "RPFNet": {},
}


def test_every_row_of_the_paper_is_trained_with_one_change(tmp_path):
    recipes = {}
    for configuration in CONFIGURATIONS:
        wanted = table_rows.wanted_recipe(Run(configuration, 0, tmp_path, configuration.options))
        recipe = {key: getattr(wanted, key) for key in table_rows.RECIPE}
        recipes |= {method: recipe for table, method in configuration.methods.items() if table in "123"}
    full = recipes["RPFNet"]
    assert {method: {key: value for key, value in recipe.items() if value != full[key]}
            for method, recipe in recipes.items()} == CHANGES
    published = {row["method"] for row in rows_in(table_rows.RESULTS / "paper_tables.csv") if row["table"] in "123"}
    assert published == CHANGES.keys()


def test_the_table_contrast_goes_from_one_recipe_towards_the_other(tmp_path):
    """Each row has the changes of the row before it; all options that describe the loss end at recipe contrast."""
    recipes = [vars(table_rows.wanted_recipe(Run(configuration, 0, tmp_path, configuration.options)))
               for configuration in CONFIGURATIONS if "contrast" in configuration.methods]
    goal = read_recipe("contrast")
    loss = [key for key in (*LOSS, "clip") if recipes[0][key] != goal[key]]
    changed = [[key for key in loss if recipe[key] == goal[key]] for recipe in recipes]
    assert changed[0] == [] and sorted(changed[-1]) == sorted(loss)
    assert all({*before} <= {*after} for before, after in zip(changed, changed[1:]))
    # The last row's crops have other sides and about as many pixels in a step as the budget of 2 of 128.
    assert recipes[-1]["batch"] * recipes[-1]["crop"]**2 == pytest.approx(2 * 128**2, rel=0.02)


@pytest.mark.parametrize("table", table_rows.TRAINED)
def test_a_run_plans_the_seeds_that_are_recorded(table, tmp_path):
    runs = table_rows.planned_runs(tables.parse(["--table", table, "--run", "--out", str(tmp_path)]))
    recorded = {(row["method"], row["seed"]) for row in rows_in(table_rows.RESULTS / "tables.csv") if row["table"] == table}
    assert {(run.configuration.methods[table], str(run.seed)) for run in runs} == recorded
    assert len({run.folder for run in runs}) == len(runs) == len(recorded)


def test_seeds_are_those_of_every_chosen_row(tmp_path):
    args = tables.parse(["--table", "3", "--run", "--rows", "w/o CPM", "RPFNet", "--seeds", "4", "7", "--out", str(tmp_path)])
    runs = table_rows.planned_runs(args)
    assert [(run.configuration.methods["3"], run.seed) for run in runs] == [
        ("RPFNet", 4), ("RPFNet", 7), ("w/o CPM", 4), ("w/o CPM", 7)]
    assert len({run.folder for run in runs}) == 4


def test_p_values_are_scipys(results):
    """Seeds of N=3: EN 7.4 and 7.6. One run is compared with the variance of N=3, two runs by Welch's test."""
    record(results / "tables.csv", COLUMNS, [measured("N=5", (7.4, 5, 10, 0.65, 1.75, 0.5), seed="1")], identity)
    lines = {line.method: line for line in tables.collect_lines("1", "FLIR-val", "paper", results) if line.kind == "eval, plain"}
    assert lines["N=3"].p_values == {} and tables.p_value(0.0004) == "<0.001"
    assert lines["N=5"].p_values["EN"] == pytest.approx(stats.ttest_ind([7.3, 7.4], [7.4, 7.6], equal_var=False).pvalue)
    distance = (7.559 - 7.5) / (0.1 * 2 ** 0.5 * 1.5 ** 0.5)         # standard error: variance of N=3, times 1 + 1/2
    assert lines["N=1"].p_values["EN"] == pytest.approx(2 * stats.t.sf(distance, 1))


def test_a_run_records_the_scores_of_its_last_state(trained, data):
    place, _ = trained
    rows = rows_in(place / "results" / "tables.csv")
    assert [(row["method"], row["use"], row["range"], row["protocol"]) for row in rows] == [
        ("N=1", use, stretch, protocol) for use, stretch in (("eval", "plain"), ("as published", "studio"))
        for protocol in ("paper", "definition")]
    assert {(row["images"], row["seed"], row["steps"], row["crops"]) for row in rows} == {("4", "5", "2", "2 of 32")}
    assert all(row["command"].startswith("python train.py ") and "--stages 1 " in row["command"] for row in rows)
    model = RPFNet.from_pretrained(place / "runs" / "stages_1_seed5" / "last.pth")
    scores = []
    for pair in named_pairs("roadscene", data / "RoadScene")[:4]:
        ir, vis = read_gray(pair.ir), luma(read_gray(pair.vis))
        scores.append(metrics.evaluate(model.fuse(ir, vis, True, as_published=True), ir, vis, "paper", ["SF (AG)", "VIFF"]))
    for name, values in zip(("AG", "VIFF"), zip(*(score.values() for score in scores))):
        assert float(rows[2][name]) == pytest.approx(sum(values) / 4, abs=1e-4)


def test_a_finished_run_is_neither_trained_nor_scored_again(trained, no_training, monkeypatch, capsys):
    place, options = trained
    before = (place / "results" / "tables.csv").read_bytes()
    monkeypatch.setattr(table_rows, "score", None)
    assert tables.main([*options, *TRAIN]) == 0
    printed = capsys.readouterr().out
    assert "trained already" in printed and "measured already" in printed
    assert (place / "results" / "tables.csv").read_bytes() == before


def test_a_run_of_another_recipe_is_not_taken_for_this_one(trained, no_training, capsys):
    _, options = trained
    assert tables.main([*options, "--steps", "3", *TRAIN]) == 1
    error = capsys.readouterr().err
    assert "last.pth: trained with another recipe (steps 2 -> 3)" in error and "--out" in error


@pytest.mark.parametrize("cut", ["step", "history"])
def test_an_unfinished_run_is_resumed(trained, tmp_path, monkeypatch, capsys, cut):
    place, options = trained
    state = torch.load(place / "runs" / "stages_1_seed5" / "last.pth", weights_only=True)
    state[cut] = 1 if cut == "step" else []         # killed between two steps, or before the last epoch was closed
    (tmp_path / "stages_1_seed5").mkdir()
    torch.save(state, tmp_path / "stages_1_seed5" / "last.pth")
    calls = []
    monkeypatch.setattr(table_rows, "call_train", lambda options: calls.append(options) or 130)
    assert tables.main([*options, "--out", str(tmp_path), *TRAIN]) == 130
    (call,) = calls
    assert call[-2:] == [str(tmp_path / "stages_1_seed5"), "--resume"]
    assert "the same command goes on" in capsys.readouterr().err


def test_a_termination_is_passed_on_to_the_training(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("import os, signal, sys, time\n"
                                       "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
                                       "os.kill(os.getppid(), signal.SIGTERM)\n"
                                       "time.sleep(20)\n")
    monkeypatch.setattr(table_rows, "ROOT", tmp_path)
    with handling(lambda *_: None, "SIGTERM"):      # so that a signal that is not handled does not end the tests
        assert table_rows.call_train([]) == 143


def test_a_termination_while_the_training_starts_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("import time\ntime.sleep(20)\n")
    start = subprocess.Popen

    def late(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*args)
    monkeypatch.setattr(table_rows, "ROOT", tmp_path)
    monkeypatch.setattr(table_rows.subprocess, "Popen", late)
    with handling(lambda *_: None, "SIGTERM"):
        assert table_rows.call_train([]) == -signal.SIGTERM


def test_ctrl_c_waits_until_the_training_has_saved(monkeypatch):
    waits = []

    class Process:
        def wait(self):
            waits.append(1)
            if len(waits) == 1:
                raise KeyboardInterrupt
    monkeypatch.setattr(table_rows.subprocess, "Popen", lambda *_: Process())
    with pytest.raises(KeyboardInterrupt):
        table_rows.call_train([])
    assert len(waits) == 2


@pytest.mark.parametrize("code", [130, 143])
def test_a_training_that_a_signal_stopped_stops_the_others(trained, tmp_path, monkeypatch, code):
    _, options = trained
    calls = []
    monkeypatch.setattr(table_rows, "call_train", lambda options: calls.append(options) or code)
    assert tables.main([*options, "--rows", "N=5", "N=7", "--out", str(tmp_path), "--results", str(tmp_path)]) == 130
    assert len(calls) == 1


def test_a_run_of_another_version_is_not_taken_for_this_one(trained, tmp_path, no_training, capsys):
    """With the same options: a version of train.py that would compute something else from them."""
    place, options = trained
    state = torch.load(place / "runs" / "stages_1_seed5" / "last.pth", weights_only=True)
    (tmp_path / "stages_1_seed5").mkdir()
    torch.save(state | {"version": 2}, tmp_path / "stages_1_seed5" / "last.pth")
    assert tables.main([*options, "--out", str(tmp_path), *TRAIN]) == 1
    assert "last.pth: trained with another version of train.py; move it away" in capsys.readouterr().err


def test_a_run_is_measured_if_one_of_its_rows_is_missing(tmp_path):
    run, about = Run(FULL, 0, tmp_path, ()), {"seed": "0", "steps": "300"}
    rows = [{**about, "table": table} for table in FULL.methods for _ in range(4)]      # 2 uses, 2 protocols
    assert table_rows.is_recorded(run, rows, about) and not table_rows.is_recorded(run, rows[1:], about)
    assert not table_rows.is_recorded(run, [*rows[1:], rows[0] | {"steps": "600"}], about)


def test_a_training_that_fails_does_not_stop_the_others(trained, tmp_path, monkeypatch, capsys):
    _, options = trained
    options = [*options, "--rows", "N=5", "N=7", "--out", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr(table_rows, "call_train", lambda options: 1)
    assert tables.main([*options, *TRAIN]) == 1
    error = capsys.readouterr().err
    assert "not measured: N=5, seed 5: train.py ended with code 1" in error and "N=7" in error


def test_rows_of_other_options_are_kept_beside_one_another(tmp_path):
    command = "python train.py --data d --amp --steps 300 --batch 8 --crops {} --val-every 0 --seed {} --out o {}"
    rows = [measured("N=3", "1" * 6, seed=str(seed), command=command.format(crops, seed, more))
            for seed, crops, more in ((0, 200, ""), (1, 200, ""), (0, 800, ""), (0, 200, "--saliency-form l2"))]
    rows[2]["command"] = rows[2]["command"].replace("--data d", "--data elsewhere")
    record(tmp_path / "tables.csv", COLUMNS, rows, identity)
    record(tmp_path / "tables.csv", COLUMNS, [rows[1] | {"EN": "2"}], identity)
    kinds = [line.kind for line in tables.collect_lines("1", "FLIR-val", "paper", tmp_path) if line.kind != tables.PRINTED]
    assert kinds == [f"eval, plain, 300 steps, crops 8 of 128 --crops {end}" for end in ("200", "800", "200 --saliency-form l2")]
    row = measured("N=5", "1" * 6, command=command.format(200, 0, "--stages 5"))
    assert table_rows.further_options(row) == "--crops 200"        # --stages 5 is what N=5 means


def test_the_full_model_is_trained_once_for_its_tables(trained, data, tmp_path):
    place, _ = trained
    shutil.copytree(place / "runs" / "stages_1_seed5", tmp_path / "full")
    about = json.loads((tmp_path / "full" / "best.json").read_text())
    (tmp_path / "full" / "best.json").write_text(json.dumps(about | {"steps": 1, "minutes": 99}))
    args = tables.parse(["--table", "1", "--results", str(tmp_path)])
    pairs = named_pairs("roadscene", data / "RoadScene")[:2]
    table_rows.score_run(Run(FULL, 5, tmp_path / "full", ()), pairs, args)
    rows = [row for row in rows_in(tmp_path / "tables.csv") if row["use"] == "eval" and row["protocol"] == "paper"]
    assert {row["table"]: row["method"] for row in rows} == {
        "1": "N=3", "2": "lambda2=5", "3": "RPFNet", "contrast": "recipe paper"}
    assert len({row["EN"] for row in rows}) == 1
    assert {row["steps"] for row in rows} == {"2"} and all(float(row["minutes"]) < 99 for row in rows)    # of last.pth


# --- shipped weights ---


def test_an_incomplete_data_set_does_not_replace_the_rows_of_the_repository(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table_rows, "RESULTS", tmp_path)
    run = ["--table", "main", "--run", "--rows", "average", "--data", str(data), "--results"]
    assert tables.main([*run, str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"FLIR-val: {data / 'RoadScene'} has 4 pairs, the published set 40; " in error
    assert "record such rows elsewhere (tables.py: --results" in error
    assert not any(tmp_path.iterdir())
    assert tables.main([*run, str(tmp_path / "own")]) == 0


def test_what_cannot_be_measured_is_one_line_and_the_others_go_on(trained, data, tmp_path, monkeypatch, capsys):
    place, _ = trained
    monkeypatch.setitem(table_rows.SHIPPED, "ours, recipe paper", tmp_path / "absent.pth")
    monkeypatch.setitem(table_rows.SHIPPED, "ours, recipe contrast", place / "runs" / "stages_1_seed5" / "best.pth")
    folders = {"Broken": 4, "Small": 4, "Whole": 4, "Part": 3}
    pairs = named_pairs("roadscene", data / "RoadScene")[:4]
    for name, count in folders.items():
        (tmp_path / "FLIR-val" / name).mkdir(parents=True)
        for pair in pairs[:count]:
            shutil.copy(pair.ir, tmp_path / "FLIR-val" / name)
    bad = [tmp_path / "FLIR-val" / name / pairs[1].ir.name for name in ("Broken", "Small")]
    bad[0].write_bytes(b"no image")
    cv2.imwrite(str(bad[1]), np.zeros((48, 40), np.uint8))
    options = ["--table", "main", "--data", str(data), "--results", str(tmp_path)]
    fused = [f"{name}={tmp_path}/{{dataset}}/{name}" for name in folders]
    assert tables.main([*options, "--run", "--fused", *fused]) == 1
    out, error = capsys.readouterr()
    assert f"ours, recipe paper: {tmp_path / 'absent.pth'}: no such checkpoint" in error
    assert "has 3 of 4 images of FLIR-val" in error and len(error.split("not measured: ")) == 5
    assert f"FLIR-val, Broken: {bad[0]}: not an image" in error
    assert f"FLIR-val, Small: {bad[1]}: is 40x48 and its sources are 48x48" in error
    rows = {(row["method"], row["use"]): row for row in rows_in(tmp_path / "tables.csv") if row["protocol"] == "paper"}
    assert list(rows) == [("ours, recipe contrast", "eval"), ("ours, recipe contrast", "as published"), ("average", ""),
                          ("maximum", ""), ("Whole", "")]
    assert rows["ours, recipe contrast", "eval"]["steps"] == "2" and rows["average", ""]["steps"] == ""
    assert all(row["command"].startswith("python tools/tables.py --table main") for row in rows.values())
    mean = sum(metrics.EN(read_gray(pair.ir)) for pair in pairs) / 4
    assert float(rows["Whole", ""]["EN"]) == pytest.approx(mean, abs=1e-4)
    assert "0.675" in out           # the paper's row beside them


def test_the_released_network_is_measured_and_printed_before_ours(data, tmp_path, monkeypatch, capsys):
    network = ReleasedNet().eval()
    monkeypatch.setattr(table_rows, "load_released", lambda path: network)
    (tmp_path / "Model.pth").write_bytes(b"weights")
    options = ["--table", "main", "--data", str(data), "--results", str(tmp_path), "--format", "markdown"]
    assert tables.main([*options, "--run", "--rows", "average"]) == 0
    assert tables.main([*options, "--run", "--rows", RELEASED, "--released", str(tmp_path / "Model.pth")]) == 0
    out = capsys.readouterr().out
    assert out.rindex("| authors' release") < out.rindex("| average")
    rows = {row["range"]: row for row in rows_in(tmp_path / "tables.csv") if row["method"] == RELEASED}
    assert {*rows} == {"plain", "studio"} and all(row["use"] == "as published" for row in rows.values())
    assert rows["plain"]["source"] == f"{hashed_name(tmp_path / 'Model.pth')} of the authors' repository"
    pairs = named_pairs("roadscene", data / "RoadScene")
    images = [(read_gray(pair.ir), luma(read_gray(pair.vis))) for pair in pairs]
    means = [sum(metrics.EN(fuse_pair(network, ir, vis, studio)) for ir, vis in images) / len(images)
             for studio in (False, True)]
    recorded = [float(rows[kind]["EN"]) for kind in ("plain", "studio")]     # EN is the same in both protocols
    assert recorded == pytest.approx(means, abs=1e-4) and means[0] != means[1]
    (tmp_path / "Model.pth").unlink()
    monkeypatch.undo()
    assert tables.main([*options, "--run", "--rows", RELEASED, "--released", str(tmp_path / "Model.pth")]) == 1
    assert f"not measured: {RELEASED}: " in capsys.readouterr().err


def test_a_missing_data_set_is_one_line(data, tmp_path, capsys):
    assert tables.main(["--table", "4", "--run", "--data", str(data), "--results", str(tmp_path), "--datasets", "TNO",
                        "--rows", "average"]) == 1
    assert "not measured: TNO: " in capsys.readouterr().err


def test_after_ctrl_c_the_rows_that_could_not_be_measured_are_named(data, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(table_rows, "score", interrupted)
    monkeypatch.setitem(table_rows.SHIPPED, "ours, recipe paper", tmp_path / "absent.pth")
    code = tables.main(["--table", "main", "--run", "--data", str(data), "--results", str(tmp_path), "--rows",
                        "ours, recipe paper", "average"])
    error = capsys.readouterr().err
    assert code == 130 and "interrupted" in error and "not measured: ours, recipe paper: " in error


# --- parts ---


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RPFNet(channels=4, stages=2).eval()


@torch.inference_mode()
def test_parts_are_off_in_a_copy(model):
    f_f, f_r = torch.rand(2, 1, 4, 20, 20)
    whole = model.stages[1](f_f, f_r).fusion
    bare = without_cpm(without_spectrum(model)).stages[1]
    torch.testing.assert_close(bare(f_f, f_r).fusion, model.stages[1].fdfm.spatial(f_f))
    torch.testing.assert_close(bare(f_f, f_r).residual, model.stages[1].rpm(f_r))
    torch.testing.assert_close(model.stages[1](f_f, f_r).fusion, whole)
    assert not torch.allclose(bare(f_f, f_r).fusion, whole, atol=1e-3)


def test_parts_are_measured_against_the_whole(model, data):
    pairs = named_pairs("roadscene", data / "RoadScene")[:2]
    parts = table_rows.score_parts(model, pairs, "tiny")
    assert parts["whole"]["change"] == 0 and all(part["change"] > 0 for name, part in parts.items() if name != "whole")
    expected = []
    for pair in pairs:
        ir, vis = read_gray(pair.ir), read_gray(pair.vis)
        hot = ir > ir.mean() + ir.std()
        whole, exchanged = (x.astype(float) for x in (model.fuse(ir, vis), model.fuse(vis, ir)))
        expected.append((np.abs(whole - exchanged).mean(), exchanged[hot].mean() / ir[hot].mean()))
    exchanged = parts["sources exchanged"]
    assert (exchanged["change"], exchanged["all hot"]) == pytest.approx(np.mean(expected, 0))


def test_parts_are_recorded_and_printed(trained, data, tmp_path, monkeypatch, capsys):
    place, _ = trained
    monkeypatch.setitem(table_rows.SHIPPED, "ours, recipe paper", tmp_path / "absent.pth")
    monkeypatch.setitem(table_rows.SHIPPED, "ours, recipe contrast", place / "runs" / "stages_1_seed5" / "best.pth")
    monkeypatch.delitem(table_rows.STUDENTS, "ours, tiny")
    options = ["--table", "parts", "--data", str(data), "--results", str(tmp_path)]
    assert tables.main(options) == 0 and "add --run" in capsys.readouterr().out
    assert tables.main([*options, "--run"]) == 1
    problems = capsys.readouterr().err
    assert "absent.pth: no such checkpoint" in problems and "MRI-PET: " in problems
    rows = rows_in(tmp_path / "parts.csv")
    assert [(row["method"], row["part"]) for row in rows] == [
        (method, part) for method in ("ours, recipe contrast", "ours, small")
        for part in ("whole", "spectrum off", "CPM off", "sources exchanged")]
    assert {row["dataset"] for row in rows} == {"FLIR-val"}
    assert tables.main(options) == 0 and capsys.readouterr().out.count("spectrum off") == 2
    assert tables.main([*options, "--csv", str(tmp_path / "out.csv")]) == 0 and rows_in(tmp_path / "out.csv") == rows
    capsys.readouterr()
    assert tables.main([*options, "--datasets", "MRI-PET", "--csv", str(tmp_path / "out.csv")]) == 0
    assert "add --run" in capsys.readouterr().out and rows_in(tmp_path / "out.csv") == []


def test_parts_that_cannot_be_measured_are_one_line(trained, data, tmp_path, monkeypatch, capsys):
    score = table_rows.score_parts

    def broken(model, pairs, label):
        if "contrast" in label:
            raise RuntimeError("not enough memory")
        return score(model, pairs, label)
    monkeypatch.setattr(table_rows, "score_parts", broken)
    for name in ("recipe paper", "recipe contrast"):
        monkeypatch.setitem(table_rows.SHIPPED, f"ours, {name}", trained[0] / "runs" / "stages_1_seed5" / "best.pth")
    assert tables.main(["--table", "parts", "--data", str(data), "--results", str(tmp_path), "--run", "--rows",
                        "ours, recipe contrast", "ours, recipe paper"]) == 1
    assert capsys.readouterr().err.endswith("not measured: FLIR-val, ours, recipe contrast: not enough memory\n")
    assert {row["method"] for row in rows_in(tmp_path / "parts.csv")} == {"ours, recipe paper"}


def test_parts_need_only_the_pairs_of_the_named_networks(trained, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(table_rows.SHIPPED, "ours, recipe contrast", trained[0] / "runs" / "stages_1_seed5" / "best.pth")
    options = ["--table", "parts", "--data", str(data), "--results", str(tmp_path), "--run"]      # without Harvard/
    assert tables.main([*options, "--rows", "ours, recipe contrast"]) == 0, capsys.readouterr().err


def test_weights_of_several_trainings_have_the_steps_of_all_and_no_time(trained, tmp_path):
    about = json.loads((trained[0] / "runs" / "stages_1_seed5" / "best.json").read_text())
    for total, described in (({}, ("2", str(about["minutes"]))), ({"total_steps": 900}, ("900", ""))):
        (tmp_path / "a.json").write_text(json.dumps(about | total))
        training = table_rows.training_of(tmp_path / "a.json")
        assert (training["steps"], training["minutes"]) == described


@pytest.mark.parametrize(("table", "checkpoints"), [("4", "SHIPPED"), ("6", "MEDICAL"), ("main", "SHIPPED")])
def test_medical_pairs_are_fused_by_the_medical_network(tmp_path, monkeypatch, table, checkpoints):
    loaded = []
    monkeypatch.setattr(table_rows, "load_shipped", lambda paths, *_: loaded.append(paths) or {})
    assert tables.main(["--table", table, "--run", "--data", str(tmp_path / "absent"), "--results", str(tmp_path)]) == 1
    assert loaded == [getattr(table_rows, checkpoints)]


def test_weights_without_their_training_are_named(trained, tmp_path):
    place, _ = trained
    about = json.loads((place / "runs" / "stages_1_seed5" / "best.json").read_text())
    del about["minutes"]
    (tmp_path / "a.json").write_text(json.dumps(about))
    with pytest.raises(table_rows.TableError, match=r"a\.json: .*minutes"):
        table_rows.training_of(tmp_path / "a.json")


def test_uses_are_the_ways_of_the_python_interface(model):
    ir, vis = (np.random.default_rng(seed).integers(0, 256, (32, 40), np.uint8) for seed in (0, 1))
    eval_, published = (table_rows.of_network(model, use)(None, ir, vis) for use in table_rows.USES)
    assert np.array_equal(eval_, model.fuse(ir, vis))
    assert np.array_equal(published, model.fuse(ir, vis, studio_range=True, as_published=True))


def test_parts_have_the_names_of_what_is_off(model, data):
    pair = named_pairs("roadscene", data / "RoadScene")[0]
    parts = table_rows.score_parts(model, [pair], "one pair")
    whole, ir, vis = model.fuse(read_gray(pair.ir), read_gray(pair.vis)).astype(float), read_gray(pair.ir), read_gray(pair.vis)
    for name, without in (("spectrum off", table_rows.without_spectrum), ("CPM off", table_rows.without_cpm)):
        assert parts[name]["change"] == pytest.approx(np.abs(without(model).fuse(ir, vis) - whole).mean()), name


def test_baselines_have_their_names():
    ir, vis = np.array([[0, 100]], np.uint8), np.array([[50, 20]], np.uint8)
    fused = {name: table_rows.of_baseline(base)(None, ir, vis).tolist() for name, base in table_rows.BASELINES.items()}
    assert fused == {"average": [[25, 60]], "maximum": [[50, 100]]}


def test_again_scores_again(data, tmp_path, monkeypatch):
    scored, score = [], table_rows.score
    monkeypatch.setattr(table_rows, "named_pairs", lambda *place: named_pairs(*place)[:2])
    monkeypatch.setattr(table_rows, "score", lambda *args: scored.append(args[-1]) or score(*args))
    run = ["--table", "1", "--run", "--rows", "N=1", "--data", str(data), "--results", str(tmp_path), "--out", str(tmp_path)]
    for more, count in (([], 2), (["--again"], 4)):
        assert tables.main([*run, *TINY, *more, *TRAIN]) == 0
        assert len(scored) == count


def test_each_of_our_networks_is_compared_with_the_papers():
    for method in ("ours, recipe paper", "ours, recipe contrast", "ours, recipe medical", "authors' release"):
        assert table_rows.papers_name(method) == "RPFNet"
    assert table_rows.papers_name("average") == "average"
