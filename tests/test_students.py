"""tools/students.py: networks compared with their teacher, and what is printed of known rows."""
import csv
import math
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import trained, write_pairs, write_weights

import metrics
from dataset import find_pairs
from support.records import processor
from tools import students, table_rows
from tools.table_rows import gray_pair, record


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(root, ("a", "b"), (48, 56))
    return find_pairs(root / "ir", root / "vis")[0]


@pytest.fixture(scope="module")
def networks():
    teacher, student = trained(stages=2), trained(stages=1)
    return {"contrast": teacher, "small": student, "same": teacher}


def test_columns_are_means_and_psnr_is_that_of_the_teachers_picture(pairs, networks):
    rows = students.compare(networks, pairs, "two pairs")
    pictures = [[network.fuse(*gray_pair(pair)).astype(float) for pair in pairs] for network in networks.values()]
    errors = [((a - b) ** 2).mean() for a, b in zip(*pictures[:2])]
    assert rows["small"]["PSNR"] == pytest.approx(np.mean([10 * math.log10(255**2 / error) for error in errors]))
    assert rows["same"]["PSNR"] == math.inf
    assert rows["small"]["EN"] == pytest.approx(np.mean([metrics.EN(np.uint8(picture)) for picture in pictures[1]]))
    assert "PSNR" not in rows["contrast"] and "time" not in rows["contrast"]
    assert rows["same"]["EN"] == rows["contrast"]["EN"] and rows["small"]["time"] > 0


def test_measured_rows_are_recorded_and_a_missing_data_set_is_one_line(pairs, tmp_path, monkeypatch, capsys):
    def pairs_of(dataset, data, results):
        if dataset == "TNO":
            raise students.DataError("TNO: no such folder")
        return [*pairs, pairs[0]._replace(ir=tmp_path / "absent.png")] if dataset == "MSRS" else pairs
    monkeypatch.setattr(students, "pairs_of", pairs_of)
    monkeypatch.setattr(students, "TEACHER", write_weights(tmp_path / "teacher.pth", trained(stages=2)))
    monkeypatch.setattr(table_rows, "device_name", lambda device: "NVIDIA H200")     # of the default device of other tools
    student = write_weights(tmp_path / "student.pth", trained(stages=1))
    options = ["--datasets", "MSRS", "FLIR-val", "TNO", "--students", student, "--csv", str(tmp_path / "rows.csv")]
    assert students.main(options) == 1
    error = capsys.readouterr().err
    assert "not measured: TNO: TNO: no such folder" in error and f"not measured: MSRS: {tmp_path / 'absent.png'}: " in error
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dataset"] for row in rows] == ["FLIR-val"] * 2 and rows[0]["images"] == "2"
    assert re.fullmatch("student-[0-9a-f]{8}", rows[1]["network"]) and float(rows[1]["PSNR"]) > 0 and rows[1]["commit"]
    assert rows[0]["machine"].startswith(processor()) and rows[0]["machine"].endswith(" threads")


def test_the_teacher_is_no_student(tmp_path, capsys):
    assert students.main(["--students", "contrast", "--csv", str(tmp_path / "rows.csv")]) == 1
    assert capsys.readouterr().err == "students.py: --students contrast: is the teacher\n"


def test_after_ctrl_c_the_data_sets_that_could_not_be_read_are_named(tmp_path, monkeypatch, capsys):
    def pairs_of(dataset, data, results):
        if dataset == "TNO":
            raise students.DataError("TNO: no such folder")
        raise KeyboardInterrupt
    monkeypatch.setattr(students, "pairs_of", pairs_of)
    student = write_weights(tmp_path / "student.pth", trained(stages=1))
    code = students.main(["--datasets", "TNO", "MSRS", "--students", student, "--csv", str(tmp_path / "rows.csv")])
    error = capsys.readouterr().err
    assert code == 130 and "interrupted" in error and "not measured: TNO: TNO: no such folder" in error


def test_the_printed_table_of_known_rows(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    assert students.main(["--print", "--csv", str(path)]) == 1 and "holds no rows" in capsys.readouterr().err
    common = dict.fromkeys(students.COLUMNS, "") | {"dataset": "TNO", "images": "40"}
    record(path, students.COLUMNS, [
        common | dict.fromkeys(students.SCORES, "2.0000") | {"network": "contrast"},
        common | dict.fromkeys(students.SCORES, "1.9000") | {"network": "tiny", "PSNR": "31.2500", "time": "0.1400"},
    ], lambda row: (row["dataset"], row["network"]))
    assert students.main(["--print", "--csv", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["TNO", "contrast", *["2.000"] * 6] in lines
    assert ["tiny", *["1.900"] * 6, "31.2", "0.14"] in lines
    assert ["difference,", "%", *["-5.0"] * 6] in lines and ["pairs:", "TNO", "40"] in lines


def test_a_new_row_is_printed_with_its_data_set(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    common = dict.fromkeys(students.COLUMNS, "") | dict.fromkeys(students.SCORES, "2.0000") | {"images": "40"}
    rows = [common | {"dataset": name, "network": "contrast"} for name in ("TNO", "MSRS")]
    rows.append(rows[0] | {"network": "tiny", "PSNR": "31", "time": "0.1"})
    record(path, students.COLUMNS, rows, lambda row: (row["dataset"], row["network"]))
    assert students.main(["--print", "--csv", str(path)]) == 0
    networks = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert networks.index(["TNO", "contrast"]) < networks.index(["tiny", "2.000"]) < networks.index(["MSRS", "contrast"])
    assert students.main(["--print", "--csv", str(path), "--datasets", "TNO"]) == 1
    assert "--print goes without --datasets" in capsys.readouterr().err


def test_an_incomplete_data_set_is_not_recorded_in_results(tmp_path, monkeypatch, capsys):
    for side in ("IR1.bmp", "VIS1.bmp"):
        (tmp_path / "TNO").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "TNO" / side), np.zeros((48, 48), np.uint8))
    monkeypatch.setattr(table_rows, "RESULTS", tmp_path)
    assert students.main(["--data", str(tmp_path), "--datasets", "TNO", "--students", "tiny",
                          "--csv", str(tmp_path / "rows.csv")]) == 1
    assert "not measured: TNO: " in (error := capsys.readouterr().err) and "has 1 pairs, the published set 40" in error
    assert not (tmp_path / "rows.csv").exists()


def test_time_is_the_students_divided_by_the_teachers(tmp_path, monkeypatch):
    clock = [0.0]

    class Network:
        def __init__(self, seconds):
            self.seconds = seconds

        def fuse(self, ir, vis):
            clock[0] += self.seconds
            return ir
    monkeypatch.setattr(students, "time", SimpleNamespace(process_time=lambda: clock[0]))
    write_pairs(tmp_path, "ab", (48, 56))
    pairs = find_pairs(tmp_path / "ir", tmp_path / "vis")[0]
    assert students.compare({"contrast": Network(4), "small": Network(1)}, pairs, "")["small"]["time"] == 0.25
