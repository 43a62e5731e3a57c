"""tools/figures.py on the samples and on images with known answers."""
import csv
import re
import shlex

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="figures need matplotlib: requirements-figures.txt")

from dataset import load_pair  # noqa: E402
from images import DataError  # noqa: E402
from loss import adaptive_weight  # noqa: E402
from net import AuxiliaryDecoder, RPFNet  # noqa: E402
from tools import figures  # noqa: E402


@pytest.fixture
def folders(tmp_path):
    """Two small pairs and two methods: one is the visible image, the other lacks a pair."""
    rng = np.random.default_rng(0)
    for folder in ("ir", "vis", "same", "other"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        for folder in ("ir", "vis"):
            image = cv2.GaussianBlur(rng.integers(0, 256, (48, 64), np.uint8), (0, 0), 2)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX))
        cv2.imwrite(str(tmp_path / "same" / f"{name}.png"), cv2.imread(str(tmp_path / "vis" / f"{name}.png"), 0))
    cv2.imwrite(str(tmp_path / "other" / "a.png"), np.full((48, 64), 7, np.uint8))
    return tmp_path


@pytest.fixture(autouse=True)
def closed():
    """Figures that a test does not save stay open otherwise."""
    yield
    figures.plt.close("all")


def run(folders, kind, *options):
    sources = [] if kind in ("tradeoff", "phase") else ["--ir", str(folders / "ir"), "--vis", str(folders / "vis")]
    return figures.main([kind, *sources, "--out", str(folders / "out" / kind), *map(str, options)])


def written(folders, kind):
    image = cv2.imread(str(folders / "out" / f"{kind}.png"))
    assert (folders / "out" / f"{kind}.pdf").read_bytes().startswith(b"%PDF")
    return image


def test_a_sheet_names_what_is_missing_and_draws_the_rest(folders, capsys):
    assert run(folders, "sheet", "--fused", f"Same={folders / 'same'}", f"Other={folders / 'other'}") == 1
    assert "no fused image for b" in capsys.readouterr().err
    assert written(folders, "sheet") is not None


def test_names_may_have_the_suffix_of_the_files(folders, capsys):
    args = figures.build_parser().parse_args(["sheet", "--ir", str(folders / "ir"), "--vis", str(folders / "vis"),
                                              "--out", str(folders / "sheet"), "--names", "b.png", "--names", "a"])
    assert [pair.name for pair in figures.chosen_pairs(args, [])] == ["b", "a"]
    assert run(folders, "sheet", "--names", "a.png", "c.png") == 1
    assert capsys.readouterr().err == "figures.py: --names c.png: no such pair; there are a, b ...\n"


@pytest.mark.parametrize("kind, name, code", [("sheet", "infrared", 1), ("spectrum", "visible", 1), ("spectrum", "average", 1),
                                              ("sheet", "average", 0)])
def test_a_method_cannot_have_the_name_of_another_column(folders, capsys, kind, name, code):
    assert run(folders, kind, "--fused", f"{name}={folders / 'same'}") == code
    assert ("the name " + name + " is taken" in capsys.readouterr().err) == code


def test_names_can_hold_dollars_and_accents_in_each_form(folders):
    for folder in ("ir", "vis", "same"):
        (folders / folder / "a.png").rename(folders / folder / "cafe\u0301 $\\frac$.png")
    assert run(folders, "sheet", "--fused", f"$\\frac$={folders / 'same'}", "--names", "caf\u00e9 $\\frac$") == 0
    assert written(folders, "sheet") is not None


def drawn(folders, kind, *options):
    """The figure of a kind, before its layout is computed."""
    args = figures.build_parser().parse_args(
        [kind, "--ir", str(folders / "ir"), "--vis", str(folders / "vis"), "--out", "x", *map(str, options)])
    return figures.KINDS[kind](args, [])


def test_the_crops_show_the_boxes(folders):
    ir = cv2.imread(str(folders / "ir" / "a.png"), 0)
    panel = drawn(folders, "sheet", "--names", "a", "--box", "2,3,10,8", "20,20,9,9").axes[0]
    boxes = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in panel.patches]
    assert boxes == [(2, 3, 10, 8), (20, 20, 9, 9)]
    crops = [inset.images[0].get_array() for inset in panel.child_axes]
    assert (crops[0] == ir[3:11, 2:12]).all() and (crops[1] == ir[20:29, 20:29]).all()


@pytest.mark.parametrize("boxes", [["1,38,12,9"], ["40,30,15,12", "1,30,10,10"], ["1,1,8,8", "50,1,8,8"]])
def test_no_crop_covers_a_box_and_all_columns_are_alike(folders, boxes):
    figure = drawn(folders, "sheet", "--names", "a", "--fused", f"Same={folders / 'same'}", "--box", *boxes)
    figure.canvas.draw()
    panels = figure.axes
    for panel in panels:
        insets = [inset.get_window_extent() for inset in panel.child_axes]
        assert len(insets) == len(boxes)
        assert not any(inset.overlaps(box.get_window_extent()) for inset in insets for box in panel.patches)
    assert len({tuple(inset.get_anchor() for inset in panel.child_axes) for panel in panels}) == 1


def test_two_boxes_of_a_quarter_leave_room_for_their_crops():
    rng = np.random.default_rng(0)
    for _ in range(500):
        boxes = [(*rng.integers(0, (76, 61)), *rng.integers(1, (25, 20))) for _ in range(2)]
        corners = figures.inset_corners(boxes, (80, 100))
        insets = [figures.inset_place(box, corner, (80, 100)) for box, corner in zip(boxes, corners)]
        assert corners[0] != corners[1] and not any(figures.overlap(i, box) for i in insets for box in boxes)


def test_a_crop_keeps_the_levels_of_its_pixels(folders):
    levels = np.random.default_rng(0).choice(np.uint8([60, 200]), (48, 64))
    cv2.imwrite(str(folders / "ir" / "a.png"), levels)
    figure = drawn(folders, "sheet", "--names", "a", "--box", "10,4,40,30")
    figure.canvas.draw()
    (inset,) = figure.axes[0].child_axes
    x0, y0, x1, y1 = np.round(inset.get_window_extent().extents).astype(int)
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1][y0 + 3:y1 - 3, x0 + 3:x1 - 3, 0]
    assert {*np.unique(pixels)} == {60, 200}


def test_a_pdf_holds_the_original_pixels(folders):
    assert run(folders, "sheet", "--names", "a", "--box", "2,3,10,8") == 0
    sizes = re.findall(rb"/Width (\d+) /Height (\d+)", (folders / "out" / "sheet.pdf").read_bytes())
    assert {*sizes} == {(b"64", b"48"), (b"10", b"8")}


def test_a_suffix_names_the_only_file_and_none_draws_no_box(folders):
    plain = ["sheet", "--ir", str(folders / "ir"), "--vis", str(folders / "vis"), "--names", "a"]
    for name, box in (("boxes.png", "auto"), ("plain.png", "none")):
        assert figures.main([*plain, "--box", box, "--dpi", "60", "--out", str(folders / name)]) == 0
    assert sorted(path.name for path in folders.glob("*.*")) == ["boxes.png", "plain.png"]
    red = [(image[..., 2].astype(int) - image[..., 1] > 120).sum()
           for image in (cv2.imread(str(folders / name)) for name in ("boxes.png", "plain.png"))]
    assert red[0] > 0 == red[1]


def test_a_broken_pair_is_left_out(folders, capsys):
    (folders / "ir" / "a.png").write_bytes(b"no image")
    assert run(folders, "sheet") == 1
    assert "a.png" in capsys.readouterr().err and written(folders, "sheet") is not None


def test_auto_boxes_find_the_hot_target_and_the_texture():
    ir, vis = np.full((100, 200), 20, np.uint8), np.full((100, 200), 120, np.uint8)
    ir[20:36, 150:166] = 250
    vis[10:30, 20:40] = np.random.default_rng(0).integers(0, 256, (20, 20))
    (x, y, width, height), (tx, ty, *_) = figures.auto_boxes(ir, vis)
    assert x <= 150 and x + width >= 166 and y <= 20 and y + height >= 36
    assert abs(tx - 20) <= 2 and abs(ty - 10) <= 2


def test_auto_boxes_prefer_a_person_at_the_lower_edge_to_a_warm_facade():
    ir, vis = np.full((100, 200), 20, np.uint8), np.full((100, 200), 10, np.uint8)
    ir[5:60, 20:90], ir[80:98, 180:188] = 90, 250
    x, y, width, height = figures.auto_boxes(ir, vis)[0]
    assert x <= 180 and x + width >= 188 and y <= 80 and y + height >= 98
    ir[80:98, 180:188], ir[90:98, 120:128] = 20, 250
    x, y, width, height = figures.auto_boxes(ir, vis)[0]
    assert abs(x + width / 2 - 124) <= 1 and y == 100 - height      # in the middle, as far as the image allows


@pytest.mark.parametrize("box", ["1,2,3", "60,0,10,10", "-1,0,5,5", "a,b,c,d"])
def test_wrong_boxes_are_refused_in_one_line(folders, capsys, box):
    assert run(folders, "sheet", f"--box={box}") == 1
    assert capsys.readouterr().err.startswith(f"figures.py: --box {box}")


def test_a_copy_of_the_visible_has_a_visible_fidelity_of_one(folders):
    table = folders / "spectrum.csv"
    assert run(folders, "spectrum", "--fused", f"Same={folders / 'same'}", "--csv", table) == 0
    rows = [row for row in csv.DictReader(table.open()) if row["method"] == "Same"]
    assert len(rows) == 2 and all(float(row["visible fidelity"]) == pytest.approx(1) for row in rows)
    assert written(folders, "spectrum") is not None


def test_a_constant_image_is_left_out_of_the_mean(folders, capsys):
    size = cv2.imread(str(folders / "same" / "a.png")).shape[:2]
    cv2.imwrite(str(folders / "same" / "a.png"), np.zeros(size, np.uint8))
    assert run(folders, "spectrum", "--fused", f"Same={folders / 'same'}") == 0
    lines = dict(line.split(" (our definition): ") for line in capsys.readouterr().out.splitlines()[:3])
    assert "Same (1 images) 1.000" in lines["visible fidelity"]
    same = cv2.imread(str(folders / "same" / "b.png"), 0)
    entropy = figures.spectral_numbers(same, same, same)["spectral entropy"]
    assert f"Same (1 images) {entropy:.3f}" in lines["spectral entropy"]


def test_no_number_of_a_constant_image_is_defined():
    """200 / 255 at this size has a mean with a rounding error, so the PSD is not constant."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640), np.uint8)
    flat = np.full((480, 640), 200, np.uint8)
    assert all(np.isnan(value) for value in figures.spectral_numbers(flat, noise, noise).values())
    numbers = figures.spectral_numbers(noise, flat, noise)
    assert np.isnan(numbers["infrared fidelity"]) and numbers["visible fidelity"] == pytest.approx(1)


def test_spectra_have_one_scale_and_the_name_of_their_pair(folders):
    upper, _ = drawn(folders, "spectrum", "--names", "b").subfigs
    limits = {axis.images[0].get_clim() for axis in upper.axes if axis.images}
    pixels = np.stack([axis.images[0].get_array() for axis in upper.axes if axis.images])
    assert limits == {(pixels.min(), pixels.max())} and len(pixels) == 4
    assert upper.get_suptitle().startswith("b:") and upper.axes[-1].get_label() == "<colorbar>"


def test_spectra_read_a_pair_when_it_is_its_turn(folders, monkeypatch):
    events = []
    def logged(name, function):
        return lambda *given: events.append(name) or function(*given)

    monkeypatch.setattr(figures, "reader", lambda args: logged("read", load_pair))
    monkeypatch.setattr(figures, "spectral_numbers", logged("numbers", figures.spectral_numbers))
    drawn(folders, "spectrum")
    assert events == ["read", "numbers", "numbers"] * 2     # two baselines


def test_a_sheet_has_a_limit(folders, monkeypatch, capsys):
    monkeypatch.setattr(figures, "MOST_ROWS", 1)
    assert run(folders, "sheet") == 1
    assert "2 pairs are too many for one sheet, which has at most 1; give --count or --names" in capsys.readouterr().err
    assert run(folders, "sheet", "--count", "1") == 0


def test_spectral_entropy_of_noise_is_near_its_bound_and_of_a_wave_far_below():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    wave = np.uint8(127 + 100 * np.sin(np.arange(64) / 2)) * np.ones((64, 1), np.uint8)
    entropy = [figures.spectral_numbers(x, x, x)["spectral entropy"] for x in (noise, wave)]
    assert 10.5 < entropy[0] < 12 and entropy[1] < 5       # log2(64 * 64) = 12


def checkpoint(folders, recipe, prior=True):
    """A last.pth with this part of a recipe. A recipe of None is left out."""
    model = RPFNet(channels=4, stages=2, prior=prior).eval()
    state = {"model": model.state_dict(), "config": model.config, "decoder": AuxiliaryDecoder(4).state_dict()}
    torch.save(state if recipe is None else state | {"recipe": recipe}, folders / "last.pth")
    return folders / "last.pth"


def feature_panels(folders, path):
    """{title: axis} of the panels for pair a."""
    axes = drawn(folders, "features", "--checkpoint", path, "--names", "a").axes
    return {axis.get_title(): axis for axis in axes if axis.images}


@pytest.mark.parametrize("prior", [True, False])
def test_features_of_a_checkpoint_with_and_without_the_prior(folders, prior):
    path = checkpoint(folders, {"prior": prior, "saliency": True}, prior)
    assert run(folders, "features", "--checkpoint", path, "--names", "b", "--dpi", "40") == 0
    assert written(folders, "features") is not None
    assert ("F_R, stage 2" in feature_panels(folders, path)) == prior == ("M'" in feature_panels(folders, path))


@pytest.mark.parametrize("weight, title", [("printed", "w (Eq. 9 as printed)"), ("plus", "w (Eq. 9 with 1 + S)")])
def test_w_is_that_of_the_training(folders, weight, title):
    panels = feature_panels(folders, checkpoint(folders, {"weight": weight}))
    ir, vis = (torch.from_numpy(cv2.imread(str(folders / x / "a.png"), 0))[None, None] / 255 for x in ("ir", "vis"))
    other = adaptive_weight(ir, vis, plus=weight != "plus")[0, 0].numpy()
    shown = panels[title].images[0].get_array()
    assert (shown == adaptive_weight(ir, vis, plus=weight == "plus")[0, 0].numpy()).all() and (shown != other).any()


@pytest.mark.parametrize("recipe, maps", [
    ({"weight": "none"}, {"M'"}), ({"saliency": False}, {"w (Eq. 9 as printed)"}),
    ({"teacher": "contrast"}, set()), (None, set())])
def test_maps_that_were_not_trained_are_left_out(folders, recipe, maps):
    titles = feature_panels(folders, checkpoint(folders, recipe)).keys()
    assert {title for title in titles if title.startswith(("w", "M'"))} == maps


@pytest.mark.parametrize("name, maps", [("paper", {"w (Eq. 9 as printed)"}), ("contrast", {"w (Eq. 9 with 1 + S)"}),
                                        ("tiny", set())])
def test_the_recipe_of_shipped_weights_is_in_their_json(folders, name, maps):
    assert {title for title in feature_panels(folders, name) if title.startswith("w")} == maps


def test_a_recipe_that_cannot_be_read_is_told_in_one_line(folders, capsys):
    path = checkpoint(folders, {"weight": 7})
    assert run(folders, "features", "--checkpoint", path) == 1
    assert capsys.readouterr().err.startswith(f"figures.py: {path}: not a recipe of this train.py: ")


def test_maps_that_are_compared_have_one_scale(folders):
    panels = feature_panels(folders, checkpoint(folders, {"weight": "printed"}))
    limits = {title: axis.images[0].get_clim() for title, axis in panels.items()}
    assert [limits[name] for name in ("infrared", "visible", "fused", "M'", "w (Eq. 9 as printed)")] == [(0, 1)] * 5
    assert limits["M"] == (-1, 1)
    for name in ("F_F", "F_R"):
        means = np.stack([panels[f"{name}, stage {n}"].images[0].get_array() for n in range(3)])
        for n in range(3):
            assert limits[f"{name}, stage {n}"] == pytest.approx(tuple(np.quantile(means, (0.005, 0.995))))
    bars = [title for title, axis in panels.items() if axis.images[0].colorbar]
    assert {*panels} - {*bars} == {"infrared", "visible", "fused"}


def test_phase_changes_the_image_everywhere(folders, capsys):
    assert run(folders, "phase", "--image", folders / "ir" / "a.png", "--box", "36,26,6,6") == 0
    share = float(capsys.readouterr().out.split("one level: ")[1].split("%")[0])
    assert share > 50


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
@pytest.mark.parametrize("box", [(40, 20, 7, 9), (5, 0, 6, 4), (0, 3, 4, 5)])
def test_the_phase_turns_by_a_right_angle_and_the_magnitude_stays(size, box):
    image = np.random.default_rng(0).random(size)
    before, after = np.fft.fft2(image), np.fft.fft2(figures.turn_phase(image, box))
    assert np.allclose(np.abs(after), np.abs(before))
    x, y, width, height = box
    angles = np.fft.fftshift(np.angle(after / before))
    assert np.allclose(angles[y:y + height, x:x + width], np.pi / 2)
    assert (np.abs(angles) > 1e-6).sum() == 2 * width * height      # the box, and its mirror image


@pytest.mark.parametrize("box", ["32,24,1,1", "28,20,9,9", "0,20,3,9"])     # frequency 0, around it, the Nyquist column
def test_a_box_that_overlaps_its_mirror_image_is_refused(folders, capsys, box):
    assert run(folders, "phase", "--image", folders / "ir" / "a.png", "--box", box) == 1
    assert capsys.readouterr().err == (f"figures.py: --box {box}: holds frequencies together with their negatives; "
                                       "choose a box with X from 33\n")
    assert run(folders, "phase", "--image", folders / "ir" / "a.png", "--box", "33,0,31,48") == 0


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_the_same_figure_gives_the_same_file(folders, suffix):
    for name in ("a", "b"):
        assert figures.main(["phase", "--image", str(folders / "ir" / "a.png"), "--out", str(folders / f"{name}{suffix}")]) == 0
    assert (folders / f"a{suffix}").read_bytes() == (folders / f"b{suffix}").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")       # of matplotlib 3.8
def test_tradeoff_needs_its_columns(folders, capsys):
    points = folders / "points.csv"
    points.write_text("method,quality,gflop,parameters\nA,7.4,100,72000\nB,7.1,20,1300000\n")
    assert run(folders, "tradeoff", "--points", points) == 0 and written(folders, "tradeoff") is not None
    for text, problem in (("method,EN\nA,7\n", "KeyError: 'quality'"), ("method,quality,gflop,parameters\n", "no rows"),
                          ("method,quality,gflop,parameters\nA,7,9,1\nB,7,0,1\n", "B: finite numbers are needed, gflop above 0"),
                          ("method,quality,gflop,parameters\nA,7,9,1\nB,nan,1,1\n", "B: finite numbers are needed"),
                          ("method,quality,gflop,parameters\nA,7,9,1\nB,7,9,-1\n", "B: finite numbers are needed"),
                          ("method,quality,gflop,parameters\nA,0,675,83,5\n", "more cells than the header"),
                          ("method,quality,gflop,parameters\nA,7,9,0\n", "parameters must be above 0")):
        points.write_text(text)
        assert run(folders, "tradeoff", "--points", points) == 1
        error = capsys.readouterr().err
        assert "expected a CSV with method, quality, gflop, parameters" in error and problem in error
        assert error.count("\n") == 1
    points.unlink()
    assert run(folders, "tradeoff", "--points", points) == 1
    assert capsys.readouterr().err == f"figures.py: --points {points}: No such file or directory\n"


def test_tradeoff_shows_all_labels_inside_its_axes(folders):
    points = folders / "points.csv"
    points.write_text("method,quality,gflop,parameters\nA,0.43,3.2,1e5\nB,0.5,10,2e4\nLong-Name,0.7,1500,89e6\n")
    args = figures.build_parser().parse_args(["tradeoff", "--points", str(points), "--out", "x"])
    figure = figures.draw_tradeoff(args, [])
    figure.canvas.draw()
    axis, = figure.axes
    frame, places = axis.get_window_extent(), [text.get_window_extent() for text in axis.texts]
    assert all(frame.x0 < place.x0 and place.x1 < frame.x1 and place.y1 < frame.y1 for place in places)


def test_tradeoff_reads_the_csv_of_excel_and_names_its_axis(folders):
    points = folders / "points.csv"
    points.write_text("method,quality,gflop,parameters\nA,7.4,100,72000\n", encoding="utf-8-sig")
    for options, label in (([], "quality"), (["--quality", "VIFF"], "VIFF")):
        args = figures.build_parser().parse_args(["tradeoff", "--points", str(points), "--out", "x", *options])
        assert figures.KINDS["tradeoff"](args, []).axes[0].get_ylabel() == label


def test_a_folder_that_exists_gets_the_files(folders, monkeypatch):
    monkeypatch.chdir(folders / "same")
    plain = ["phase", "--image", str(folders / "ir" / "a.png"), "--dpi", "40"]
    for place in (folders / "other", "."):
        assert figures.main([*plain, "--out", str(place)]) == 0
    for folder in ("same", "other"):
        assert {path.name for path in (folders / folder).glob("phase*")} == {"phase.png", "phase.pdf"}
    assert not list(folders.glob("*.p*"))


def test_unknown_names_are_told(folders, capsys):
    assert run(folders, "sheet", "--names", "z") == 1
    assert "--names z: no such pair" in capsys.readouterr().err
    with pytest.raises(DataError):
        figures.given_boxes(["1,1,100,1"], (10, 10))


@pytest.mark.parametrize("options", [
    ["sheet", "--out", "vis/a.png"], ["sheet", "--out", "ir/a"], ["sheet", "--fused", "Same=same", "--out", "same/b.png"],
    ["phase", "--image", "ir/a.png", "--out", "ir/a"], ["spectrum", "--csv", "link.csv", "--out", "x"]])
def test_inputs_are_never_overwritten(folders, monkeypatch, capsys, options):
    monkeypatch.chdir(folders)
    (folders / "link.csv").symlink_to(folders / "vis" / "b.png")
    before = {path: path.read_bytes() for path in folders.rglob("*.png")}
    sources = [] if options[0] == "phase" else ["--ir", "ir", "--vis", "vis"]
    assert figures.main([*options, *sources]) == 1
    assert "is an input of this command" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folders.rglob("*.png")} == before


@pytest.mark.parametrize("kind, options, message", [
    ("features", ["--names", "a", "b"], "features draws one pair"),
    ("features", ["--fused", "R=same"], "features goes without --fused"),
    ("sheet", ["--csv", "a.csv"], "sheet goes without --csv"),
    ("sheet", ["--names", "a", "--count", "1"], "--count goes without --names"),
    ("phase", ["--split", "val"], "phase goes without --split"),
    ("phase", ["--ir-range", "0", "9"], "phase goes without --ir-range"),
    ("spectrum", ["--csv", "absent/a.csv"], "--csv absent/a.csv: no such folder"),
    ("spectrum", ["--csv", "same"], "--csv same: is a folder"),
    ("spectrum", ["--out", "a.svg", "--csv", "./a.svg"], "--csv a.svg: is also the file of --out"),
    ("spectrum", ["--csv", "a.png"], "--csv a.png: this is an image's name; give a file that ends in .csv"),
    ("sheet", ["--out", "a.tif"], "--out a.tif: choose .png, .jpg"),
    ("sheet", ["--out", "a.TIFF"], "--out a.TIFF: choose .png, .jpg"),
    ("sheet", ["--out", "a.eps"], "--out a.eps: choose .png, .jpg"),
    ("sheet", ["--out", "a.ps"], "--out a.ps: choose .png, .jpg"),
    ("sheet", ["--out", "a.gif"], "--out a.gif: choose .png, .jpg"),
])
def test_options_that_do_not_fit_are_refused_before_any_work(folders, monkeypatch, capsys, kind, options, message):
    monkeypatch.chdir(folders)
    assert run(folders, kind, *options) == 1
    assert message in capsys.readouterr().err and not (folders / "out").exists()


@pytest.mark.parametrize("kind, options", [
    ("sheet", ["--names", "smoke"]), ("features", ["--checkpoint", "tiny"]), ("spectrum", ["--count", "1"]),
    ("tradeoff", ["--points", "points.csv"]), ("phase", [])])
def test_each_kind_draws_the_samples(tmp_path, monkeypatch, kind, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.csv").write_text("method,quality,gflop,parameters\nA,7.4,100,72000\n")
    assert figures.main([kind, "--dpi", "40", *options]) == 0
    assert cv2.imread(str(tmp_path / "figures" / f"{kind}.png")).std() > 10
    pdf = (tmp_path / "figures" / f"{kind}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("document", ["README.md", "docs/figures.md"])
def test_documented_commands_are_understood(document):
    text = (figures.ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^python tools/figures\.py (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    parser = figures.build_parser()
    for line in found:
        args = parser.parse_args([*shlex.split(line), "--out", "x"])
        args.csv = None         # the folder of the file need not exist here
        figures.check_options(args, parser)
    kinds = {line.split()[0] for line in found}
    assert kinds == ({*figures.KINDS} if document.startswith("docs") else {"sheet"})


def test_names_are_text_for_matplotlib():
    """Bytes that are no UTF-8 come from old archives."""
    assert figures.plain("a$b\udcf1") == r"a\$b\udcf1"
