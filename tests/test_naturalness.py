"""The naturalness measures on hand-made images whose answer is known, and the command on files."""
import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter

from dataset import load_pair, named_pairs
from images import luma, read_gray
from metrics import baseline
from net import RPFNet
from tools import naturalness as command
from tools.naturalness import DAY, MEASURES, entering_target, flicker_measures, naturalness, static_background

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (200, 240)
TARGET = (slice(80, 110), slice(60, 80))        # 600 of 48,000 pixels
DARK_NIGHT = 45         # gray levels; dark pixels of a fused night image are below this, fog is above 100


def flat(level, shape=SHAPE):
    return np.full(shape, level, np.uint8)


def scene(ir=10, vis=20, target=200):
    """A flat pair with one infrared target."""
    ir, vis = flat(ir), flat(vis)
    ir[TARGET] = target
    return ir, vis


def noise(seed, sigma, level, shape=SHAPE):
    x = np.random.default_rng(seed).normal(level, sigma, shape)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def real_scene(seed=0, colour=False):
    shape = (*SHAPE, 3) if colour else SHAPE
    return noise(seed, 20, 90), noise(seed + 1, 20, 70, shape)


def sample(name):
    """A pair of samples/, gray and small: (ir, vis)."""
    images = (read_gray(ROOT / "samples" / side / f"{name}.png") for side in ("ir", "vis"))
    return tuple(cv2.resize(image, (240, 180), interpolation=cv2.INTER_AREA) for image in images)


# ---------------------------------------------------------------------------------------------
# Dark regions


def test_dark_level_and_lift_are_the_means_where_both_sources_are_dark():
    ir, vis = scene(ir=10, vis=20)
    fused = flat(24)
    fused[TARGET] = 250             # not dark in the infrared: left out
    got = naturalness(fused, ir, vis)
    assert got["dark"] == 24 and got["lift"] == 4


def test_a_pixel_at_the_limit_is_not_dark():
    ir, vis = flat(0), flat(24)
    vis[:100] = 25
    fused = flat(200)
    fused[100:] = 30
    assert naturalness(fused, ir, vis)["dark"] == 30


@pytest.mark.parametrize(("rows", "defined"), [(1, False), (2, True)])        # of 200: 0.5 % and 1 %
def test_dark_is_undefined_below_one_percent(rows, defined):
    ir, vis = flat(100), flat(100)
    ir[:rows], vis[:rows] = 5, 5
    got = naturalness(flat(7), ir, vis)
    assert (got["dark"], got["lift"]) == (7, 2) if defined else math.isnan(got["dark"]) and math.isnan(got["lift"])


def test_noise_that_is_amplified_three_times_is_found():
    ir, vis = noise(0, 2, 12), flat(5)
    fused = np.clip(3 * (ir.astype(int) - 12) + 100, 0, 255).astype(np.uint8)
    assert naturalness(fused, ir, vis)["noise"] == pytest.approx(3, rel=0.02)


def test_noise_is_compared_with_the_noisier_source():
    ir, vis = noise(0, 2, 12), noise(1, 1, 12)
    assert naturalness(ir, ir, vis)["noise"] == 1
    assert naturalness(ir, vis, ir)["noise"] == 1
    assert naturalness(vis, ir, vis)["noise"] == pytest.approx(0.515, abs=0.01)   # rounding adds 1/12 to both variances


def test_noise_ignores_brightness_and_edges():
    """A lamp beside the dark pixels is no noise of theirs, however bright."""
    ir, vis = noise(0, 2, 12), flat(5)
    fused = ir + np.uint8(60)
    fused[80:120, 100:140] = 255
    assert naturalness(fused, ir, vis)["noise"] == pytest.approx(1, rel=0.05)


def test_noise_is_undefined_without_noise_in_the_sources():
    assert math.isnan(naturalness(noise(0, 2, 12), flat(5), flat(6))["noise"])


# ---------------------------------------------------------------------------------------------
# Targets and background


def test_hot_is_the_ratio_on_infrared_targets():
    ir, vis = scene(target=200)
    fused = flat(20)
    fused[TARGET] = 150
    assert naturalness(fused, ir, vis)["hot"] == 0.75


def test_hot_leaves_out_what_is_brighter_in_the_visible_image():
    """Half of the hot region is sunlit: the visible image sets its brightness."""
    ir, vis = scene(target=200)
    sunlit = (slice(95, 110), TARGET[1])
    vis[sunlit] = 240
    fused = np.maximum(ir, vis)
    fused[sunlit] = 255
    assert naturalness(fused, ir, vis)["hot"] == 1


def test_bright_leaves_out_targets_that_are_only_warm():
    """A warm facade fades, a person does not."""
    ir, vis = flat(10), flat(5)
    ir[:8, :16], ir[8:16, :16] = 149, 150
    fused = ir.copy()
    fused[:8, :16] = 0
    assert naturalness(fused, ir, vis)["bright"] == 1
    assert naturalness(fused, ir, vis)["hot"] == pytest.approx(150 / 299)
    ir[8:16, :16] = 149
    assert math.isnan(naturalness(fused, ir, vis)["bright"])


def test_hot_is_undefined_without_targets():
    ir, vis = flat(50), flat(40)
    assert math.isnan(naturalness(flat(50), ir, vis)["hot"])
    ir[0, :40] = 200        # 40 of 48,000 pixels, below 0.1 %
    assert math.isnan(naturalness(flat(50), ir, vis)["hot"])


@pytest.mark.parametrize(("level", "name", "other"), [(59, "night", "day"), (60, "day", "night")])
def test_background_ratio_by_day_and_by_night(level, name, other):
    ir, vis = scene(ir=10, vis=level)
    fused = flat(90)
    fused[TARGET] = 255     # w = 1: no background
    got = naturalness(fused, ir, vis)
    assert got[name] == pytest.approx(90 / level) and math.isnan(got[other])
    moved = naturalness(fused, ir, vis, day=200)
    assert moved["night"] == pytest.approx(90 / level)


def test_background_ratio_is_undefined_over_a_black_visible_image():
    ir, vis = scene(vis=0)
    got = naturalness(flat(9), ir, vis)
    assert math.isnan(got["day"]) and math.isnan(got["night"])


def test_black_is_the_level_where_both_sources_are_at_most_two():
    ir, vis = flat(0), flat(2)
    ir[:50] = 3
    fused = flat(99)
    fused[50:] = 8
    assert naturalness(fused, ir, vis)["black"] == 8
    assert math.isnan(naturalness(fused, flat(3), vis)["black"])


def test_the_average_of_equal_sources_is_natural():
    ir, vis = scene(ir=12, vis=12)
    vis[TARGET] = 190
    got = naturalness(ir, ir, vis)
    assert got["lift"] == 0 and got["hot"] == 1 and got["night"] == 1


def test_images_that_do_not_fit_are_refused_by_name():
    ir, vis = scene()
    for images, name in (((flat(0, (9, 9)), ir, vis), "fused"), ((ir, ir, vis / 255), "vis"),
                         ((np.dstack([ir] * 3), ir, vis), "fused")):
        with pytest.raises(ValueError, match=f"^{name} is "):
            naturalness(*images)


def test_msrs_names_tell_day_and_night_as_the_visible_mean_does(data_root):
    folder = data_root / "MSRS_test40"
    for pair in named_pairs("msrs", folder):
        vis = luma(load_pair(pair)[1])
        assert (vis.mean() >= DAY) == pair.name.endswith("D"), pair.name


@pytest.fixture(scope="module")
def default_network():
    return RPFNet.from_pretrained().optimize()


def test_the_default_network_leaves_night_dark_and_image_statistics_turn_it_to_fog(default_network):
    ir, vis = (image // 8 for image in sample("night_street"))
    assert naturalness(default_network.fuse(ir, vis), ir, vis)["dark"] < DARK_NIGHT
    fog = RPFNet.from_pretrained().fuse(ir, vis, as_published=True)
    assert naturalness(fog, ir, vis)["dark"] > DARK_NIGHT


def test_the_default_network_leaves_real_nights_dark(default_network, data_root):
    nights = [pair for pair in named_pairs("msrs", data_root / "MSRS_test40") if pair.name.endswith("N")][:2]
    for pair in nights:
        ir, vis = load_pair(pair)
        ir, vis = (cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA) for image in (ir, luma(vis)))
        assert naturalness(default_network.fuse(ir, vis), ir, vis)["dark"] < DARK_NIGHT, pair.name
    assert len(nights) == 2


# ---------------------------------------------------------------------------------------------
# Flicker


@pytest.mark.parametrize("colour", [False, True])
def test_a_target_enters_from_the_left_and_crosses(colour):
    ir, vis = real_scene(colour=colour)
    frames = list(entering_target(ir, vis, 12))
    assert len(frames) == 12
    assert (frames[0][0] == ir).all() and (frames[0][1] == vis).all()
    places = []
    for hot, visible in frames[1:]:
        assert hot.dtype == visible.dtype == np.uint8 and hot.shape == ir.shape and visible.shape == vis.shape
        changed = hot != ir
        places.append(np.nonzero(changed)[1].mean())
        assert (visible.astype(int) - vis).max() <= 6 and (visible >= vis).all()
    assert (np.diff(places) > 0).all() and places[0] < 40 and places[-1] > 220


def test_the_target_has_its_level_and_its_width():
    ir, vis = flat(0, (240, 480)), flat(0, (240, 480))
    middle = list(entering_target(ir, vis, 3))[1][0]
    assert middle.max() == 240
    assert (middle.max(axis=0) >= 120).sum() == pytest.approx(480 / 12, abs=1)


def test_the_sources_do_not_change_on_the_static_background():
    ir, vis = real_scene()
    background = static_background(SHAPE, 9)
    assert 0.2 < background.mean() < 0.9 and not background[100].any()
    for hot, visible in entering_target(ir, vis, 9):
        assert (hot[background] == ir[background]).all() and (visible[background] == vis[background]).all()
        unchanged = np.uint8((hot == ir) & (visible == vis))
        assert cv2.distanceTransform(unchanged, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[background].min() > 24


@pytest.mark.parametrize("name", ["max", "average"])
def test_a_fixed_map_of_pixels_does_not_flicker(name):
    got = flicker_measures(lambda ir, vis: baseline(name, ir, vis), *real_scene(), 6)
    assert got == {"flicker": 0, "jump": 0}


def normalised(ir, vis):
    """A "method" that shifts each image to one mean, as image statistics do."""
    average = (ir.astype(float) + vis) / 2
    return np.clip(np.rint(average - average.mean() + 120), 0, 255).astype(np.uint8)


def test_a_method_that_normalises_the_mean_flickers():
    """A flat scene's background moves as a whole, so both numbers follow from the means."""
    ir, vis = flat(40), flat(60)
    averages = [(a.astype(float) + b) / 2 for a, b in entering_target(ir, vis, 8)]
    level = np.array([np.rint(50 - average.mean() + 120) for average in averages])
    expected = math.sqrt(np.mean((level[1:] - level[0])**2))
    assert expected > 0.5
    got = flicker_measures(normalised, ir, vis, 8)
    assert got["flicker"] == pytest.approx(expected)
    assert got["jump"] == np.abs(np.diff(level)).max()


def test_flicker_takes_a_network():
    torch.manual_seed(0)
    model = RPFNet(channels=4, stages=1).eval()
    ir, vis = real_scene()
    assert flicker_measures(model, ir, vis, 3) == flicker_measures(model.fuse, ir, vis, 3)


@pytest.mark.parametrize(("name", "most"), [("night_street", 2.5), ("smoke", 1.3)])       # gray levels; 1.86 and 0.89
def test_the_default_network_hardly_flickers(default_network, name, most):
    assert flicker_measures(default_network, *sample(name), 6)["flicker"] < most


def test_flicker_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="at least 2"):
        flicker_measures(normalised, *real_scene(), 1)
    with pytest.raises(ValueError, match="60x30: no pixel"):
        flicker_measures(normalised, flat(0, (30, 60)), flat(0, (30, 60)), 4)


# ---------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def tree(tmp_path):
    """Two pairs, a (night) and b (day), with fused images of a method."""
    for folder in ("ir", "vis", "mine"):
        (tmp_path / folder).mkdir()
    for seed, (name, level) in enumerate((("a", 12), ("b", 120))):
        ir, vis = noise(seed, 2, 14), noise(seed + 9, 2, level)
        ir[TARGET] = 210
        for folder, image in (("ir", ir), ("vis", vis), ("mine", baseline("max", ir, vis) // 2)):
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image)
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = RPFNet(channels=4, stages=1)
    torch.save({"model": model.state_dict(), "config": model.config}, tmp_path / "small.pth")
    return ["--checkpoint", str(tmp_path / "small.pth")]


def run(tree, *options):
    return command.main(["--ir", str(tree / "ir"), "--vis", str(tree / "vis"), *options])


def read(path):
    with path.open(newline="") as file:
        return {(row["image"], row["method"]): row for row in csv.DictReader(file)}


def test_names_are_safe_in_a_terminal_and_in_a_spreadsheet(tree, capsys):
    for side in ("ir", "vis", "mine"):
        (tree / side / "a.png").rename(tree / side / "=1\x1b[31m.png")
    assert run(tree, "--fused", f"Mine={tree / 'mine'}", "--each", "--csv", str(tree / "out.csv")) == 0
    assert r"=1\x1b[31m" in capsys.readouterr().out and (r"'=1\x1b[31m", "Mine") in read(tree / "out.csv")


def test_csv_round_trip(tree, capsys):
    assert run(tree, "--fused", f"Mine={tree / 'mine'}", "--each", "--csv", str(tree / "out.csv")) == 0
    rows = read(tree / "out.csv")
    methods = ("Mine", "average", "max")
    assert list(rows) == [(image, method) for image in ("a", "b", "mean", "images") for method in methods]
    for name in ("a", "b"):
        fused, ir, vis = (read_gray(tree / side / f"{name}.png") for side in ("mine", "ir", "vis"))
        for method in methods:
            image = fused if method == "Mine" else baseline(method, ir, vis)
            got = {measure: float(rows[name, method][measure]) for measure in MEASURES}
            assert got == pytest.approx(naturalness(image, ir, vis), abs=0, rel=0, nan_ok=True)
    for measure in MEASURES:
        values = [float(rows[name, "Mine"][measure]) for name in ("a", "b")]
        defined = [value for value in values if not math.isnan(value)]
        assert int(rows["images", "Mine"][measure]) == len(defined)
        mean = np.mean(defined) if defined else math.nan
        assert float(rows["mean", "Mine"][measure]) == pytest.approx(mean, nan_ok=True)
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if set(line) != set("- ")]
    assert printed[0][:3] == ["image", "method", "dark"]
    assert [tuple(line[:2]) for line in printed[1:]] == list(rows)
    assert printed[7][2] == f"{float(rows['mean', 'Mine']['dark']):.3f}"


def test_an_image_that_exceeds_the_memory_leaves_the_others(tree, capsys, monkeypatch):
    whole = command.naturalness

    def short_of_memory(fused, ir, *rest):
        if np.array_equal(ir, read_gray(tree / "ir" / "a.png")):
            raise MemoryError("Unable to allocate")
        return whole(fused, ir, *rest)

    monkeypatch.setattr(command, "naturalness", short_of_memory)
    assert run(tree, "--fused", f"Mine={tree / 'mine'}", "--csv", str(tree / "out.csv")) == 1
    assert "skipped: Mine, a: Unable to allocate" in capsys.readouterr().err
    assert max(int(value) for key, value in read(tree / "out.csv")["images", "Mine"].items() if key in MEASURES) == 1


def test_a_closed_pipe_costs_no_rows_of_the_file(tree, monkeypatch):
    def closed(*_):
        raise BrokenPipeError
    monkeypatch.setattr(command, "print", closed, raising=False)
    with pytest.raises(BrokenPipeError):        # support.console.run ends the command with exit code 1
        run(tree, "--fused", f"Mine={tree / 'mine'}", "--csv", str(tree / "out.csv"))
    assert ("mean", "Mine") in read(tree / "out.csv")


def test_without_each_only_the_means_are_written(tree, capsys):
    assert run(tree, "--fused", str(tree / "mine"), "--csv", str(tree / "out.csv")) == 0
    assert {image for image, _ in read(tree / "out.csv")} == {"mean", "images"}
    assert len(capsys.readouterr().out.splitlines()) == 8       # header, rule, three methods twice


def test_tables_for_documents(tree, capsys):
    assert run(tree, "--fused", f"a_b|c={tree / 'mine'}", "--format", "markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert r"a\_b\|c" in lines[2] and len({line.replace(r"\|", "").count("|") for line in lines if line}) == 1


def test_a_network_is_fused_and_its_flicker_measured(tree, weights, capsys):
    assert run(tree, *weights, "--flicker", "1", "--frames", "3", "--each", "--csv", str(tree / "out.csv")) == 0
    rows = read(tree / "out.csv")
    ir, vis = (read_gray(tree / side / "a.png") for side in ("ir", "vis"))
    model = RPFNet.from_pretrained(weights[1])
    assert float(rows["a", "small"]["dark"]) == naturalness(model.fuse(ir, vis), ir, vis)["dark"]
    assert float(rows["mean", "small"]["flicker"]) == flicker_measures(model, ir, vis, 3)["flicker"]
    assert rows["b", "small"]["flicker"] == "nan" and rows["images", "small"]["flicker"] == "1"
    assert float(rows["mean", "max"]["flicker"]) == 0


@pytest.mark.parametrize("flags", [[], ["--as-published"]])
def test_as_published_is_passed_on_only_where_it_is_given(tree, weights, monkeypatch, flags):
    calls = []

    def fuse(self, ir, vis, **options):
        calls.append(options)
        return ir

    monkeypatch.setattr(RPFNet, "fuse", fuse)
    assert run(tree, *weights, *flags) == 0
    assert calls == [{"as_published": True} if flags else {}] * 2


def test_bad_images_are_skipped_by_name(tree, capsys):
    (tree / "mine" / "a.png").unlink()
    cv2.imwrite(str(tree / "mine" / "b.png"), flat(3, (20, 30)))
    assert run(tree, "--fused", f"Mine={tree / 'mine'}") == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert len(err) == 2
    assert "no fused image for a" in err[0] and err[1].startswith(f"skipped: {tree / 'mine' / 'b.png'}: is 30x20 and")


def test_an_unreadable_pair_is_skipped_and_the_rest_measured(tree, weights, capsys):
    (tree / "ir" / "a.png").write_bytes(b"damaged")
    assert run(tree, *weights, "--each", "--flicker", "1", "--frames", "2", "--csv", str(tree / "out.csv")) == 1
    assert "a.png: not an image" in capsys.readouterr().err
    rows = read(tree / "out.csv")
    assert ("a", "max") not in rows and rows["b", "small"]["flicker"] != "nan"      # the first pair that can be read


@pytest.mark.parametrize(("options", "message"), [
    ([], "nothing to measure"),
    (["--fused", "mine", "--flicker"], "need a network"),
    (["--fused", "mine", "--as-published"], "need a network"),
    (["--fused", "mine", "--device", "cpu"], "need a network"),
    (["--fused", "max=mine"], "the name max is taken"),
    (["--fused", "absent"], "absent: no such folder"),
    (["--fused", "mine", "--csv", "absent/out.csv"], "no such folder"),
    (["--fused", "mine", "--csv", "."], "is a folder"),
    (["--checkpoint", "absent.pth"], "absent.pth: no such checkpoint"),
    (["--checkpoint", "small.pth", "--fused", "small=mine"], "the name small is taken"),
    (["--checkpoint", "small.pth", "--flicker", "--frames", "1"], "at least 2"),
])
def test_errors_are_one_line(tree, weights, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tree)
    assert run(tree, *options) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("naturalness.py: ") and len(err.splitlines()) == 1 and message in err


def test_help_explains_the_measures(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in (*MEASURES, "flicker", "jump"))


def test_noise_is_scipys_residual_in_windows_of_nine():
    image = noise(0, 2, 12)
    residual = image - gaussian_filter(image.astype(float), 1.5, mode="mirror")
    expected = np.sqrt(np.median(uniform_filter(residual**2, 9, mode="mirror")))
    assert command._noise(image, np.ones(SHAPE, bool)) == pytest.approx(expected, rel=1e-4)


def test_noise_of_half_a_level_is_noise():
    ir = noise(0, 0.5, 12)
    assert naturalness(ir, ir, flat(5))["noise"] == 1


def test_the_target_adds_six_levels_to_the_visible_image():
    for level, expected in ((100, 106), (253, 255)):
        visible = [vis for _, vis in entering_target(flat(0), flat(level), 3)]
        assert visible[1].max() == expected and min(vis.min() for vis in visible) == level


def test_day_reaches_the_measures(tree):
    assert run(tree, "--fused", f"Mine={tree / 'mine'}", "--day", "200", "--each", "--csv", str(tree / "a.csv")) == 0
    row = read(tree / "a.csv")["b", "Mine"]
    assert row["day"] == "nan" and row["night"] != "nan"


@pytest.mark.parametrize("pixels, defined", [(47, False), (48, True)])      # of 48,000
def test_hot_is_defined_from_a_thousandth(pixels, defined):
    ir, vis = flat(50), flat(40)
    ir[0, :pixels] = 200
    assert math.isnan(naturalness(flat(50), ir, vis)["hot"]) is not defined
