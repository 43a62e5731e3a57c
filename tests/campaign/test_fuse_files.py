"""test.py against damaged and hostile files, odd names, full disks and folders that are in use.

    python -m pytest tests/campaign -m campaign

Each case runs the command on good pairs and a bad thing among them. Whatever it is: the good pairs are written, the bad
one is named, the exit code says so, and nobody sees a traceback.
"""
import io
import os
import resource
import subprocess
import time

import cv2
import fuse_cases
import numpy as np
import pytest
from fuse_cases import GOOD, add, arguments, process, save, scene, survives, written
from PIL import Image

import dataset
import images
import pipeline
from net import RPFNet
from support import outputs
from support.headers import turned

pytestmark = pytest.mark.campaign
fuse, tree, weights = fuse_cases.fuse, fuse_cases.tree, fuse_cases.weights      # fixtures


# --- 1. one bad pair never ends the run ---


def _with_a_folder(tree):
    (tree / "out" / "bad.png").mkdir(parents=True)
    add(tree, "bad")


def _too_wide(tree):
    add(tree, "bad", size=(16, 65600))


def _loop(tree):
    add(tree, "bad")
    (tree / "vis" / "bad.png").unlink()
    (tree / "vis" / "bad.png").symlink_to("bad.png")


def _dangling(tree):
    add(tree, "bad")
    (tree / "ir" / "bad.png").unlink()
    (tree / "ir" / "bad.png").symlink_to("nowhere.png")


def _folder_as_image(tree):
    add(tree, "bad")
    (tree / "ir" / "bad.png").unlink()
    (tree / "ir" / "bad.png").mkdir()


def _fifo(tree):
    add(tree, "bad")
    (tree / "ir" / "bad.png").unlink()
    os.mkfifo(tree / "ir" / "bad.png")


def _float(tree):
    add(tree, "bad", suffixes=(".tif", ".tif"))
    save(tree / "ir" / "bad.tif", np.zeros((40, 50), np.float32))


def _content(data):
    def make(tree):
        add(tree, "bad")
        (tree / "vis" / "bad.png").write_bytes(data)

    return make


def _sizes(ir, vis):
    def make(tree):
        save(tree / "ir" / "bad.png", scene(1, ir, False))
        save(tree / "vis" / "bad.png", scene(1, vis))

    return make


BAD_PAIRS = {
    "target taken by a folder": (_with_a_folder, []),
    "too wide for jpg": (_too_wide, ["--format", "jpg"]),
    "symlink to itself": (_loop, []),
    "dangling link": (_dangling, []),
    "folder as image": (_folder_as_image, []),
    "fifo": (_fifo, []),
    "float pixels": (_float, []),
    "empty": (_content(b""), []),
    "text": (_content(b"hello"), []),
    "html": (_content(b"<html>404</html>"), []),
    "gif in a png's name": (_content(b"GIF89a" + bytes(30)), []),
    "png header only": (_content(b"\x89PNG\r\n\x1a\n"), []),
    "git lfs pointer": (_content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), []),
    "zeros": (_content(bytes(5000)), []),
    "15 pixels": (_sizes((15, 50), (15, 50)), []),
    "1 pixel": (_sizes((1, 1), (1, 1)), []),
    "other size": (_sizes((40, 50), (40, 51)), []),
    "turned": (_sizes((40, 50), (50, 40)), []),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_bad_pair(tree, fuse, name, batch):
    make, options = BAD_PAIRS[name]
    make(tree)
    survives(tree, fuse("--batch", batch, *options), "bad")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_cut_files(tree, fuse, suffix, share):
    add(tree, "bad", suffixes=(".png", suffix), size=(80, 90))
    path = tree / "vis" / f"bad{suffix}"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    done = fuse()
    survives(tree, done, "bad")
    assert "bad" not in written(tree)


@pytest.mark.parametrize(
    "name", ["1²2", "٣", "9" * 240, "é", "図", "a b", "a.b.c", "-n", "%s", "{x}", "a\\b", "'", '"', "$(x)"]
)
def test_names_that_sort_and_are_kept(tree, fuse, name):
    add(tree, name)
    done = fuse()
    assert done.code == 0 and [*written(tree)] == sorted([*GOOD, name])


@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".bmp", ".webp"])
def test_a_result_longer_than_the_file_system_takes(tree, fuse, suffix):
    """Names of almost 255 bytes, which are fused as any other."""
    name = "ü" * 125
    add(tree, name, suffixes=(suffix, suffix))
    assert fuse().code == 0 and name in written(tree)


def test_a_name_that_its_result_cannot_have(tree, fuse, monkeypatch):
    """As on a file system that takes less in --out than in the folders of the sources."""

    add(tree, "bad")
    whole = images.write_atomically

    def narrow(path, data, sync=True):
        whole(path.with_name("x" * 256) if path.stem == "bad" else path, data, sync)

    monkeypatch.setattr(images, "write_atomically", narrow)
    survives(tree, fuse(), "bad: ", "too long")


@pytest.mark.parametrize("where", ["decode", "prepare", "network", "encode"])
def test_out_of_memory_mentions_tiles(tree, fuse, where, monkeypatch):
    add(tree, "bad", size=(44, 50))
    target, name = {
        "decode": (dataset, "load_pair"),
        "prepare": (pipeline, "prepare"),
        "network": (pipeline, "fuse_luminance"),
        "encode": (pipeline, "in_colour_of"),
    }[where]
    whole = getattr(target, name)

    def short(*arguments, **options):
        first = arguments[1][0][0] if where == "network" else arguments[0]
        if first.name == "bad" if where == "decode" else len(first) == 44:
            raise MemoryError("Unable to allocate 74.5 GiB")
        return whole(*arguments, **options)

    monkeypatch.setattr(target, name, short)
    survives(tree, fuse(), "bad: out of memory", "--tile")


def _limited():
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)


def test_a_small_file_of_many_pixels(tree, weights):
    """24,000 x 24,000 in a PNG of 600 kB, in 6 GB."""
    black = np.zeros((24000, 24000), np.uint8)
    for side in ("ir", "vis"):
        save(tree / side / "g0.png", black)
    done = process(*arguments(tree, weights), preexec_fn=_limited)
    _, error = done.communicate(timeout=900)
    assert done.returncode == 1 and "g0" in error and "--tile" in error and "Traceback" not in error
    assert written(tree) == sorted(GOOD)


# --- 2. full disk ---


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(tree, weights):
    out = tree / "small"
    out.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20k", "none", str(out)], check=False, capture_output=True
    ).returncode:
        pytest.skip("cannot mount here")
    try:
        for n in range(10):
            add(tree, f"more{n}")
        done = process(*arguments(tree, weights, "small"))
        _, error = done.communicate(timeout=900)
        whole = [cv2.imread(str(path)) for path in out.glob("*.png")]
        assert all(image is not None for image in whole) and whole
        assert done.returncode == 1 and "No space left" in error and f"{len(whole)} of 13 images were written" in error
        assert not [*out.glob(".*")]
    finally:
        subprocess.run(["umount", str(out)], check=True)


# --- 3. sources are not overwritten ---


@pytest.mark.parametrize("where", ["ir", "vis", "vis/../ir", "link"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_out_among_the_sources(tree, fuse, where, suffix):
    (tree / "link").symlink_to("vis")
    for path in (tree / "vis").iterdir():
        path.rename(path.with_suffix(suffix))
    before = {path: path.read_bytes() for side in ("ir", "vis") for path in (tree / side).iterdir()}
    done = fuse(out=where)
    assert done.code == 1 and "holds source images" in done.err
    assert before == {path: path.read_bytes() for side in ("ir", "vis") for path in (tree / side).iterdir()}


def test_compare_over_a_source(tree, fuse):
    (tree / "out").mkdir()
    (tree / "vis").rename(tree / "out" / "compare")
    before = {path: path.read_bytes() for path in (tree / "out" / "compare").iterdir()}
    assert "holds source images" in fuse("--compare", vis="out/compare").err
    assert before == {path: path.read_bytes() for path in (tree / "out" / "compare").iterdir()}
    assert fuse(vis="out/compare").code == 0  # without --compare nothing is written there


@pytest.mark.parametrize("name", ["g1.png.part", ".g1.png.part", "g1.png", "compare", ".lock"])
def test_planted_links_are_not_followed(tree, fuse, name):
    (tree / "out").mkdir()
    (tree / "victim").write_text("precious")
    (tree / "out" / name).symlink_to(tree / "victim")
    fuse("--compare")
    assert (tree / "victim").read_text() == "precious"


# --- 4. two runs ---


def test_two_runs_in_one_folder(tree, fuse):
    (tree / "out").mkdir()
    with outputs.locked(tree / "out"):
        started = time.monotonic()
        done = fuse()
    assert done.code == 1 and "another run" in done.err and written(tree) == [] and time.monotonic() - started < 20
    assert fuse().code == 0


# --- 6. output that is not finite ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("batch", [1, 3])
def test_output_that_is_not_finite(tree, fuse, monkeypatch, value, batch):
    add(tree, "bad", seed=5)
    mark = scene(5, colour=False)[0, 0]
    whole = RPFNet.forward

    def forward(self, ir, vis_y, **more):
        out = whole(self, ir, vis_y, **more).clone()
        out[(ir[:, 0, 0, 0] * 255).round() == int(mark)] = value
        return out

    monkeypatch.setattr(RPFNet, "forward", forward)
    done = fuse("--batch", batch)
    assert "bad" not in written(tree) and "bad: the network gave values" in done.err and done.code == 1


# --- 7. orientation, damage, depth ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation(tree, fuse, suffix, orientation):
    """A visible image that is stored turned is fused as if it had been stored upright."""
    upright = scene(3)
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]

    exif = Image.Exif()
    exif[274] = orientation
    stored = io.BytesIO()
    Image.fromarray(turned(upright, back)[..., ::-1].copy()).save(
        stored, {"jpg": "JPEG"}.get(suffix, suffix.upper()), exif=exif, **({"quality": 100} if suffix != "png" else {})
    )
    (tree / "vis" / "g1.png").unlink()
    (tree / "vis" / f"g1.{suffix}").write_bytes(stored.getvalue())
    save(tree / "ir" / "g1.png", scene(3, colour=False))
    assert fuse().code == 0
    got = cv2.imread(str(tree / "out" / "g1.png"))
    (tree / "vis" / f"g1.{suffix}").unlink(), save(tree / "vis" / "g1.png", upright)
    assert fuse(out="plain").code == 0
    plain = cv2.imread(str(tree / "plain" / "g1.png"))
    assert got.shape == plain.shape and np.abs(got.astype(int) - plain).mean() < 8


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_overwritten_bytes(tree, fuse, suffix, seed):
    """2,000 random bytes in the middle of a file."""
    add(tree, "bad", suffixes=(".png", suffix), size=(200, 210))
    path = tree / "vis" / f"bad{suffix}"
    if suffix == ".tif":
        Image.fromarray(scene(9, (200, 210))).save(path, compression=("tiff_lzw", "tiff_adobe_deflate")[seed % 2])
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 2000] = (
        np.random.default_rng(seed).integers(0, 256, 2000, np.uint8).tobytes()
    )
    path.write_bytes(data)
    survives(tree, fuse(), "bad")


@pytest.mark.parametrize("bits", [12, 14])
def test_few_bits_in_a_16_bit_visible_image(tree, fuse, bits):
    deep = (scene(1, colour=True).astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    save(tree / "vis" / "g1.png", deep)
    done = fuse()
    assert done.code == 0 and f"{bits} bits" in done.err and "g1.png" in done.err
    assert cv2.imread(str(tree / "out" / "g1.png")).mean() > 60


# --- 10. colour maps and shifts ---


def test_colour_mapped_infrared(tree, fuse):
    save(tree / "ir" / "g1.png", cv2.applyColorMap(scene(0, colour=False), cv2.COLORMAP_JET))
    done = fuse()
    assert done.code == 0 and "colour" in done.err and "g1.png" in done.err and "g2.png" not in done.err


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (8, 0), (0, 12), (-10, 7), (15, 15)])
def test_shifted_sources(tree, fuse, shift):
    whole = scene(4, (200, 260))
    down, right = shift
    save(tree / "ir" / "far.png", cv2.cvtColor(whole[30:160, 30:200], cv2.COLOR_BGR2GRAY))
    save(tree / "vis" / "far.png", whole[30 + down : 160 + down, 30 + right : 200 + right])
    done = fuse()
    assert done.code == 0 and ("far by about" in done.err) == (np.hypot(*shift) > 4)
    assert "far by about" not in fuse("--no-alignment-check").err
