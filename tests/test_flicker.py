"""tools/flicker.py: changes with known values, and the command on small sequences."""
import csv
import math
import re
import shlex

import numpy as np
import pytest
from conftest import write_clip, write_pairs, write_weights

from tools import flicker
from tools.naturalness import Change
from tools.table_rows import TableError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return ["--checkpoint", write_weights(tmp_path_factory.mktemp("weights") / "small.pth")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), "ab", (120, 160))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """ir.avi and vis.avi: the right half changes from frame to frame, the left half by nothing that is seen."""
    folder = tmp_path_factory.mktemp("clip")
    for side, low in (("ir", 40), ("vis", 90)):
        images = [np.full((48, 64), low, np.uint8) for _ in range(4)]
        for number, image in enumerate(images):
            image[:, 32:] += np.uint8(20 * number)
        write_clip(folder / f"{side}.avi", images)
    return [str(folder / "ir.avi"), str(folder / "vis.avi")]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_weights_of_the_past_that_nearly_agree_have_rows_of_their_own(tmp_path):
    for keep in (0.0, 0.0004, 1e-05, 0.97, 0.9996):
        row = dict.fromkeys(flicker.COLUMNS, "") | {"sequence": "a", "steady": keep} | dict.fromkeys(flicker.NUMBERS, 0.5)
        flicker.add_rows(tmp_path / "a.csv", [row], {}, flicker.COLUMNS, ("sequence", "steady"))
    assert [row["steady"] for row in rows(tmp_path / "a.csv")] == ["0.000", "0.0004", "1e-05", "0.970",
                                                                        "0.9996"]


def test_a_cell_without_a_number_is_named(tmp_path):
    row = dict.fromkeys(flicker.COLUMNS, "1") | {"jump": "0,5"}
    flicker.record(tmp_path / "a.csv", flicker.COLUMNS, [row], tuple)
    with pytest.raises(TableError, match="a.csv: row 1 has '0,5' in column jump, where a number is expected"):
        flicker.recorded_rows(tmp_path / "a.csv", "1")


def test_changes_are_since_frame_0_and_over_the_background_alone():
    background = np.array([[True, True, False]])
    change = Change(background)
    for levels in ([10, 20, 0], [12, 20, 99], [10, 16, 255]):
        change.add(np.array([levels], np.uint8))
    assert change.rms == pytest.approx(math.sqrt((4 / 2 + 16 / 2) / 2))
    assert change.jump == pytest.approx(3)      # the means are 15, 16 and 13


def test_generated_sequences_are_measured_without_and_with_steady_pools(pairs, small, tmp_path, capsys):
    path = tmp_path / "flicker.csv"
    assert flicker.main([*pairs, *small, "--pairs", "1", "--frames", "3", "--csv", str(path)]) == 0
    table, first = capsys.readouterr().out, rows(path)
    assert table.startswith("| sequence | frames |") and table.count("\n") == 4
    assert [(row["sequence"], row["steady"], row["size"]) for row in first] == [("a", keep, "160x120")
                                                                               for keep in ("0.000", "0.970")]
    for row in first:
        assert float(row["ir"]) == float(row["vis"]) == 0 and float(row["limit"]) == 1 and float(row["ms"]) > 0
        assert row["command"].startswith("python tools/flicker.py") and re.fullmatch("small-[0-9a-f]{8}", row["weights"])
    assert flicker.main([*pairs, *small, "--pairs", "1", "--frames", "3", "--csv", str(path)]) == 0
    assert len(rows(path)) == 2         # in place of those of the same sequence
    table = capsys.readouterr().out
    assert flicker.main([*small, "--print", "--csv", str(path)]) == 0
    assert capsys.readouterr().out == table


def test_the_table_of_the_docs_is_the_recorded_one(capsys):
    assert flicker.main(["--print"]) == 0
    assert capsys.readouterr().out in (flicker.ROOT / "docs" / "video.md").read_text(encoding="utf-8")


def test_the_background_of_a_clip_is_the_half_that_changes_least(clip, small, tmp_path):
    found = flicker.clip_of_files(clip, 64, 3)
    assert len(list(found.frames())) == 3
    assert found.background[:, :24].all() and not found.background[:, 40:].any()
    assert flicker.main(["--clip", *clip, *small, "--frames", "3", "--csv", str(tmp_path / "a.csv")]) == 0
    for row in rows(tmp_path / "a.csv"):
        assert row["sequence"] == "vis" and float(row["ir"]) < 2
        assert float(row["limit"]) == pytest.approx(1 + 0.6 * (float(row["ir"]) + float(row["vis"])), abs=0.002)


def test_cuts_lists_changes_inside_and_between_clips(clip, tmp_path):
    second = str(tmp_path / "dark.avi")
    write_clip(tmp_path / "dark.avi", 3 * [np.zeros((48, 64), np.uint8)])
    assert flicker.main(["--cuts", "--clip", *clip, "--clip", second, second, "--csv", str(tmp_path / "cuts.csv")]) == 0
    changes = {(row["from"], row["to"]): float(row["change"]) for row in rows(tmp_path / "cuts.csv")}
    assert changes["vis", "vis"] == pytest.approx(10, abs=1) and changes["dark", "dark"] == 0
    assert changes["dark", "vis"] == pytest.approx((40 + 90) / 2, abs=2)


def test_clips_of_one_name_or_of_two_sizes_are_refused(clip, small, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    write_clip(tmp_path / "other" / "vis.avi", 3 * [np.zeros((64, 64), np.uint8)])
    other = str(tmp_path / "other" / "vis.avi")
    assert flicker.main(["--cuts", "--clip", *clip, "--clip", other, other]) == 1
    assert "two visible files are named vis" in capsys.readouterr().err
    assert flicker.main(["--clip", clip[0], other, *small]) == 1
    assert "64x48, but" in capsys.readouterr().err


def test_clips_of_two_lengths_are_refused(clip, small, tmp_path, capsys):
    write_clip(tmp_path / "vis.avi", 3 * [np.zeros((48, 64), np.uint8)])
    assert flicker.main(["--clip", clip[0], str(tmp_path / "vis.avi"), *small]) == 1
    assert "vis.avi: has fewer frames than" in capsys.readouterr().err


def test_a_file_with_another_table_is_found_before_the_measurement(pairs, small, tmp_path, capsys):
    path = tmp_path / "cuts.csv"
    path.write_text("from,to,change\na,b,1\n")
    for options in (["--print"], [*pairs, "--pairs", "1"]):
        assert flicker.main([*small, *options, "--csv", str(path)]) == 1
        assert "cuts.csv: has no column sequence" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--frames", "1"], "at least 2"),
    (["--cuts"], "--cuts needs --clip"),
    (["--print", "--cuts"], "--print goes without --cuts"),
    (["--print", "--frames", "3"], "--print goes without --frames"),
    (["--print", "--pairs", "3"], "--print goes without --pairs"),
    (["--cuts", "--clip", "a.avi", "b.avi", "--size", "64"], "--cuts goes without --size"),
    (["--cuts", "--clip", "a.avi", "b.avi", "--steady", "0.5"], "--cuts goes without --steady"),
    (["--cuts", "--clip", "a.avi", "b.avi", "--checkpoint", "paper"], "--cuts goes without --checkpoint"),
    (["--clip", "a.avi", "b.avi", "--ir", "DIR"], "--clip goes without --ir"),
    (["--clip", "a.avi", "b.avi", "--pairs", "3"], "--clip goes without --pairs"),
    (["--print", "--checkpoint", "medical"], "flicker.csv: no rows with the weights medical; measure them with --csv"),
    (["--csv", "absent/a.csv"], "--csv absent/a.csv: no such folder"),
    (["--ir", "none", "--vis", "none"], "none: no such folder"),
    (["--clip", "none.avi", "none.avi"], "none.avi: no such file"),
    (["--size", "32"], "no pixel stays far from the target"),
])
def test_errors_are_one_line(options, message, capsys):
    assert flicker.main(options) == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("flicker.py: ") and said.count("\n") == 1


@pytest.mark.parametrize("error, code, message", [
    (KeyboardInterrupt(), 130, "flicker.py: interrupted; finished sequences are recorded\n"),
    (OSError(28, "No space left on device"), 1, "No space left on device")])
def test_an_end_before_time_keeps_the_finished_sequences(pairs, small, tmp_path, monkeypatch, capsys, error, code, message):
    whole = flicker.measured

    def fail(clip, *rest):
        if clip.name == "b":
            raise error
        return whole(clip, *rest)
    monkeypatch.setattr(flicker, "measured", fail)
    assert flicker.main([*pairs, *small, "--frames", "2", "--csv", str(tmp_path / "a.csv")]) == code
    out, err = capsys.readouterr()
    assert [row["sequence"] for row in rows(tmp_path / "a.csv")] == ["a", "a"]
    assert out.count("\n| a ") == 2 and message in err


def test_the_commands_of_recorded_rows_are_understood():
    for name in ("flicker", "cuts"):
        commands = {row["command"] for row in rows(flicker.ROOT / "results" / f"{name}.csv")}
        for words in map(shlex.split, commands):
            parser = flicker.build_parser()
            flicker.check_options(parser.parse_args(words[2:]), parser)


def test_frames_are_not_enlarged():
    image = np.zeros((30, 40), np.uint8)
    assert flicker.narrowed(image, 80) is image and flicker.narrowed(image, 20).shape == (15, 20)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """ir.avi does not change; in vis.avi the right half does."""
    folder = tmp_path_factory.mktemp("moving")
    still, images = np.full((48, 64), 40, np.uint8), [np.full((48, 64), 90, np.uint8) for _ in range(4)]
    for number, image in enumerate(images):
        image[:, 32:] += np.uint8(20 * number)
    write_clip(folder / "ir.avi", [still] * 4)
    write_clip(folder / "vis.avi", images)
    write_clip(folder / "dark.avi", [np.zeros((48, 64), np.uint8)] * 3)
    return folder


def test_changes_inside_a_clip_and_from_its_last_frame(moving):
    ir, vis, dark = (str(moving / f"{name}.avi") for name in ("ir", "vis", "dark"))
    found = {(row["from"], row["to"]): row for row in flicker.cut_rows([(ir, vis), (dark, dark)])}
    # Three changes of 5 levels: the usual change is 0, 0.5 and 0.95.
    assert found["vis", "vis"]["change"] == pytest.approx(5, abs=0.5) and found["vis", "vis"]["ratio"] > 5
    assert found["vis", "dark"]["change"] == pytest.approx((40 + 90 + 60 / 2) / 2, abs=1)
    assert found["dark", "vis"]["change"] == pytest.approx((40 + 90) / 2, abs=1)


def test_the_background_is_still_in_both_sources(moving):
    background = flicker.clip_of_files([str(moving / "ir.avi"), str(moving / "vis.avi")], 64, 3).background
    assert background[:, :24].all() and not background[:, 40:].any()
