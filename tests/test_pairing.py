"""Which files belong together."""
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pipeline
from dataset import Pair
from images import DataError, write_image
from support.console import ImageWarning
from support.pairing import find_pairs, list_images, natural_key, spread, without_affix


def folders(root, ir, vis):
    for side, names in (("ir", ir), ("vis", vis)):
        (root / side).mkdir(exist_ok=True)
        for name in names:
            write_image(root / side / f"{name}.png", np.zeros((4, 4), np.uint8))
    return root / "ir", root / "vis"


def test_chosen_items_are_spread_over_the_whole_list():
    assert spread("abcdefg", 4) == ["a", "b", "d", "f"] and spread("abcdefg", 2) == ["a", "d"]
    for count in range(1, 9):
        places = spread(range(7), count)
        distances = [b - a for a, b in zip(places, [*places[1:], 7])]
        assert len(places) == min(count, 7) and places[0] == 0 and max(distances) - min(distances) <= 1


@pytest.mark.parametrize("length, count", [(40, 4), (4, 4), (180, 6)])
def test_the_choices_of_recorded_rows_stay_the_same(length, count):
    """Of results/flicker.csv and results/pixels.csv."""
    assert spread(range(length), count) == [*range(0, length, length // count)]


@pytest.mark.parametrize(("stem", "name"), [
    ("a_ir", "a"), ("ir_001", "001"), ("IR1", "1"), ("7-Thermal", "7"), ("001ir", "001"), ("infrared.x", "x"),
    ("ir", "ir"), ("irish", "irish"), ("fir_tree", "fir_tree"), ("chair", "chair"), ("a_visible", "a_visible")])
def test_affixes(stem, name):
    from support.pairing import INFRARED
    assert without_affix(stem, INFRARED) == name


@pytest.mark.parametrize(("ir", "vis", "names"), [
    (["a_ir", "b_ir"], ["a_vis", "b_vis"], ["a", "b"]),
    (["ir_001", "ir_010", "ir_002"], ["vi_001", "vi_002", "vi_010"], ["001", "002", "010"]),
    (["0001", "0002"], ["1", "2"], ["1", "2"]),
    (["A", "B"], ["a", "b"], ["a", "b"]),
    (["cafe\u0301", "b"], ["caf\u00e9", "b"], ["b", "caf\u00e9"]),        # the accent by itself, as macOS can write it
    (["x_thermal", "y_thermal"], ["x_rgb", "y_rgb"], ["x", "y"]),
    (["s1_thermal"], ["s1"], ["s1"]),
    (["s1_MRI", "s2_MRI"], ["s1_CT", "s2_CT"], ["s1", "s2"]),
    (["frame_1", "frame_2"], ["img01", "img02"], ["img01", "img02"]),
], ids=str)
def test_names_of_real_folders_are_matched_and_said(tmp_path, ir, vis, names):
    with pytest.warns(ImageWarning, match="matched by"):
        pairs, unpaired = find_pairs(*folders(tmp_path, ir, vis))
    assert [pair.name for pair in pairs] == names and not unpaired
    assert len({pair.ir for pair in pairs}) == len({pair.vis for pair in pairs}) == len(names)


def test_a_guess_names_a_pair_whose_names_differ(tmp_path):
    """Here the guess is wrong, and only this line shows it."""
    with pytest.warns(ImageWarning, match=re.escape("night_3.png with day_3.png, and so on, 1 of 3 pairs")):
        find_pairs(*folders(tmp_path, ["day_1", "day_2", "night_3"], ["day_1", "day_2", "day_3"]))


@pytest.mark.parametrize(("ir", "vis"), [
    (["a_ir", "b_ir"], ["a_vis", "b_vis", "c_vis"]), (["a_ir", "b_ir"], ["a_vis"]), (["a_ir"], ["a_vis", "a_rgb"]),
    (["a", "A"], ["b", "c"]), (["x1y1", "x1y2"], ["z1", "z2"])], ids=str)
def test_a_guess_that_leaves_a_file_is_not_taken(tmp_path, ir, vis):
    with pytest.raises(DataError, match=rf"{ir[0]}\.png.* against .*--ir-pattern '\*_ir' --vis-pattern"):
        find_pairs(*folders(tmp_path, ir, vis))


def test_equal_stems_go_without_a_guess(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs, unpaired = find_pairs(*folders(tmp_path, ["1", "01", "ir"], ["01", "1", "vis"]))
    assert [pair.name for pair in pairs] == ["01", "1"] and len(unpaired) == 2


def test_one_folder_of_both_sides(tmp_path):
    both, _ = folders(tmp_path, ["IR1", "VIS1", "IR2", "VIS2"], [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs, unpaired = find_pairs(both, both)
    assert [(pair.name, pair.ir.stem, pair.vis.stem) for pair in pairs] == [("1", "IR1", "VIS1"), ("2", "IR2", "VIS2")]
    assert not unpaired


def test_images_of_neither_side_are_mentioned(tmp_path):
    both, _ = folders(tmp_path, ["MRI1", "CT1", "scene3", "scene10"], [])
    with pytest.warns(ImageWarning, match=r"\(scene3\.png, scene10\.png\): left out, because the name has no prefix"):
        pairs, unpaired = find_pairs(both, both)
    assert [pair.name for pair in pairs] == ["1"] and not unpaired


@pytest.mark.parametrize("names", [["IR1", "IR2"], ["VIS1"], ["scene1"], ["IR1", "scene1"]], ids=str)
def test_one_folder_needs_both_sides(tmp_path, names):
    folder, _ = folders(tmp_path, names, [])
    with pytest.raises(DataError, match="ir: needs both IR\\* and VIS\\* files; or give two folders"):
        find_pairs(folder, folder)


def test_patterns(tmp_path):
    ir, vis = folders(tmp_path, ["2021_a_T", "2021_b_T", "mask"], ["a.V", "b.V", "c.V"])
    pairs, unpaired = find_pairs(ir, vis, "2021_*_T", "*.V.png")
    assert [pair.name for pair in pairs] == ["a", "b"] and unpaired == [f"{vis / 'c.V.png'}: no infrared partner in {ir}"]
    for pattern in ("none*", "mask", "*_*"):
        with pytest.raises(DataError, match="--ir-pattern"):
            find_pairs(ir, vis, pattern, None)


def test_one_folder_with_patterns(tmp_path):
    ir, _ = folders(tmp_path, ["1_L", "1_R", "2_L", "2_R"], [])
    assert [pair.name for pair in find_pairs(ir, ir, "*_L", "*_R")[0]] == ["1", "2"]


def test_patterns_with_suffixes_tell_files_of_one_stem_apart(tmp_path):
    ir, _ = folders(tmp_path, ["1", "2"], [])
    for name in "12":
        (ir / f"{name}.jpg").write_bytes(b"")
    pairs, unpaired = find_pairs(ir, ir, "*.png", "*.jpg")
    assert [(pair.ir.name, pair.vis.name) for pair in pairs] == [("1.png", "1.jpg"), ("2.png", "2.jpg")] and not unpaired
    with pytest.raises(DataError, match="1.jpg and 1.png share a name"):
        find_pairs(ir, ir)


def test_files_that_are_not_read_are_mentioned(tmp_path):
    ir, _ = folders(tmp_path, ["a"], [])
    for name in ("b.gif", "notes.txt", ".hidden"):
        (ir / name).write_text("")
    (ir / "folder").mkdir()
    with pytest.warns(ImageWarning, match=r"\(b\.gif, notes\.txt\): not read"):
        assert [*list_images(ir)] == ["a"]


@pytest.mark.parametrize("name", ["", "1²2", "²", "٣", "9" * 5000, "\udcff", "a\n1", "é10"])
def test_whatever_a_name_holds_it_sorts(name):
    names = [name, "a10", "a2", "2", "10"]
    order = sorted(names, key=natural_key)
    assert order == sorted(reversed(names), key=natural_key) and [other for other in order if other != name] == [
        "2", "10", "a2", "a10"]


def test_numbers_sort_by_value_and_equal_ones_always_the_same_way():
    for names in (["a10", "a2", "a1", "a02", "a"], ["a", "a1", "a02", "a2", "a10"]):
        assert sorted(names, key=natural_key) == ["a", "a1", "a02", "a2", "a10"]


def test_names_with_dots_stay_apart():
    args = SimpleNamespace(out_file=None, out=Path("out"), format="png")
    found = [pipeline.target(Pair(name, Path("a"), Path("b")), args).name for name in ("cam.1", "cam.2")]
    assert found == ["cam.1.png", "cam.2.png"]


def test_two_files_without_numbers_are_no_pair(tmp_path):
    for side, name in (("ir", "street"), ("vis", "harbour")):
        (tmp_path / side).mkdir()
        (tmp_path / side / f"{name}.png").touch()
    with pytest.raises(DataError, match="no file of .* has the name of one of"):
        find_pairs(tmp_path / "ir", tmp_path / "vis")


def test_upper_and_lower_case_sort_alike():
    assert sorted(["b", "C", "A", "d2", "D10"], key=natural_key) == ["A", "b", "C", "d2", "D10"]


def test_patterns_that_pair_nothing_show_the_names_they_give(tmp_path):
    for side, name in (("ir", "thermal_a"), ("vis", "rgb-street")):
        (tmp_path / side).mkdir()
        (tmp_path / side / f"{name}.png").touch()
    with pytest.raises(DataError, match="; these patterns give the names a and street$"):
        find_pairs(tmp_path / "ir", tmp_path / "vis", "thermal_*", "rgb-*")
