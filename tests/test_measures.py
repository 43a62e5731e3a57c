"""The metrics against published values, against plain re-computations, and on images whose answer is known."""
import csv
import inspect
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import plain_metrics
import pytest
from metric_images import noise, quietly, texture, trio

import metrics
from dataset import load_pair, named_pairs
from images import luma, read_gray
from measures import METRICS
from measures.edges import _toolbox_gradient
from metrics import evaluate

ROOT = Path(__file__).resolve().parents[1]


def function(name):
    return getattr(metrics, name.replace("-", "_"))


# ---------------------------------------------------------------------------------------------
# Published values on real images

# Tolerances of the published table.
EXPECTED = {"SF": ("definition", 1 / 255, 1e-4), "Qabf": ("definition", 1, 1e-4)}
EXPECTED |= dict.fromkeys(("SD", "MI", "VIF"), ("toolbox", 1, 1e-4))
EXPECTED |= dict.fromkeys(("EN", "AG", "MSE", "PSNR", "CC", "SCD"), ("definition", 1, 1e-4))


@pytest.mark.parametrize("method", ["DenseFuse", "U2Fusion", "SeAFusion"])
def test_toolbox_values_are_reproduced(data_root, method):
    folder = data_root / "metrics_reference"
    with open(folder / "expected.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["method"] == method]
    assert len(lines) == 10
    for line in lines:
        images = [read_gray(folder / side / line["image"]) for side in (method, "ir", "vi")]
        got = {protocol: evaluate(*images, protocol, [n for n, e in EXPECTED.items() if e[0] == protocol])
               for protocol in ("definition", "toolbox")}
        for name, (protocol, scale, tolerance) in EXPECTED.items():
            assert got[protocol][name] * scale == pytest.approx(float(line[name]), abs=tolerance), (line["image"], name)


def tno_means(data_root, fuse, protocol, names=None):
    rows = []
    for pair in named_pairs("tno", data_root / "TNO"):
        ir, vis = load_pair(pair)
        vis = luma(vis)
        rows.append(list(evaluate(fuse(pair.name, ir, vis), ir, vis, protocol, names).values()))
    assert len(rows) == 40
    return np.mean(rows, axis=0)


# The paper's Table 4, and its six columns measured on the same images with three digits.
@pytest.mark.parametrize(("method", "measured"), [("LRRNet", (7.037, 3.789, 9.145, 0.436, 1.540, 0.463)),
                                                  ("CS2Fusion", (6.859, 3.680, 9.231, 0.435, 1.547, 0.353))])
def test_paper_protocol_reproduces_table_4(data_root, method, measured):
    folder = data_root / "published_methods" / "TNO" / method
    got = tno_means(data_root, lambda name, ir, vis: read_gray(folder / f"{name}.png"), "paper")
    name, rows = metrics.published_rows("4:TNO")
    row = next(row for row in rows if row.label.startswith(method))
    assert name == "TNO"
    assert got == pytest.approx(list(row.means.values()), rel=0.02)
    assert got == pytest.approx(measured, abs=1e-3)


def test_baselines_on_tno(data_root):
    def fuse(name, ir, vis):
        return metrics.baseline("average", ir, vis)
    assert tno_means(data_root, fuse, "paper") == pytest.approx([6.352, 2.515, 8.562, 0.524, 1.606, 0.307], abs=1e-3)
    names = ["SF", "SD", "CC", "SCD"]
    got = tno_means(data_root, lambda name, ir, vis: metrics.baseline("max", ir, vis), "definition", names)
    assert got == pytest.approx([9.48, 38.50, 0.441, 1.577], abs=5e-3)


@pytest.mark.parametrize(("method", "number"), [("LRRNet", 1), ("CS2Fusion", 1), ("LRRNet", 33), ("CS2Fusion", 8)])
def test_cddfuse_on_real_images(data_root, method, number):
    images = [read_gray(data_root / "published_methods" / f"TNO/{method}/{number}.png"),
              *(read_gray(data_root / "TNO" / f"{side}{number}.bmp") for side in ("IR", "VIS"))]
    images = [image[:240, :320] for image in images]        # the plain metrics are slow
    got, plain = evaluate(*images, "cddfuse"), plain_metrics.evaluate(*images, "cddfuse")
    ssim = got.pop("SSIM"), plain.pop("SSIM")
    assert got == pytest.approx(plain, abs=2e-6) and ssim[0] == pytest.approx(ssim[1], abs=1e-3)   # float32, see SSIM
    height, width = images[0].shape
    definition = evaluate(*images, names=["MI", "AG", "MSE"])
    assert got["MI"] == pytest.approx(definition["MI"] * math.log(2))
    assert got["AG"] == pytest.approx(definition["AG"] * (height - 1) * (width - 1) / (height * width))
    assert got["MSE"] == pytest.approx(definition["MSE"] * 255**2)


# ---------------------------------------------------------------------------------------------
# Independent re-computation: plain_metrics.py, from the definitions, with SciPy and scikit-image

# Qabf: its angles at vertical edges depend on the order of a sum, which the reference does not imitate.
# FMI, AG and Nabf compute in single precision.
TOLERANCE = {"Qabf": 3e-3, "FMI": 1e-6, "AG": 1e-6, "Nabf": 1e-6}


@pytest.mark.parametrize("protocol", ["definition", "toolbox", "cddfuse"])
@pytest.mark.parametrize("case", ["texture", "odd", "noise", "few levels", "dark"])
def test_equals_plain_recomputation(case, protocol):
    images = {"texture": lambda: trio(0, height=192, width=256),
              "odd": lambda: trio(5, height=177, width=191, sigma=0.7),
              "noise": lambda: tuple(noise(i, 180, 178) for i in range(3)),
              "few levels": lambda: tuple(noise(i, 176, 180, levels=3) for i in range(3)),
              "dark": lambda: tuple(x // 12 for x in trio(3))}[case]()
    names = [*metrics.columns(protocol)]
    if protocol == "toolbox":       # the other columns are those of the definitions
        others = [name for name in names if name not in plain_metrics.TOOLBOX_VARIANTS]
        assert evaluate(*images, protocol, others) == evaluate(*images, "definition", others)
        names = [name for name in names if name in plain_metrics.TOOLBOX_VARIANTS]
    got, plain = evaluate(*images, protocol, names), plain_metrics.evaluate(*images, protocol, names)
    assert list(got) == names == list(plain)
    for name in got:
        # CDDFuse's Sobel sums are integers: no tolerance for an order of sums. Its SSIM is computed in float32.
        exact = 1e-4 if name == "SSIM" else 1e-6
        tolerance = exact if protocol == "cddfuse" else TOLERANCE.get(name, 1e-9)
        assert got[name] == pytest.approx(plain[name], rel=1e-6, abs=tolerance), name


def test_bands_do_not_show(monkeypatch):
    images = trio(1, height=187, width=180)
    whole = evaluate(*images)
    monkeypatch.setattr("measures.images.BAND_PIXELS", 1)
    monkeypatch.setattr("measures.fmi.WINDOWS", 1)
    assert evaluate(*images) == pytest.approx(whole, rel=1e-6)


def test_cddfuse_ssim_by_its_definition():
    """To the rounding of float32, which is 1e-4 where bright regions are flat: the constants are small there."""
    images = list(trio(2))
    for image in images:
        image[20:60, 30:90] = 250
        image[40, 50] = 251
    got = evaluate(*images, "cddfuse", ["SSIM"])["SSIM"]
    assert got == pytest.approx(plain_metrics.cddfuse_SSIM(*images), abs=1e-4)


def test_cddfuse_by_hand():
    """One bright column on black: strengths, angles and places counted by hand."""
    x = np.zeros((9, 9), np.uint8)
    x[:, 4] = 3
    got = evaluate(x, x, x, "cddfuse", ["Qabf", "AG", "MI", "PSNR", "MSE"])
    # Equal strengths of 9 and more count as kept to the last digit, and all angles are equal.
    assert got["Qabf"] == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2)), abs=1e-6)
    assert got["AG"] == pytest.approx(2 * 9 * 1.5 / math.sqrt(2) / 81)
    assert got["MI"] == pytest.approx(-2 * (8 / 9 * math.log(8 / 9) + 1 / 9 * math.log(1 / 9)))
    assert (got["PSNR"], got["MSE"]) == (math.inf, 0)
    doubled = evaluate(2 * x, x, x, "cddfuse", ["PSNR", "MSE"])
    assert doubled == pytest.approx({"PSNR": 10 * math.log10(36), "MSE": 1})


def test_cddfuse_shares_the_definitions():
    images = trio(8)
    got, plain = evaluate(*images, "cddfuse"), evaluate(*images)
    shared = ("EN", "SD", "SF", "SCD", "VIF", "CC")
    assert [got[name] for name in shared] == [plain[name] for name in shared]


def test_ssim_equals_scikit_image():
    f, ir, vis = trio(2)
    assert metrics.SSIM(f, ir, vis) == pytest.approx(plain_metrics.SSIM(f, ir, vis), abs=1e-12)


def test_nabf_of_one_added_step():
    """Flat sources have the weight 0.001 everywhere, so Nabf is the share of the places with an added edge."""
    flat = np.full((20, 30), 100, np.uint8)
    fused = flat.copy()
    fused[:, 15:] = 140
    # Two columns carry the step; no strength and a right angle are kept from the sources.
    q = math.sqrt(0.9999 / (1 + math.exp(9.5)) * 0.9995 / (1 + math.exp(11)))
    assert metrics.Nabf(fused, flat, flat) == pytest.approx(2 / 30 * (1 - q), rel=1e-5)


def test_fmi_of_hand_made_windows():
    """One window: the places of all weight, and the joint distribution at correlation 1 and -1."""
    ramp = np.arange(9, dtype=np.uint8).reshape(3, 3).T          # 0 ... 8 in the order of the places
    other = np.full((3, 3), 7, np.uint8)
    p = np.arange(9) / 36
    entropy = -(p[1:] * np.log2(p[1:])).sum()
    # Ramps 0 ... 8 and 0 ... 16 have the same distribution: correlation 1, so all weight is on equal places.
    assert metrics.FMI(ramp * 2, ramp, ramp) == pytest.approx(1, abs=1e-6)
    # A flat window is uncorrelated with everything: independence, no information.
    assert metrics.FMI(other, ramp, ramp) == pytest.approx(0, abs=1e-6)
    # The reversed ramp has correlation -1 and places 10 - i: the lower extreme. Built here cell by cell.
    ends, back = np.cumsum(p), np.cumsum(p[::-1])
    low = np.maximum(np.pad(ends, (1, 0))[:, None] + np.pad(back, (1, 0)) - 1, 0)
    coupling = np.diff(np.diff(low, axis=0), axis=1)
    i = np.arange(9)
    spread = (p * i**2).sum() - (p * i).sum()**2
    covariance = (coupling * np.outer(i, i)).sum() - (p * i).sum() * (p[::-1] * i).sum()
    share = -1 * spread / covariance
    joint = share * coupling + (1 - share) * np.outer(p, p[::-1])
    joint = np.abs(joint[joint != 0]) * np.sign(joint[joint != 0])
    information = 2 * entropy + (joint * np.log2(np.abs(joint))).sum()
    assert metrics.FMI(8 - ramp, ramp, ramp) == pytest.approx(information / entropy, abs=1e-5)


# ---------------------------------------------------------------------------------------------
# Known answers


def test_identical_sources():
    x = texture(0)
    got = evaluate(x, x, x)
    assert got["CC"] == pytest.approx(1)
    assert got["SSIM"] == pytest.approx(1)
    assert got["MS-SSIM"] == pytest.approx(1)
    assert got["FMI"] == pytest.approx(1)
    assert got["VIF"] == pytest.approx(2)
    assert got["VIFF"] == pytest.approx(1, abs=1e-4)
    assert got["MI"] == pytest.approx(2 * got["EN"])
    strength = np.hypot(*plain_metrics.sobel(x / 255, "constant"))      # equal strengths: the toolboxes' ratio is the strength
    kept = 0.9994 * 0.9879 / (1 + np.exp(-15 * (strength - 0.5))) / (1 + math.exp(-4.4))
    assert got["Qabf"] == pytest.approx((kept * strength).sum() / strength.sum(), abs=1e-5)
    assert (got["MSE"], got["PSNR"], got["Nabf"], got["SCD"]) == (0, math.inf, 0, 0)


def test_one_source_copied():
    ir, vis = trio(0)[1:]
    got = evaluate(ir, ir, vis)
    r = np.corrcoef(ir.ravel(), vis.ravel())[0, 1]
    difference = ir.astype(float) - vis
    assert got["CC"] == pytest.approx((1 + r) / 2)
    # F - IR = 0 carries nothing of VIS.
    assert got["SCD"] == pytest.approx(np.corrcoef(difference.ravel(), ir.ravel())[0, 1])
    assert got["VIF"] == pytest.approx(1 + metrics.VIF(ir, vis, vis) / 2)
    assert got["SSIM"] == pytest.approx((1 + metrics.SSIM(ir, vis, vis)) / 2)
    assert got["MSE"] == pytest.approx((difference**2).mean() / 255**2 / 2)


def test_pure_noise_carries_nothing():
    f, ir, vis = (noise(i, 256, 256) for i in range(3))
    got = evaluate(f, ir, vis)
    assert got["EN"] == pytest.approx(8, abs=0.01)
    assert abs(got["CC"]) < 0.02 and abs(got["SSIM"]) < 0.02
    assert got["VIF"] < 0.1 and got["FMI"] < 0.2
    # corr(F - VIS, IR) of independent images is 0.
    assert abs(got["SCD"]) < 0.02


def test_constant_fused_image():
    flat, (_, ir, vis) = np.full((190, 201), 90, np.uint8), trio(0)
    with pytest.warns(UserWarning, match="CC is undefined here .fused constant"):
        got = evaluate(flat, ir, vis)
    assert math.isnan(got.pop("CC"))
    assert all(math.isfinite(value) for value in got.values())
    assert [got[name] for name in ("EN", "MI", "SF", "SD", "AG")] == [0, 0, 0, 0, 0]
    assert got["VIF"] == pytest.approx(0, abs=1e-9)
    assert got["Nabf"] == 0
    assert got["SCD"] == pytest.approx(-2 * np.corrcoef(ir.ravel(), vis.ravel())[0, 1])


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
@pytest.mark.parametrize("level", [0, 7, 255])
def test_all_constant_never_raises(level, protocol):
    flat = np.full((64, 64), level, np.uint8)
    got = quietly(flat, flat, flat, protocol)
    assert math.isnan(got["CC"]) and math.isnan(got["SCD"])
    if protocol != "paper":
        assert math.isnan(got["VIF"]) and got["SSIM"] == pytest.approx(2 if protocol == "cddfuse" else 1)


def test_sources_are_interchangeable():
    f, ir, vis = trio(4)
    # All but VIFF's choice between equal gains.
    assert evaluate(f, ir, vis) == pytest.approx(evaluate(f, vis, ir), rel=1e-9)


def test_toolbox_saturates():
    x = np.array([[0, 10, 0], [100, 0, 3], [0, 0, 0]], np.uint8)
    down = [min(max(v, 0) ** 2, 255) for v in (100, -10, 3, -100, 0, -3)]
    right = [min(max(v, 0) ** 2, 255) for v in (10, -10, -100, 3, 0, 0)]
    assert metrics.SF(x, "toolbox") == pytest.approx(math.sqrt(np.mean(down) + np.mean(right)))
    # The mean is 12.56: 100 - 12.56 rounds to 87, and its square stops at 255; all others are below the mean.
    assert metrics.SD(x, "toolbox") == pytest.approx(math.sqrt(255 / 9))
    high = np.where(x > 2, 255, 254).astype(np.uint8)           # 254 and 255 share a bin of the joint histogram
    assert metrics.MI(high, high, high, "toolbox") == pytest.approx(4 * metrics.EN(high))


# ---------------------------------------------------------------------------------------------
# The interface


@pytest.mark.parametrize("protocol", ["definition", "toolbox", "cddfuse"])
def test_functions_equal_evaluate(protocol):
    f, ir, vis = trio(6)
    got = evaluate(f, ir, vis, protocol)
    for name in got:
        images = (f,) if name in plain_metrics.FUSED_ONLY else (f, ir, vis)
        keywords = {"protocol": protocol} if METRICS[name].variants else {}
        value = function(name)(*images, **keywords)
        assert type(value) is float and value == got[name], name


def test_paper_columns():
    images = trio(7)
    paper, plain, toolbox = (evaluate(*images, protocol) for protocol in ("paper", "definition", "toolbox"))
    assert paper == {"EN": plain["EN"], "SF (AG)": plain["AG"], "SD": toolbox["SD"], "CC": plain["CC"], "SCD": plain["SCD"],
                     "VIFF": toolbox["VIFF"]}


def test_paper_column_of_the_average_gradient():
    images = trio(7)
    assert list(evaluate(*images, "paper")) == ["EN", "SF (AG)", "SD", "CC", "SCD", "VIFF"] == list(metrics.columns("paper"))
    assert evaluate(*images, "paper", ["CC", "SF"]) == {"CC": metrics.CC(*images), "SF (AG)": metrics.AG(images[0])}


def test_only_what_is_asked_is_computed(monkeypatch):
    monkeypatch.setattr("measures.vif._sums", None)
    monkeypatch.setattr("measures.fmi._window_information", None)
    got = evaluate(*trio(0), names=["SCD", "EN", "SSIM"])
    assert list(got) == ["SCD", "EN", "SSIM"]
    assert evaluate(*trio(0), names="EN") == {"EN": got["EN"]}


def test_former_protocol_names():
    images = trio(7, height=64, width=72)
    assert quietly(*images, "float", ["MI", "VIF"]) == quietly(*images, "definition", ["MI", "VIF"])
    assert quietly(*images, "uint8", ["MI", "VIF"]) == quietly(*images, "toolbox", ["MI", "VIF"])
    assert metrics.SD(images[0], "uint8") == metrics.SD(images[0], "toolbox")
    assert metrics.columns("uint8") == metrics.NAMES


def test_registry_and_table_hold_the_same_metrics():
    assert set(METRICS) == set(metrics.NAMES) and len(metrics.NAMES) == 16
    assert metrics.LOWER_IS_BETTER == {"MSE", "Nabf"}


def test_measures_need_neither_pytorch_nor_dataset():
    script = "import sys, measures.tables; assert not {'torch', 'dataset'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_functions_show_their_signature():
    assert str(inspect.signature(metrics.SCD)) == "(fused: numpy.ndarray, ir: numpy.ndarray, vis: numpy.ndarray) -> float"
    assert str(inspect.signature(metrics.SD)) == "(fused: numpy.ndarray, protocol: str = 'definition') -> float"
    f, ir, vis = trio(0)
    assert metrics.SCD(vis=vis, ir=ir, fused=f) == metrics.SCD(f, ir, vis)
    with pytest.raises(TypeError, match=r"SCD\(fused, ir, vis\): missing a required argument: 'vis'"):
        metrics.SCD(f, ir)
    with pytest.raises(TypeError, match=r"EN\(fused\): too many positional arguments"):
        metrics.EN(f, ir, vis)
    assert pickle.loads(pickle.dumps(metrics.SD)) is metrics.SD


def test_docstrings_state_direction_and_range():
    for name in metrics.NAMES:
        words = " ".join(function(name).__doc__.split())
        assert ("lower is better" if name in metrics.LOWER_IS_BETTER else "higher is better") in words, name
        assert "Range" in words, name


@pytest.mark.parametrize("name", ["VIF", "VIFF"])
@pytest.mark.parametrize("arithmetic", ["definition", "toolbox"])
def test_a_constant_source_has_no_fidelity(name, arithmetic):
    """It has the smaller gain, 0, everywhere. Without this rule, VIFF would be 1 for any fused image."""
    fused, ir, vis = trio(0)
    for sources in ((np.full_like(ir, 7), vis), (ir, np.full_like(vis, 7))):
        with pytest.warns(UserWarning, match=f"{name} is undefined here .(ir|vis) constant"):
            assert math.isnan(function(name)(fused, *sources, arithmetic))


@pytest.mark.parametrize(("change", "message"), [
    (lambda f, a, b: (f[1:], a, b), "fused is 201x189 and ir 201x190"),
    (lambda f, a, b: (f, a, b[:, :50]), "vis 50x190"),
    (lambda f, a, b: (f / 255, a, b), r"fused: expected 8-bit pixels \(uint8\), got float64; convert"),
    (lambda f, a, b: (f, a * np.float32(np.nan), b), "ir: .* float32 with NaN or infinity"),
    (lambda f, a, b: (f, a, b.astype(np.uint16)), "vis: .* got uint16; .*16-bit files: images.read_ir"),
    (lambda f, a, b: (f > 9, a, b), "fused: .* got bool; convert a mask x with 255"),
    (lambda f, a, b: (np.dstack([f] * 3), a, b), r"fused: .* got shape \(190, 201, 3\); turn colour to luma"),
    (lambda f, a, b: (f.tolist(), a, b), "fused: .* got list"),
    (lambda f, a, b: (np.ma.masked_less(f, 9), a, b), r"fused: masked array; .* pass fused.filled\(level\)"),
    (lambda f, a, b: (f[:2], a[:2], b[:2]), "201x2 pixels; the metrics need at least 3x3"),
])
def test_errors_name_the_image_and_the_remedy(change, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluate(*change(*trio(0)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("side", "missing"), [
    (3, {"VIF", "VIFF", "SSIM", "MS-SSIM"}), (10, {"VIF", "VIFF", "SSIM", "MS-SSIM"}), (11, {"VIF", "VIFF", "MS-SSIM"}),
    (40, {"VIF", "VIFF", "MS-SSIM"}), (41, {"MS-SSIM"}), (175, {"MS-SSIM"}), (176, set())])
def test_small_images_lose_only_what_they_cannot_have(side, missing):
    cut = [x[:side, :side] for x in trio(0)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = evaluate(*cut)
    assert {name for name, value in got.items() if math.isnan(value)} == missing
    assert {str(w.message).split()[0] for w in caught} == missing
    assert all(f"({side}x{side} is below" in str(w.message) for w in caught)
    assert got["SD"] == pytest.approx(plain_metrics.SD(cut[0]))
    assert math.isnan(quietly(*cut, "cddfuse")["SSIM"]) == (side < 7)


def test_one_function_warns_too():
    with pytest.warns(UserWarning, match="VIF is undefined here .40x201 is below 41x41") as caught:
        assert math.isnan(metrics.VIF(*(x[:, :40] for x in trio(0, height=201))))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("view", [
    lambda x: x[:, ::-1], lambda x: x[::-1], lambda x: x.T, lambda x: np.asfortranarray(x), lambda x: x[3:-2, 5:-1],
    lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3], lambda x: np.dstack([x, x, x])[..., 1],
    lambda x: x.view(np.matrix)])
@pytest.mark.parametrize("protocol", ["toolbox", "cddfuse"])
def test_any_memory_layout(view, protocol):
    views = [view(x) for x in trio(0, height=60, width=75)]
    assert quietly(*views, protocol) == pytest.approx(quietly(*(np.array(x) for x in views), protocol), rel=0, nan_ok=True)


def test_unknown_names():
    with pytest.raises(ValueError, match="no metric 'AG' under protocol 'paper'"):
        evaluate(*trio(0), "paper", ["AG"])
    with pytest.raises(ValueError, match="protocol 'matlab'"):
        evaluate(*trio(0), "matlab")
    with pytest.raises(ValueError, match="protocol 'paper'"):
        metrics.SD(texture(0), "paper")


def test_qabf_of_black_sources_is_undefined():
    black = np.zeros((20, 30), np.uint8)
    with pytest.warns(UserWarning, match="Qabf is undefined here .no edges in the sources"):
        assert math.isnan(metrics.Qabf(texture(0, 20, 30), black, black))


def test_nabf_weighs_gradients_from_two():
    source = np.full((20, 30), 100, np.uint8)
    source[:, 20:] += 4             # Sobel / 8 of this step is exactly 2, in two columns
    fused = source.copy()
    fused[:, :10] = 140
    q = math.sqrt(0.9999 / (1 + math.exp(9.5)) * 0.9995 / (1 + math.exp(11)))
    lost, there = 2 * 20 * 2 * 0.001 * (1 - q), 2 * 20 * (2 * 2**1.5 + 28 * 0.001)
    assert metrics.Nabf(fused, source, source) == pytest.approx(lost / there, rel=1e-4)


def test_ms_ssim_of_a_negative_is_0():
    x = texture(0)
    assert metrics.MS_SSIM(255 - x, x, x) == 0


def test_cddfuse_psnr_of_a_black_image():
    x = texture(0)
    assert metrics.PSNR(np.zeros_like(x), x, x, "cddfuse") == -math.inf


@pytest.mark.parametrize("name", ["CC", "SCD"])
@pytest.mark.parametrize("role", ["ir", "vis"])
def test_a_constant_source_has_no_correlation(name, role):
    fused, ir, vis = trio(0, height=40, width=50)
    sources = {"ir": ir, "vis": vis} | {role: np.full_like(ir, 7)}
    with pytest.warns(UserWarning, match=f"{name} is undefined here .{role} constant"):
        assert math.isnan(function(name)(fused, *sources.values()))


def test_two_levels_are_not_constant():
    x = np.where(texture(0, 60, 60) > 128, 200, 50).astype(np.uint8)
    assert metrics.VIF(x, x, x) == pytest.approx(2)


def test_toolbox_rounds_half_up():
    x = np.array([[10, 11, 10], [11, 10, 11], [10, 11, 10], [11, 10, 11]], np.uint8)        # the mean is 10.5
    assert metrics.SD(x, "toolbox") == pytest.approx(math.sqrt(0.5))


def test_qabf_sums_in_the_order_of_matlab():
    """Rounding decides the sign of many sums that should be 0: here each row is constant."""
    image = np.pad(np.repeat(texture(0, 60, 1), 30, axis=1), 1)
    across, down = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]), np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    gx = gy = 0
    for j in range(3):
        for i in range(3):
            part = (image / 255)[2 - i:62 - i, 2 - j:32 - j]
            gx, gy = gx + across[i, j] * part, gy + down[i, j] * part
    assert 0.1 < ((gx != 0) & (abs(gx) < 1e-9)).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where(gx == 0, np.pi / 2, np.arctan(gy / gx)).astype(np.float32)
    assert np.array_equal(_toolbox_gradient(image).angle, angle)
