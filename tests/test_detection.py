"""tools/detection.py: data sets from VOC and YOLO boxes, one split for all methods, recorded rows, the printed table."""
import csv
import importlib.util
import os
import random
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from images import DataError, read_vis
from support.outputs import as_csv
from tools import detection, detector
from tools.detection_data import M3FD_CLASSES, Box, as_yolo, find_labels, image_hash, read_voc, read_yolo, split

INSTALLED = importlib.util.find_spec("ultralytics") is not None      # imported by tools/detector.py alone, which sets it up
NAMES = [str(number) for number in range(10)]
VOC = """<annotation><size><width>40</width><height>20</height><depth>3</depth></size>
{}</annotation>"""
OBJECT = """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def write_image(path, seed, size=(20, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def root(tmp_path):
    """Ten images of two methods, with YOLO boxes."""
    (tmp_path / "labels").mkdir()
    for seed, name in enumerate(NAMES):
        write_image(tmp_path / "ir" / f"{name}.png", seed)
        write_image(tmp_path / "fused" / f"{name}.png", 100 + seed)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.5\n2  0.1 0.2 0.1 0.1  \n")
    return tmp_path


def prepare(root, *options, images=("infrared=ir", "RPFNet=fused"), labels="labels", classes=("person", "bicycle", "car")):
    specs = [f"{name}={root / folder}" for name, folder in (text.split("=") for text in images)]
    return detection.main(["prepare", "--images", *specs, "--labels", str(root / labels), "--out", str(root / "set"),
                           *(["--classes", *classes] if classes else []), *options])


def listed(root, part):
    return (root / "set" / f"{part}.txt").read_text().split()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# ---------------------------------------------------------------------------------------------
# Boxes


def test_voc_boxes_become_shares_of_the_image(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(VOC.format(OBJECT.format("Lamp", 10, 5, 30, 15) + OBJECT.format("People", -4, 0, 8, 40)))
    assert read_voc(path, M3FD_CLASSES) == [Box(4, 0.5, 0.5, 0.5, 0.5), Box(0, 0.1, 0.5, 0.2, 1.0)]    # cut at the borders


def test_a_voc_file_without_objects_is_an_image_without_boxes(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(VOC.format(""))
    assert read_voc(path, M3FD_CLASSES) == []


@pytest.mark.parametrize("text, problem", [
    ("<annotation>", "not a VOC file"),
    ("<annotation/>", "not a VOC file"),
    (VOC.format(OBJECT.format("Tram", 1, 1, 2, 2)), "class 'Tram' is none of People Car .*--classes"),
    (VOC.format(OBJECT.format("Car", 1, "x", 2, 2)), "not a VOC file"),
    (VOC.format(OBJECT.format("Car", 5, 1, 5, 2)), "no area"),
    (VOC.format("").replace("<width>40", "<width>0"), "not positive"),
])
def test_a_broken_voc_file_is_named(tmp_path, text, problem):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=f"a.xml: .*{problem}"):
        read_voc(path, M3FD_CLASSES)


@pytest.mark.parametrize("line, problem", [
    ("0 0.5 0.5 0.1", "line 2: expected"), ("0 0.5 0.5 0.1 x", "line 2: expected"), ("3 0.5 0.5 0.1 0.1", "none of 0 to 2"),
    ("0.5 0.5 0.5 0.1 0.1", "class 0.5"), ("0 1.5 0.5 0.1 0.1", "leaves the image"), ("0 0.5 0.5 0 0.1", "no area"),
    ("0 nan 0.5 0.1 0.1", "leaves the image"), ("inf 0.5 0.5 0.1 0.1", "class inf"),
])
def test_a_broken_yolo_file_is_named(tmp_path, line, problem):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match=f"a.txt: .*{problem}"):
        read_yolo(path, ("person", "bicycle", "car"))


def test_yolo_boxes_are_clipped_to_the_image(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0 0.95 0.5 0.6 0.2\n1 0.123457 0.5 0.1 1.0\n")
    first, second = read_yolo(path, ("person", "bicycle"))
    assert first == pytest.approx(Box(0, 0.825, 0.5, 0.35, 0.2))
    assert as_yolo([second]) == b"1 0.123457 0.500000 0.100000 1.000000\n"


def test_the_mark_of_windows_at_the_begin_of_a_file_is_no_part_of_a_class(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n", encoding="utf-8-sig")
    assert read_yolo(tmp_path / "a.txt", ("person", "bicycle")) == [Box(1, 0.5, 0.5, 0.5, 0.5)]


def test_labels_of_two_kinds_are_refused_and_class_lists_are_no_labels(tmp_path):
    for name in ("10.txt", "9.txt", "classes.txt", "notes.md", "._9.txt", "._9.xml"):
        (tmp_path / name).touch()
    assert list(find_labels(tmp_path)) == ["9", "10"]
    (tmp_path / "9.xml").touch()
    with pytest.raises(DataError, match="both .xml and .txt"):
        find_labels(tmp_path)


def test_two_labels_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.TXT").touch()
    (tmp_path / "a.txt").touch()
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system ignores case")
    with pytest.raises(DataError, match="a.TXT and a.txt share a name; keep one"):
        find_labels(tmp_path)


# ---------------------------------------------------------------------------------------------
# prepare


def test_the_split_has_the_shares_and_depends_on_names_and_seed_alone():
    names = [str(number) for number in range(361)]
    parts = split(names, 0)
    assert [len(some) for some in parts.values()] == [217, 72, 72]
    assert sorted(sum(parts.values(), [])) == sorted(names)
    assert parts == split(random.Random(1).sample(names, 361), 0) != split(names, 1)
    assert [len(some) for some in split(names[:3], 0).values()] == [1, 1, 1]


def test_a_data_set_for_each_method_with_one_split(root, capsys):
    assert prepare(root) == 0
    assert "6 train, 2 val, 2 test images; boxes: 10 person, 0 bicycle, 10 car" in capsys.readouterr().out
    assert sorted(sum((listed(root, part) for part in ("train", "val", "test")), [])) == NAMES
    for method, source in (("infrared", "ir"), ("RPFNet", "fused")):
        folder = root / "set" / method
        assert files(folder) == sorted(["data.yaml", *(f"{kind}/{part}/{name}.{suffix}" for part in ("train", "val", "test")
                                        for name in listed(root, part)
                                        for kind, suffix in (("images", "png"), ("labels", "txt")))])
        name = listed(root, "test")[0]
        assert (read_vis(folder / f"images/test/{name}.png") == read_vis(root / source / f"{name}.png")).all()
        label, *shares = (folder / f"labels/test/{name}.txt").read_text().splitlines()[1].split()
        assert (label, *map(float, shares)) == ("2", 0.1, 0.2, 0.1, 0.1)
        assert 'names: ["person", "bicycle", "car"]' in (folder / "data.yaml").read_text()


@pytest.mark.parametrize("missing", [(), ("symlink",), ("symlink", "link")])
def test_images_are_linked_or_copied(root, monkeypatch, capsys, missing):
    def refuse(*_):
        raise OSError("not here")
    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    assert prepare(root) == 0
    name = listed(root, "train")[0]
    made, source = root / f"set/RPFNet/images/train/{name}.png", root / f"fused/{name}.png"
    assert made.read_bytes() == source.read_bytes()
    assert made.is_symlink() == (not missing) and made.samefile(source) == (len(missing) < 2)
    note = "note: no symbolic links here: run prepare again after images change: RPFNet, infrared\n"
    assert capsys.readouterr().err == (note if missing else "")


def test_names_match_whatever_form_their_accents_have(root):
    (root / "labels/3.txt").rename(root / "labels/cafe\u0301.txt")
    for folder, name in (("ir", "caf\u00e9"), ("fused", "cafe\u0301")):
        (root / f"{folder}/3.png").rename(root / f"{folder}/{name}.png")
    assert prepare(root) == 0
    assert "caf\u00e9" in [name for part in ("train", "val", "test") for name in listed(root, part)]
    for method in ("infrared", "RPFNet"):       # the detector takes the label whose name has the same letters
        images, labels = (files(root / "set" / method / kind) for kind in ("images", "labels"))
        assert [name.removesuffix(".png") for name in images] == [name.removesuffix(".txt") for name in labels]


def test_a_name_with_undecodable_bytes_is_named_before_anything_is_written(root, capsys):
    for folder, suffix in (("labels", "txt"), ("ir", "png"), ("fused", "png")):
        try:
            (root / folder / f"3.{suffix}").rename(root / folder / os.fsdecode(b"a\xff." + suffix.encode()))
        except (OSError, UnicodeError):
            pytest.skip("this system has only decodable names")
    assert prepare(root) == 1
    error = capsys.readouterr().err
    assert r"a\udcff.txt: its name has undecodable bytes; rename it" in error and error.count("\n") == 1
    assert not (root / "set").exists()


def test_what_cannot_be_used_is_left_out_of_all_methods_and_named(root, capsys):
    (root / "labels/1.txt").write_text("seven\n")
    (root / "fused/7.png").unlink()
    write_image(root / "fused/7.jpg", 0)
    (root / "fused/7.jpg").write_bytes((root / "fused/7.jpg").read_bytes() + b"\0")
    (root / "fused/2.png").write_bytes(b"\x89PNG")
    (root / "ir/3.png").unlink()
    (root / "labels/4.txt").unlink()
    cv2.imwrite(str(root / "ir/5.png"), np.full((20, 40), 3000, np.uint16))
    write_image(root / "fused/6.png", 0, size=(16, 40))
    assert prepare(root) == 1
    text = capsys.readouterr().err
    for line in ("1.txt: line 1: expected", "2.png: not an image", "infrared: 1 without an image: 3",
                 "infrared: 1 without a label: 4", "RPFNet: 1 without a label: 4", "5.png: 16 bits",
                 "6.png: is 40x16 and ", "7.jpg: has data after the end of the JPEG image"):
        assert line in text
    used = sorted(sum((listed(root, part) for part in ("train", "val", "test")), []))
    assert used == ["0", "8", "9"]
    assert {path.stem for path in (root / "set/infrared/images").rglob("*.png")} == set(used)


def test_a_method_that_comes_later_needs_the_same_split(root, capsys):
    assert prepare(root, images=["infrared=ir"]) == 0
    assert prepare(root, images=["RPFNet=fused"]) == 0
    assert prepare(root, "--seed", "1", images=["RPFNet=fused"]) == 1
    assert "the split there is another one" in capsys.readouterr().err
    (root / "fused/0.png").unlink()
    assert prepare(root, images=["Other=fused"]) == 1
    assert "the split there is another one" in capsys.readouterr().err and not (root / "set/Other").exists()


def test_a_method_that_comes_later_needs_the_same_boxes_and_classes(root, capsys):
    assert prepare(root, images=["infrared=ir"]) == 0
    code = detection.split_code(root / "set")
    assert prepare(root, images=["RPFNet=fused"], classes=("bicycle", "person", "car")) == 1
    (root / "labels/3.txt").write_text("0 0.5 0.5 0.25 0.4\n")
    assert prepare(root, images=["RPFNet=fused"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("the boxes or classes there are others") == 2 and not (root / "set/RPFNet").exists()
    shutil.rmtree(root / "set")
    assert prepare(root, images=["infrared=ir"]) == 0
    assert detection.split_code(root / "set") != code       # rows of other boxes are not those of this data set


def test_a_method_that_comes_later_needs_the_same_image_sizes(root, capsys):
    assert prepare(root, images=["infrared=ir"]) == 0
    for seed, name in enumerate(NAMES):
        write_image(root / "cropped" / f"{name}.png", seed, size=(20, 40) if name != "6" else (16, 40))
    assert prepare(root, images=["Mine=cropped"]) == 1
    error = capsys.readouterr().err
    assert f"{root / 'cropped/6.png'}: is 40x16 and {root / 'set/infrared/images'}" in error
    assert "6.png 40x20; fuse it at that size" in error and not (root / "set/Mine").exists()
    (root / "ir/6.png").unlink()        # a broken link in the data set says nothing about the size
    assert prepare(root, images=["RPFNet=fused"]) == 0


def test_a_method_can_be_prepared_again_at_another_size(root):
    assert prepare(root, images=["infrared=ir"]) == 0
    for seed, name in enumerate(NAMES):
        write_image(root / "ir" / f"{name}.png", seed, size=(10, 20))
    assert prepare(root, images=["infrared=ir"]) == 0


def test_voc_boxes_of_another_image_size_are_left_out(root, capsys):
    for path in (root / "labels").iterdir():
        path.with_suffix(".xml").write_text(VOC.format(OBJECT.format("Truck", 10, 5, 30, 15)))
        path.unlink()
    write_image(root / "ir/6.png", 0, size=(16, 40))
    write_image(root / "fused/6.png", 0, size=(16, 40))
    assert prepare(root, classes=()) == 1
    assert "6.xml: <size> is 40x20 and the images are 40x16; use images of that size" in capsys.readouterr().err
    assert not list((root / "set").rglob("6.png")) and len(list((root / "set/infrared/images").rglob("*.png"))) == 9


def test_files_of_another_data_set_are_never_mixed_in(root, capsys):
    (root / "set/RPFNet/images/train").mkdir(parents=True)
    (root / "set/RPFNet/images/train/.DS_Store").write_bytes(b"")
    assert prepare(root) == 0
    write_image(root / "set/RPFNet/images/train/old.png", 0)
    assert prepare(root) == 1
    assert "holds files of another data set (old.png); remove" in capsys.readouterr().err


def test_sources_are_never_written_over(root, capsys):
    place = root / "set/RPFNet/images/train"
    place.parent.mkdir(parents=True)
    (root / "fused").rename(place)
    assert prepare(root, images=["RPFNet=set/RPFNet/images/train"]) == 1
    assert "holds source images" in capsys.readouterr().err and files(place) == [f"{name}.png" for name in NAMES]


@pytest.mark.parametrize("options, problem", [
    ({"classes": ()}, "name the classes in their order"),
    ({"labels": "nowhere"}, "nowhere: no such folder"),
    ({"classes": ("person", "seed")}, "--classes seed: the name of a column of the results"),
    ({"classes": ("person", "car", "person")}, "--classes: the name person stands twice"),
    ({"labels": "ir"}, "ir: no labels; expected"),
    ({"images": ["a=ir", "a=fused"]}, "the name a stands twice"),
    ({"images": ["a=labels"]}, "no label has an image of the same name"),
])
def test_one_line_says_what_is_wrong(root, capsys, options, problem):
    assert prepare(root, **options) == 1
    assert problem in capsys.readouterr().err


def test_the_classes_of_m3fd_are_the_default_for_voc(root):
    for path in (root / "labels").iterdir():
        path.with_suffix(".xml").write_text(VOC.format(OBJECT.format("Truck", 10, 5, 30, 15)))
        path.unlink()
    assert prepare(root, classes=()) == 0
    name = listed(root, "val")[0]
    assert (root / f"set/RPFNet/labels/val/{name}.txt").read_text() == "5 0.500000 0.500000 0.500000 0.500000\n"


def luma_of(colour):
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def test_the_average_has_the_visible_colours(tmp_path, capsys):
    for side, level in (("ir", (200, 200, 200)), ("vis", (60, 100, 80))):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / "a.png"), np.full((8, 8, 3), level, np.uint8))
    write_image(tmp_path / "vis/lonely.png", 0)
    sides = ["--ir", str(tmp_path / "ir"), "--vis", str(tmp_path / "vis")]
    assert detection.main(["average", *sides, "--out", str(tmp_path / "out")]) == 1
    assert "lonely.png: no infrared partner" in capsys.readouterr().err
    luma = luma_of((80, 100, 60))
    expected = np.array([80, 100, 60]) + (200 - luma) / 2
    np.testing.assert_allclose(read_vis(tmp_path / "out/a.png")[0, 0], expected, atol=1.5)
    cv2.imwrite(str(tmp_path / "ir/a.png"), np.full((4, 4), 600, np.uint16))        # another size, and 16 bits
    options = ["--resize", "ir", "--ir-range", "500", "700"]
    detection.main(["average", *sides, "--out", str(tmp_path / "scaled"), *options])
    assert abs(luma_of(read_vis(tmp_path / "scaled/a.png")[0, 0]) - (128 + luma) / 2) < 1.5


# ---------------------------------------------------------------------------------------------
# train, score and table


def train(root, *options, action="train"):
    return detection.main([action, "--data", str(root / "set"), "--epochs", "1", "--batch", "2", "--size", "64",
                           "--device", "cpu", "--out", str(root / "runs"), "--csv", str(root / "rows.csv"), *options])


def rows_in(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fake_detector(monkeypatch):
    """A trainer that writes weights, and a measure that counts; returns the calls."""
    calls = []

    def fake_train(data, folder, schedule, seed):
        calls.append(f"train {data.parent.name} {seed}")
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        (folder / "weights" / "best.pt").write_text("weights")
        return 1.0

    def fake_score(weights, data, folder, schedule):
        if not weights.exists():
            raise detector.DetectorError(f"{weights}: no such file of weights")
        calls.append(f"score {data.parent.name}")
        return {"person": 0.25, "car": 0.75, "mAP@.5": 0.5}

    monkeypatch.setattr(detector, "package", lambda: None)
    monkeypatch.setattr(detector, "version", lambda: "fake 1")
    monkeypatch.setattr(detector, "train", fake_train)
    monkeypatch.setattr(detector, "score", fake_score)
    return calls


def test_a_row_for_each_method_and_seed_and_no_training_twice(root, fake_detector, capsys):
    prepare(root)
    assert train(root, "--seeds", "0", "1") == 0
    assert fake_detector == [call for seed in (0, 1) for method in ("RPFNet", "infrared")
                             for call in (f"train {method} {seed}", f"score {method}")]
    rows = rows_in(root / "rows.csv")
    assert [(row["method"], row["seed"], row["person"], row["mAP@.5"], row["images"]) for row in rows] == [
        (method, seed, "0.250000", "0.500000", "2") for seed in "01" for method in ("RPFNet", "infrared")]
    assert rows[0]["command"].startswith("python tools/detection.py train") and rows[0]["minutes"] == "1.0"
    fake_detector.clear()
    assert train(root, "--seeds", "0", "1", "2", "--methods", "RPFNet") == 0
    assert fake_detector == ["train RPFNet 2", "score RPFNet"]
    assert "RPFNet, seed 1: measured on" in capsys.readouterr().out
    assert train(root, "--again", "--methods", "RPFNet") == 0 and "train RPFNet 0" in fake_detector
    assert len(rows_in(root / "rows.csv")) == 5


def test_a_column_of_remarks_is_found_before_the_training(root, fake_detector, capsys):
    prepare(root)
    assert train(root, "--methods", "RPFNet") == 0
    header, row = (root / "rows.csv").read_text().splitlines()
    (root / "rows.csv").write_text(f"{header},remark\n{row},good\n")
    fake_detector.clear()
    for options in (["train", "--data", str(root / "set"), "--epochs", "1"], ["table"]):
        assert detection.main([*options, "--csv", str(root / "rows.csv")]) == 1
        assert "rows.csv: row 1 has 'good' in column remark" in capsys.readouterr().err
    assert fake_detector == []


def test_another_schedule_has_a_row_and_weights_of_its_own(root, fake_detector):
    prepare(root)
    assert train(root) == train(root, "--epochs", "2") == 0
    assert [row["epochs"] for row in rows_in(root / "rows.csv")] == ["1", "1", "2", "2"]
    assert len(list((root / "runs").rglob("detector.pt"))) == 4


def test_score_measures_what_is_trained_and_names_what_is_not(root, fake_detector, capsys):
    prepare(root)
    assert train(root, "--methods", "RPFNet") == 0
    (root / "rows.csv").unlink()
    fake_detector.clear()
    assert train(root, action="score") == 1
    assert fake_detector == ["score RPFNet"] and [row["method"] for row in rows_in(root / "rows.csv")] == ["RPFNet"]
    assert "infrared, seed 0: " in capsys.readouterr().err


def test_score_replaces_the_values_of_a_row_and_keeps_the_minutes_of_its_training(root, fake_detector, monkeypatch):
    prepare(root)
    assert train(root) == 0
    monkeypatch.setattr(detector, "score", lambda *_: {"person": 0.5, "car": 0.5, "mAP@.5": 0.5})
    assert train(root, action="score") == 0
    assert [(row["person"], row["minutes"]) for row in rows_in(root / "rows.csv")] == [("0.500000", "1.0")] * 2


def test_initial_weights_of_the_same_name_are_told_apart(root, fake_detector, capsys):
    prepare(root)
    for folder in ("a", "b"):
        (root / folder).mkdir()
        (root / folder / "detector.pt").write_text(folder)
        assert train(root, "--weights", str(root / folder / "detector.pt")) == 0
    models = [row["model"] for row in rows_in(root / "rows.csv")]
    assert len(models) == 4 and len({*models}) == 2 and all(name.startswith("detector-") for name in models)
    assert train(root, "--weights", str(root / "c.pt")) == 1
    assert "c.pt: no such file of weights" in capsys.readouterr().err


def test_a_training_that_was_stopped_leaves_no_row_and_is_made_again(root, fake_detector, monkeypatch, capsys):
    prepare(root)
    honest = detector.train

    def stopped(*args):
        honest(*args)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(detector, "train", stopped)
        train(root)
    assert "interrupted; the same command goes on with this detector, from its first epoch" in capsys.readouterr().err
    assert not (root / "rows.csv").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(detector, "train", stopped)
        train(root, "--again")
    assert capsys.readouterr().err == "detection.py: interrupted\n"
    assert train(root) == 0 and len(rows_in(root / "rows.csv")) == 2


@pytest.mark.parametrize("again", [(), ("--again",)])
def test_weights_never_have_the_hash_of_other_images(root, fake_detector, monkeypatch, again):
    """A run that is killed before it has written the hash leaves no weights, which an older hash would describe."""
    prepare(root)
    if again:
        assert train(root, "--methods", "RPFNet") == 0

    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(detection, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        train(root, "--methods", "RPFNet", *again)
    assert not list((root / "runs").rglob("detector.pt"))


def test_seeds_of_other_images_are_an_error_until_they_are_repeated(root, fake_detector, capsys):
    prepare(root)
    assert train(root) == 0
    before = image_hash(root / "set/RPFNet")
    write_image(root / "fused/3.png", 999)      # the data set links to this file
    now = image_hash(root / "set/RPFNet")
    assert now != before
    fake_detector.clear()
    assert train(root, "--seeds", "0", "1") == 1
    assert fake_detector == ["train RPFNet 1", "score RPFNet", "train infrared 1", "score infrared"]
    error = f"RPFNet, seed 0: its images have changed since the training (image_hash {before}, now {now})"
    printed = capsys.readouterr()
    assert f"[1/4] {error}" in printed.out and error in printed.err and "--again" in printed.err
    assert [row["image_hash"] for row in rows_in(root / "rows.csv") if row["method"] == "RPFNet"] == [before, now]
    assert train(root, "--again", "--methods", "RPFNet") == 0
    assert [row["image_hash"] for row in rows_in(root / "rows.csv") if row["method"] == "RPFNet"] == [now, now]


@pytest.mark.parametrize("action", ["train", "score"])
def test_a_detector_without_a_row_is_not_measured_on_other_images(root, fake_detector, capsys, action):
    prepare(root)
    assert train(root, "--methods", "RPFNet") == 0
    (root / "rows.csv").unlink()
    write_image(root / "fused/3.png", 999)
    fake_detector.clear()
    assert train(root, "--methods", "RPFNet", action=action) == 1
    assert "RPFNet, seed 0: its images have changed" in capsys.readouterr().err
    assert fake_detector == [] and not (root / "rows.csv").exists()


def test_images_that_change_during_the_training_give_no_row(root, fake_detector, monkeypatch, capsys):
    prepare(root)
    honest = detector.train

    def fuse_meanwhile(*args):
        write_image(root / "fused/3.png", 999)
        return honest(*args)
    monkeypatch.setattr(detector, "train", fuse_meanwhile)
    assert train(root, "--methods", "RPFNet") == 1
    assert "RPFNet, seed 0: its images have changed" in capsys.readouterr().err and not (root / "rows.csv").exists()


def test_rows_and_detectors_of_older_versions_stay_valid(root, fake_detector):
    prepare(root)
    assert train(root) == 0
    rows = rows_in(root / "rows.csv")
    assert all(row.pop("image_hash") for row in rows)
    (root / "rows.csv").write_bytes(as_csv(list(rows[0]), rows))
    for path in (root / "runs").rglob("images.txt"):
        path.unlink()
    write_image(root / "fused/3.png", 999)
    fake_detector.clear()
    assert train(root) == 0 and fake_detector == []
    assert train(root, action="score") == 0 and fake_detector == ["score RPFNet", "score infrared"]
    assert [row["image_hash"] for row in rows_in(root / "rows.csv")] == ["", ""]    # nobody knows the training's images


def test_a_missing_image_is_named_and_other_methods_go_on(root, fake_detector, capsys):
    prepare(root)
    (root / "fused/3.png").unlink()
    assert train(root) == 1
    assert "RPFNet, seed 0: " in (text := capsys.readouterr().err) and "3.png" in text and "prepare the method again" in text
    assert fake_detector == ["train infrared 0", "score infrared"]


@pytest.fixture
def bars(monkeypatch):
    """(description, batches shown, batches in all) of each progress bar of the detector, when it is closed."""
    closed = []

    class Bar(detector.tqdm):
        def close(self):
            closed.append((self.desc, self.n, self.total))
            super().close()
    monkeypatch.setattr(detector, "tqdm", lambda **options: Bar(**options | {"disable": False}))
    return closed


def test_score_has_a_progress_bar(bars, monkeypatch):
    class Model:
        """The part of the package's interface that score uses."""
        names = {0: "person"}

        def __init__(self):
            self.callbacks = {}
            self.add_callback = self.callbacks.__setitem__

        def val(self, **_):
            validator = SimpleNamespace(dataloader=range(3))
            for event in ("on_val_start", *["on_val_batch_end"] * 3):
                self.callbacks[event](validator)
            return SimpleNamespace(box=SimpleNamespace(ap_class_index=[0], ap50=[0.5], map50=0.5))

    monkeypatch.setattr(detector, "_load", lambda _: Model())
    schedule = detector.Schedule("yolov5n.yaml", 1, 64, 2, "cpu", 0)
    assert detector.score(Path("w.pt"), Path("data.yaml"), Path("RPFNet_seed0"), schedule) == {"person": 0.5, "mAP@.5": 0.5}
    assert bars[0] == ("RPFNet_seed0 test", 3, 3)


def test_a_batch_that_the_package_made_smaller_is_an_error(monkeypatch):
    def model(batch_size):
        return SimpleNamespace(train=lambda **_: None, trainer=SimpleNamespace(batch_size=batch_size),
                               add_callback=lambda *_: None)

    monkeypatch.setattr(detector, "_show_progress", lambda *_: None)
    schedule = detector.Schedule("yolov5n.yaml", 1, 64, 8, "cpu", 0)
    monkeypatch.setattr(detector, "_load", lambda _: model(8))
    assert detector.train(Path("data.yaml"), Path("RPFNet_seed0"), schedule, 0) < 1
    monkeypatch.setattr(detector, "_load", lambda _: model(4))
    with pytest.raises(detector.DetectorError, match="batches of 8; the package trained with 4,.*lower --batch"):
        detector.train(Path("data.yaml"), Path("RPFNet_seed0"), schedule, 0)


@pytest.mark.skipif(INSTALLED, reason="ultralytics is installed")
def test_a_missing_package_is_named_with_the_remedy(root, capsys):
    prepare(root)
    assert train(root) == 1
    assert "ultralytics is missing; python -m pip install -r requirements-detection.txt" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, problem", [
    ([], "no METHOD/data.yaml; make it with"), (["--methods", "Other"], "Other: no data.yaml; there are RPFNet"),
    (["--device", "cuda"], "device cuda: PyTorch finds no CUDA GPU here")])
def test_a_data_set_or_device_that_is_not_there_is_named(root, capsys, arguments, problem):
    if arguments:
        prepare(root)
    assert train(root, *arguments) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.skipif(not INSTALLED, reason="ultralytics is not installed (requirements-detection.txt)")
def test_yolov5_is_trained_and_measured_without_network(root, bars, monkeypatch):
    attempts = []
    monkeypatch.setenv("HOME", str(root / "home"))
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, lambda *args, **_: attempts.append(args))
    prepare(root)
    assert train(root, "--methods", "RPFNet") == 0
    (row,) = rows_in(root / "rows.csv")
    assert row["person"] and row["car"] and "bicycle" not in row        # no image has one
    assert 0 <= float(row["mAP@.5"]) <= 1 and row["package"].startswith("ultralytics ")
    assert ("RPFNet_seed0", 3, 3) in bars and ("RPFNet_seed0 test", 1, 1) in bars
    assert attempts == [] and not list((root / "home").rglob("Ultralytics"))      # settings


ROWS = """dataset,method,seed,person,car,mAP@.5,split,model,epochs,size,batch,images,date
MSRS,visible,0,0.5000,0.7000,0.6000,abc,yolov5n,9,320,16,72,2026-01-01
MSRS,visible,1,0.6000,0.8000,0.7000,abc,yolov5n,9,320,16,72,2026-01-01
MSRS,infrared,0,0.4000,,0.4000,abc,yolov5n,9,320,16,72,2026-01-01
MSRS,visible,0,0.1000,0.1000,0.1000,abc,yolov5n,2,320,16,72,2026-01-01
"""


def test_the_table_has_means_and_spread_and_never_mixes_schedules(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text(ROWS)
    assert detection.main(["table", "--csv", str(tmp_path / "rows.csv"), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["method", "seeds", "person", "car", "mAP@.5"]
    assert lines[2] == ["visible", "2", "0.550 ± 0.071", "0.750 ± 0.071", "0.650 ± 0.071"]
    assert lines[3] == ["infrared", "1", "0.400", "-", "0.400"]
    assert ["visible", "1", "0.100", "0.100", "0.100"] in lines[4:]
    assert "9 epochs, 320 pixels, batches of 16; split abc, 72 test images" in text and "Seeds 0, 1; mean ±" in text
    assert lines[-12] == ["method", "People", "Car", "Bus", "Motorcycle", "Truck", "Lamp", "mAP@.5"]       # the paper's
    assert lines[-1] == ["RPFNet", "0.796", "0.911", "0.895", "0.725", "0.806", "0.8", "0.822"]


def test_the_table_never_averages_seeds_of_other_images(tmp_path, capsys):
    header, *rows = ROWS.splitlines()
    hashes = ["aaaa", "bbbb", "cccc", "aaaa"]
    (tmp_path / "rows.csv").write_text("\n".join([f"{header},image_hash", *map(",".join, zip(rows, hashes, strict=True))]))
    assert detection.main(["table", "--csv", str(tmp_path / "rows.csv"), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert lines[2:5] == [["visible (images aaaa)", "1", "0.500", "0.700", "0.600"],
                          ["visible (images bbbb)", "1", "0.600", "0.800", "0.700"],
                          ["infrared", "1", "0.400", "-", "0.400"]]
    assert text.count("A method has a line for each state of its images; train --again") == 1
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text().replace("bbbb", ""))
    assert detection.main(["table", "--csv", str(tmp_path / "rows.csv")]) == 0
    assert "visible (images unknown)" in capsys.readouterr().out


def test_the_table_names_several_versions_of_the_package(tmp_path, capsys):
    header, *rows = ROWS.splitlines()
    packages = ["ultralytics 8.4", "ultralytics 8.3", "ultralytics 8.4", "ultralytics 8.4"]
    (tmp_path / "rows.csv").write_text("\n".join([f"{header},package", *map(",".join, zip(rows, packages))]))
    assert detection.main(["table", "--csv", str(tmp_path / "rows.csv")]) == 0
    text = capsys.readouterr().out
    assert text.count("versions of the package: ultralytics 8.3, ultralytics 8.4") == 1     # in the first table alone
    assert "0.650 ± 0.071" in text


def test_the_rows_of_the_document_are_the_printed_ones(capsys):
    assert detection.main(["table", "--format", "markdown"]) == 0
    page = (detection.RESULTS.parent / "docs" / "detection.md").read_text(encoding="utf-8")
    printed, written = ({tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.splitlines()
                         if line[:1] == "|" and "±" in line} for text in (capsys.readouterr().out, page))
    methods = {row["method"] for row in detection.read_rows(detection.RESULTS / "detection.csv")}
    assert {row[0] for row in printed} == methods and len(methods) >= 4 and printed == written


def test_the_table_without_rows_is_the_papers(tmp_path, capsys):
    assert detection.main(["table", "--csv", str(tmp_path / "rows.csv")]) == 0
    text = capsys.readouterr().out
    assert "no measured rows yet" in text and "Conti-Fuse" in text


def test_the_classes_of_m3fd_are_those_of_the_papers_table():
    assert sorted(detection.classes_of(detection.read_rows(detection.RESULTS / "paper_detection.csv"))) == sorted(M3FD_CLASSES)
