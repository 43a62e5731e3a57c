"""test.py as its users run it: on the samples, on folders, on single files, on bad input."""
import argparse
import itertools
import re
import subprocess
import sys
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import random_pair, write_pairs, write_weights

import images
import pipeline
import test as fuse_command  # the project's test.py; the name is the field's habit
from dataset import named_pairs
from images import DataError, luma, read_gray, read_vis
from inference import fuse_luminance
from layers import BatchNorm
from net import RPFNet
from pipeline import explained
from support.outputs import locked, write_atomically

ROOT = Path(fuse_command.__file__).parent


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Weights of a small untrained network: these tests are about files, not pictures."""
    torch.manual_seed(0)
    model = RPFNet(channels=4, stages=1)
    with torch.no_grad():
        for seed in range(20):      # running statistics that are not the initial ones
            model(*random_pair(2, 32, 32, seed=50 + seed))
    return ["--checkpoint", write_weights(tmp_path_factory.mktemp("weights") / "last.pth", model)]


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
    for name, size in (("a", (20, 31)), ("b", (33, 18)), ("c", (20, 31))):
        cv2.imwrite(str(tmp_path / "ir" / f"{name}.png"), rng.integers(0, 256, size, np.uint8))
        cv2.imwrite(str(tmp_path / "vis" / f"{name}.jpg"), rng.integers(0, 256, (*size, 3), np.uint8))
    return tmp_path


def fuse(folders, *options):
    return fuse_command.main(["--ir", str(folders / "ir"), "--vis", str(folders / "vis"),
                              "--out", str(folders / "out"), *options])


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def resemblance(fused, ir, vis):
    """Correlation with the average of the sources; with one alone it may be negative (a bright sky is cold)."""
    average = (luma(ir).astype(float) + luma(vis)) / 2
    return np.corrcoef(luma(fused).ravel(), average.ravel())[0, 1]


def test_the_readme_command_fuses_the_samples_with_the_shipped_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "test.py")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = names(ROOT / "samples" / "ir")
    assert len(samples) == 4 and names(tmp_path / "Fused") == samples
    assert "4 images in Fused/" in done.stdout and "ms an image on cpu, " in done.stdout
    for name in samples:
        fused, vis = read_vis(tmp_path / "Fused" / name), read_vis(ROOT / "samples" / "vis" / name)
        ir = read_vis(ROOT / "samples" / "ir" / name)
        assert fused.shape == vis.shape == (480, 640, 3)
        assert resemblance(fused, ir, vis) > 0.5, name


def test_batches_change_no_image_and_lose_none(folders, small, monkeypatch):
    """c and d share a batch of two; b has another size than a and c, and e cannot be read."""
    for name in ("d", "e"):
        for side, suffix in (("ir", ".png"), ("vis", ".jpg")):
            (folders / side / (name + suffix)).write_bytes((folders / side / ("c" + suffix)).read_bytes())
    (folders / "ir" / "e.png").write_bytes(b"damaged")
    sizes = []
    whole = pipeline.fuse_luminance
    monkeypatch.setattr(pipeline, "fuse_luminance",
                        lambda model, pairs, *rest: sizes.append(len(pairs)) or whole(model, pairs, *rest))
    results = []
    for batch in ("1", "2"):
        assert fuse(folders, *small, "--batch", batch, "--out", str(folders / batch)) == 1        # e
        results.append({path.name: path.read_bytes() for path in (folders / batch).glob("*.png")})
    assert sizes == [1, 1, 1, 1, 1, 1, 2]
    assert results[0].keys() == results[1].keys() == {"a.png", "b.png", "c.png", "d.png"}
    for name in results[0]:
        images = [cv2.imdecode(np.frombuffer(r[name], np.uint8), cv2.IMREAD_COLOR).astype(int) for r in results]
        assert np.abs(images[0] - images[1]).max() <= 1         # a rounding either way


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])       # a GPU's and a CPU's
def test_a_batch_that_does_not_fit_is_fused_one_by_one(folders, small, monkeypatch, error):
    (folders / "ir" / "b.png").unlink(), (folders / "vis" / "b.jpg").unlink()
    whole = pipeline.fuse_luminance

    class Features:
        pass

    alive = []

    def no_room_for_two(model, pairs, *rest):
        if len(pairs) > 1:
            features = Features()
            alive.append(weakref.ref(features))
            raise error("out of memory")
        assert alive[0]() is None       # or one image would not fit either
        return whole(model, pairs, *rest)
    monkeypatch.setattr(pipeline, "fuse_luminance", no_room_for_two)
    assert fuse(folders, *small, "--batch", "2") == 0
    assert names(folders / "out") == ["a.png", "c.png"]


def test_after_a_batch_that_did_not_fit_no_batch_is_tried(folders, small, monkeypatch):
    for name in "de":
        for image in ("ir/a.png", "vis/a.jpg"):
            source = folders / image
            source.with_stem(name).write_bytes(source.read_bytes())
    (folders / "ir" / "b.png").unlink(), (folders / "vis" / "b.jpg").unlink()
    whole, sizes = pipeline.fuse_luminance, []

    def no_room_for_two(model, pairs, *rest):
        sizes.append(len(pairs))
        if len(pairs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, pairs, *rest)
    monkeypatch.setattr(pipeline, "fuse_luminance", no_room_for_two)
    assert fuse(folders, *small, "--batch", "2") == 0
    assert sizes == [2, 1, 1, 1, 1] and len(names(folders / "out")) == 4


def test_on_a_gpu_an_image_is_tried_again_with_the_memory_that_pytorch_kept(folders, small, monkeypatch, capsys):
    whole, calls = pipeline.fuse_luminance, []

    def full(model, pairs, *rest):
        calls.append("fuse")
        if calls.count("fuse") in (1, 3, 4):
            raise RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR")
        return whole(model, pairs, *rest)
    monkeypatch.setattr(pipeline, "fuse_luminance", full)
    monkeypatch.setattr(pipeline, "on_gpu", lambda device: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    assert fuse(folders, *small, "--batch", "1") == 1
    assert calls == ["fuse", "empty", "fuse", "fuse", "empty", "fuse", "fuse"]      # b fails twice
    assert names(folders / "out") == ["a.png", "c.png"]
    assert "skipped: b: out of memory (cuFFT error" in capsys.readouterr().err


def test_an_image_that_does_not_fit_is_named_even_by_an_error_without_a_message(folders, small, monkeypatch, capsys):
    def no_room(*_):
        raise MemoryError
    monkeypatch.setattr(pipeline, "fuse_luminance", no_room)
    assert fuse(folders, *small) == 1
    assert "skipped: a: out of memory (MemoryError); try --tile" in capsys.readouterr().err


def test_a_network_that_cannot_run_ends_the_run_at_its_first_pair(folders, small, monkeypatch, capsys):
    def no_compiler(*_):
        raise RuntimeError("no C++ compiler was found")
    monkeypatch.setattr(pipeline, "fuse_luminance", no_compiler)
    assert fuse(folders, *small) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == "test.py: no C++ compiler was found; 0 of 3 images were written"
    assert error.count("Traceback") == 1 and "in no_compiler" in error      # for somebody who has changed the network


def test_names_sizes_and_colour_are_kept(folders, small):
    assert fuse(folders, *small) == 0
    assert names(folders / "out") == ["a.png", "b.png", "c.png"]
    assert read_vis(folders / "out" / "b.png").shape == (33, 18, 3)


def test_gray_and_format_and_compare(folders, small):
    assert fuse(folders, *small, "--gray", "--format", "bmp", "--compare") == 0
    assert names(folders / "out") == ["a.bmp", "b.bmp", "c.bmp", "compare/a.bmp", "compare/b.bmp", "compare/c.bmp"]
    assert read_vis(folders / "out" / "a.bmp").ndim == 2
    sheet = cv2.imread(str(folders / "out" / "compare" / "a.bmp"))
    assert sheet.shape == (20, 3 * 31 + 2 * 4, 3)
    assert np.array_equal(sheet[:, -31:, 0], read_vis(folders / "out" / "a.bmp"))


@pytest.mark.parametrize(("options", "arguments"), [
    ([], {}), (["--studio-range"], {"studio_range": True}), (["--as-published"], {"as_published": True}),
    (["--as-published", "--studio-range"], {"as_published": True, "studio_range": True})], ids=str)
def test_result_is_that_of_the_python_interface(folders, small, options, arguments):
    assert fuse(folders, *small, *options) == 0
    model = RPFNet.from_pretrained(small[1])
    ir, vis = read_vis(folders / "ir" / "a.png"), read_vis(folders / "vis" / "a.jpg")
    expected = model.fuse(ir, vis, **arguments)
    fused = read_vis(folders / "out" / "a.png")
    assert np.abs(fused.astype(int) - expected).max() <= 1      # folded or not: a rounding either way
    assert not arguments or np.abs(fused.astype(int) - model.fuse(ir, vis)).max() > 1


@pytest.fixture
def sample(tmp_path):
    """A sample at a quarter of its size, as the options --ir and --vis, and the weights tiny."""
    for side in ("ir", "vis"):
        image = cv2.imread(str(ROOT / "samples" / side / "smoke.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(tmp_path / f"{side}.png"), cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA))
    return ["--ir", str(tmp_path / "ir.png"), "--vis", str(tmp_path / "vis.png"), "--checkpoint", "tiny"]


def test_fast_gives_nearly_the_same_picture(sample, tmp_path):
    for name, options in (("plain", []), ("fast", ["--fast"])):
        assert fuse_command.main([*sample, *options, "--out", str(tmp_path / f"{name}.png")]) == 0
    plain, fast = (read_vis(tmp_path / f"{name}.png") for name in ("plain", "fast"))
    assert not np.array_equal(plain, fast) and cv2.PSNR(plain, fast) > 45


def test_tiles_are_those_of_the_python_interface(sample, tmp_path):
    assert fuse_command.main([*sample, "--tile", "64", "--out", str(tmp_path / "tiles.png")]) == 0
    model = RPFNet.from_pretrained("tiny")
    ir, vis = read_gray(tmp_path / "ir.png"), read_vis(tmp_path / "vis.png")
    fused = read_vis(tmp_path / "tiles.png").astype(int)
    assert np.abs(fused - model.fuse(ir, vis, tile=64)).max() <= 1
    assert np.abs(fused - model.fuse(ir, vis)).max() > 1


@pytest.mark.parametrize("there", [True, False])
def test_fast_is_void_where_the_machine_only_imitates_bfloat16(monkeypatch, capsys, small, there):
    monkeypatch.setattr(fuse_command, "has_bfloat16", lambda device: there)
    args = fuse_command.build_parser().parse_args([*small, "--fast", "--device", "cpu"])
    assert fuse_command.load_network(args).uses_bfloat16 is there
    assert ("note: --fast: no bfloat16 instructions here" in capsys.readouterr().err) is not there


def test_the_released_network_and_the_published_statistics(folders, monkeypatch, small):
    """Which network the options choose, and that it is left in eval mode."""
    import tools.released
    monkeypatch.setattr(tools.released, "load_released", lambda path: tools.released.ReleasedNet().eval())
    released, folded, published = (
        fuse_command.load_network(fuse_command.build_parser().parse_args([*options, "--device", "cpu"]))
        for options in (["--released", "Model.pth"], small, [*small, "--as-published"]))
    assert isinstance(released, tools.released.ReleasedNet)
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    norms = [module for module in published.modules() if isinstance(module, BatchNorm)]
    assert norms and all(norm.image_statistics for norm in norms)
    assert not (released.training or folded.training or published.training)


def test_two_single_files(folders, small):
    assert fuse_command.main(["--ir", str(folders / "ir" / "a.png"), "--vis", str(folders / "vis" / "a.jpg"),
                              "--out", str(folders / "one"), *small]) == 0
    assert names(folders / "one") == ["a.png"]
    sources = [(folders / "ir" / "a.png").rename(folders / "a_ir.png"), (folders / "vis" / "a.jpg").rename(folders / "A-vis.jpg")]
    assert fuse_command.main(["--ir", str(sources[0]), "--vis", str(sources[1]), "--out", str(folders / "two"), *small]) == 0
    assert names(folders / "two") == ["A.png"]


def test_after_ctrl_c_the_written_and_the_skipped_pairs_are_named(folders, small, monkeypatch, capsys):
    (folders / "ir" / "a.png").write_bytes(b"damaged")

    def interrupted(*args, made=[], **options):      # noqa: B006, the list counts the calls
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return fuse_luminance(*args, **options)
    monkeypatch.setattr(pipeline, "fuse_luminance", interrupted)
    assert fuse(folders, *small) == 130
    error = capsys.readouterr().err
    assert re.search("interrupted; [01] of 3 images were written", error) and "skipped: a: " in error


def test_bad_pairs_are_reported_and_the_others_written(folders, small, capsys):
    (folders / "ir" / "b.png").write_bytes(b"damaged")
    cv2.imwrite(str(folders / "vis" / "c.jpg"), np.zeros((9, 9), np.uint8))
    cv2.imwrite(str(folders / "ir" / "unpaired.png"), np.zeros((20, 20), np.uint8))
    assert fuse(folders, *small) == 1
    assert names(folders / "out") == ["a.png"]
    error = capsys.readouterr().err
    assert "skipped: b: " in error and "skipped: c: " in error and "unpaired.png" in error


def test_source_images_are_never_overwritten(folders, small, capsys):
    before = (folders / "ir" / "a.png").read_bytes()
    assert fuse_command.main(["--ir", str(folders / "ir"), "--vis", str(folders / "vis"),
                              "--out", str(folders / "ir"), *small]) == 1
    assert "holds source images" in capsys.readouterr().err
    assert (folders / "ir" / "a.png").read_bytes() == before


def test_a_full_disk_ends_the_run_and_says_what_was_written(folders, small, monkeypatch, capsys):
    (folders / "ir" / "a.png").write_bytes(b"damaged")

    def full(path, data, sync):
        if path.name == "c.png":
            raise OSError(28, "No space left on device", str(path))
        write_atomically(path, data, sync)
    monkeypatch.setattr(images, "write_atomically", full)
    assert fuse(folders, *small) == 1
    out, error = capsys.readouterr()
    assert "skipped: a: " in error and "1 image in " in out
    assert f"{folders / 'out' / 'c.png'}: No space left on device; 1 of 3 images were written" in error
    assert names(folders / "out") == ["b.png"]


@pytest.mark.parametrize("options, message", [
    (["--ir", "x"], "go together"),
    (["--dataset", "tno"], "go together"),
    (["--split", "val"], "goes with --dataset"),
    (["--out", "fused.mp4"], "--out fused.mp4: this is a video file, and the sources are images"),
    (["--dataset", "tno", "--data", "nowhere"], "Test_data_TNO"),
    (["--ir", "nowhere", "--vis", "nowhere"], "no such file or folder"),
    (["--ir", str(ROOT / "test.py"), "--vis", str(ROOT / "net.py"), "--vis-pattern", "*"], "go with folders"),
    (["--ir", str(ROOT / "samples" / "ir"), "--vis", str(ROOT / "test.py")], "two files or two folders"),
    (["--device", "nonsense"], "device nonsense"),
    (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    (["--as-published", "--fast"], "--as-published goes without --fast"),
    (["--as-published", "--compile"], "--as-published goes without --fast"),
    (["--released", "Model.pth", "--as-published"], "--released goes without"),
    (["--released", "nowhere.pth"], "nowhere.pth"),
])
def test_wrong_calls_are_explained_in_one_line(tmp_path, capsys, options, message):
    assert fuse_command.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


@pytest.mark.parametrize("options", [
    ["--out", ""], ["--checkpoint", " "], ["--ir", ""], ["--tile", "3"], ["--tile", "-64"], ["--batch", "1000000000"],
    ["--ir-range", "5", "5"], ["--ir-range", "0", "70000"]], ids=" ".join)
def test_wrong_values_are_refused_by_the_parser(capsys, options):
    with pytest.raises(SystemExit) as caught:
        fuse_command.main(options)
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err


# --- one bad pair, and the others ---


def complaints(capsys):
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in lines if line and not line.startswith("fusing")]


def test_a_result_that_cannot_be_written_is_named_and_the_others_are_there(folders, small, capsys):
    (folders / "out" / "b.png").mkdir(parents=True)
    assert fuse(folders, *small) == 1
    assert complaints(capsys) == [f"skipped: b: {folders / 'out' / 'b.png'}: Is a directory"]
    assert names(folders / "out") == ["a.png", "c.png"]


def test_output_that_is_not_finite_is_reported_and_not_written(folders, small, capsys, monkeypatch):
    whole = RPFNet.forward
    monkeypatch.setattr(RPFNet, "forward", lambda self, ir, vis_y: whole(self, ir, vis_y) * (
        float("nan") if ir.shape[2] == 33 else 1))
    assert fuse(folders, *small) == 1
    assert names(folders / "out") == ["a.png", "c.png"]
    (line,) = complaints(capsys)
    assert line.startswith("skipped: b: the network gave values that are not finite")


def test_control_codes_in_names_are_escaped(folders, small, capsys):
    for side, suffix in (("ir", "png"), ("vis", "jpg")):
        (folders / side / f"\x1b[31mx\n.{suffix}").write_bytes(b"")
    assert fuse(folders, *small) == 1
    (line,) = complaints(capsys)
    assert line.startswith("skipped: \\x1b[31mx\\n: ")


# --- where results go ---


def test_sources_in_the_compare_folder_are_kept(folders, small, capsys):
    (folders / "out").mkdir()
    (folders / "vis").rename(folders / "out" / "compare")
    (folders / "vis").symlink_to(folders / "out" / "compare")
    before = {path.name: path.read_bytes() for path in (folders / "vis").iterdir()}
    assert fuse(folders, *small, "--compare") == 1
    assert "compare: this folder holds source images" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folders / "vis").iterdir()} == before


def test_a_second_run_in_one_folder_is_told(folders, small, capsys):
    (folders / "out").mkdir()
    with locked(folders / "out"):
        assert fuse(folders, *small) == 1
    assert "another run is writing there" in capsys.readouterr().err and names(folders / "out") == []


def test_one_pair_goes_to_the_file_that_out_names(folders, small, capsys):
    one = ["--ir", str(folders / "ir" / "a.png"), "--vis", str(folders / "vis" / "a.jpg"), *small]
    assert fuse_command.main([*one, "--out", str(folders / "new" / "one.bmp")]) == 0
    assert fuse_command.main([*one, "--out", str(folders / "new" / "one.bmp")]) == 0       # replaces an earlier result
    assert fuse_command.main([*one, "--out", str(folders / "new" / "one.tiff"), "--format", "tif"]) == 0
    assert read_vis(folders / "new" / "one.bmp").shape == read_vis(folders / "new" / "one.tiff").shape == (20, 31, 3)
    for options, message in ((["one.webp"], "results are written as"), (["one.png", "--format", "bmp"], "two formats"),
                             (["one.gif"], "results are written as"), (["vis/a.png"], "a.jpg is a source"),
                             (["vis/b.jpg"], "b.jpg: is the partner of")):
        assert fuse_command.main([*one, "--out", str(folders / options[0]), *options[1:]]) == 1
        assert message in capsys.readouterr().err
    (folders / "v1.5").mkdir()
    assert fuse_command.main([*one, "--out", str(folders / "v1.5")]) == 0 and names(folders / "v1.5") == ["a.png"]
    several = ["--ir", str(folders / "ir"), "--vis", str(folders / "vis"), *small]
    assert fuse_command.main([*several, "--out", "many.png"]) == 1
    assert "one file for 3 pairs" in capsys.readouterr().err


def test_a_run_that_fused_nothing_leaves_no_folder(folders, small):
    assert fuse(folders, "--checkpoint", "nowhere.pth") == 1
    for path in (folders / "ir").iterdir():
        path.write_bytes(b"damaged")
    assert fuse(folders, *small, "--compare") == 1
    assert not (folders / "out").exists()


# --- how images are read ---


@pytest.mark.parametrize("side", ["ir", "vis"])
def test_one_side_is_resized_to_the_other(folders, small, capsys, side):
    cv2.imwrite(str(folders / "ir" / "a.png"), np.zeros((40, 62), np.uint8))
    assert fuse(folders, *small) == 1
    error = capsys.readouterr().err
    assert "--resize ir or --resize vis" in error and "skipped: a: infrared is 62x40 and visible 31x20" in error
    assert fuse(folders, *small, "--resize", side) == 0
    assert read_vis(folders / "out" / "a.png").shape == ((20, 31, 3) if side == "ir" else (40, 62, 3))
    cv2.imwrite(str(folders / "ir" / "a.png"), np.zeros((62, 40), np.uint8))
    for options in ([], ["--resize", side]):
        assert fuse(folders, *small, *options) == 1
        error = capsys.readouterr().err
        assert "not the same field of view; register them to one size first" in error and "--resize" not in error


def test_one_scale_for_16_bit_infrared(folders, small, capsys):
    for name, size, level in (("a", (20, 31), 500), ("b", (33, 18), 1000), ("c", (20, 31), 1500)):
        cv2.imwrite(str(folders / "ir" / f"{name}.png"), np.full(size, level, np.uint16))
    assert fuse(folders, *small, "--compare", "--ir-range", "500", "1010") == 0
    assert complaints(capsys) == []
    assert [read_vis(folders / "out" / "compare" / f"{name}.png")[0, 0, 0] for name in "abc"] == [0, 250, 255]
    assert fuse(folders, *small) == 0
    (line,) = complaints(capsys)
    assert line.startswith("note: 16-bit infrared") and {"a.png,", "b.png,", "c.png"} <= {*line.split()}


def test_notes_name_the_pairs(folders, small, capsys):
    rng = np.random.default_rng(1)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (200, 260), np.uint8), (0, 0), 2)
    cv2.imwrite(str(folders / "ir" / "a.png"), scene[:180, :240])
    cv2.imwrite(str(folders / "vis" / "a.jpg"), scene[9:189, 12:252])
    ramp = np.tile(np.uint8(range(18)) * 14, (33, 1))
    cv2.imwrite(str(folders / "ir" / "b.png"), cv2.applyColorMap(ramp, cv2.COLORMAP_JET))
    assert fuse(folders, *small) == 0
    lines = sorted(complaints(capsys))
    assert len(lines) == 2 and lines[0].endswith(": b.png") and lines[1].endswith(": a by about 15 pixels")
    assert fuse(folders, *small, "--no-alignment-check") == 0
    assert len(complaints(capsys)) == 1


def test_real_pairs_of_every_data_set(data_root, tmp_path):
    """A few real pairs through the shipped network: right shape, and both sources show in the result."""
    for name, folder in (("roadscene", "RoadScene"), ("tno", "TNO"), ("msrs", "MSRS_sample"), ("mri-pet", "Harvard")):
        pairs = named_pairs(name, data_root / folder)
        pair = next((pair for pair in pairs if (name, pair.name) == ("tno", "8")), pairs[0])       # a small one of TNO
        assert fuse_command.main(["--ir", str(pair.ir), "--vis", str(pair.vis), "--out", str(tmp_path / name)]) == 0
        (path,) = (tmp_path / name).iterdir()
        ir, vis, fused = read_vis(pair.ir), read_vis(pair.vis), read_vis(path)
        assert fused.shape == vis.shape
        assert resemblance(fused, ir, vis) > 0.5, name


@pytest.mark.gpu
@pytest.mark.parametrize("options", [[], ["--fast"], ["--compile"], ["--as-published"]], ids=str)
def test_a_gpu_writes_the_same_images(folders, small, options):
    published = [option for option in options if option == "--as-published"]
    assert fuse(folders, *small, *published, "--device", "cpu") == 0
    expected = {name: read_vis(folders / "out" / name).astype(int) for name in names(folders / "out")}
    assert fuse(folders, *small, *options, "--device", "cuda") == 0
    assert names(folders / "out") == [*expected]
    for name, image in expected.items():
        assert np.abs(read_vis(folders / "out" / name) - image).max() <= 8


def test_only_failed_allocations_are_a_lack_of_memory():
    args = argparse.Namespace(tile=0, video=False)
    assert "--tile 1024" in explained(RuntimeError("DefaultCPUAllocator: can't allocate memory"), args)
    assert "--tile 1024" in explained(MemoryError(), args)
    assert "--tile 1024" in explained(RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), args)
    assert "--tile" not in explained(RuntimeError("CUDA error: an illegal memory access was encountered"), args)
    assert explained(DataError("data/allocated/a.png: damaged"), args) == "data/allocated/a.png: damaged"
    assert explained(OSError(13, "Permission denied", "alloc.png"), args) == "alloc.png: Permission denied"


def test_few_pairs_are_read_ahead(monkeypatch):
    read = []
    monkeypatch.setattr(pipeline, "read_item", lambda pair, args: read.append(pair))
    with ThreadPoolExecutor(1) as pool:
        next(pipeline.read_ahead(pool, range(50), None, 3))
    assert read == [0, 1, 2, 3]


def test_few_results_wait_to_be_written(tmp_path, monkeypatch):
    waiting, append = [], pipeline.Fuser._finish
    monkeypatch.setattr(pipeline.Fuser, "_finish", lambda self, ahead: append(self, ahead) or waiting.append(len(self._writing)))
    monkeypatch.setattr(pipeline, "CPU_THREADS", 1)
    folders = write_pairs(tmp_path, "abcdef", (24, 30))
    small = ["--checkpoint", write_weights(tmp_path / "small.pth")]
    assert fuse_command.main([*folders, *small, "--out", str(tmp_path / "out")]) == 0
    assert waiting == [1, 2, 2, 2, 2, 2, 0]


def test_the_time_of_a_batch_is_shared_by_its_images(monkeypatch):
    monkeypatch.setattr(pipeline, "fuse_luminance", lambda *_: [None, None])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    fuser = pipeline.Fuser(SimpleNamespace(tile=0), None)
    fuser._fuse([SimpleNamespace(inputs=None)] * 2)
    assert fuser.seconds == [0.5, 0.5]


def test_a_later_error_of_one_pair_does_not_end_the_run(folders, small, monkeypatch, capsys):
    whole, calls = pipeline.fuse_luminance, []

    def once(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("of this pair alone")
        return whole(*args)
    monkeypatch.setattr(pipeline, "fuse_luminance", once)
    assert fuse(folders, *small, "--batch", "1") == 1
    assert "skipped: b: of this pair alone" in capsys.readouterr().err
    assert names(folders / "out") == ["a.png", "c.png"]


@pytest.mark.parametrize("option", [["--checkpoint", "paper"], ["--fast"], ["--compile"], ["--as-published"]])
def test_released_goes_alone(option, capsys, tmp_path):
    assert fuse_command.main(["--released", "Model.pth", *option, "--out", str(tmp_path)]) == 1
    assert "--released goes without" in capsys.readouterr().err


def test_a_split_goes_without_two_files(folders, small, capsys):
    assert fuse_command.main(["--ir", str(folders / "ir" / "a.png"), "--vis", str(folders / "vis" / "a.jpg"),
                              "--split", "val", "--out", str(folders / "out"), *small]) == 1
    assert "--split go with folders" in capsys.readouterr().err


def test_after_ctrl_c_notes_and_unpaired_files_are_said(folders, small, monkeypatch, capsys):
    cv2.imwrite(str(folders / "ir" / "a.png"), np.arange(620, dtype=np.uint16).reshape(20, 31))
    cv2.imwrite(str(folders / "ir" / "unpaired.png"), np.zeros((20, 20), np.uint8))

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(pipeline, "fuse_luminance", interrupted)
    assert fuse(folders, *small) == 130
    error = capsys.readouterr().err
    assert "note: 16-bit infrared" in error and "unpaired.png: no visible partner" in error


def test_the_first_batch_does_not_count_for_the_time(capsys):
    fuser = SimpleNamespace(seconds=[9.0, 9.0, 0.1, 0.3], problems=[])
    result = SimpleNamespace(fuser=fuser, unpaired=[], written=4, fatal=[])
    args = SimpleNamespace(batch=2, out_file=None, out=Path("Fused"), device="cpu")
    assert fuse_command.report(args, result, []) == 0
    assert capsys.readouterr().out.startswith("4 images in Fused/, 200 ms an image on cpu")


def test_images_that_were_written_before_ctrl_c_are_counted(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(pipeline, "read_ahead", interrupted)
    fuser, done = pipeline.Fuser(SimpleNamespace(device="cpu", batch=1), None), Future()
    done.set_result(None)
    fuser._writing.append((None, done))
    with pytest.raises(KeyboardInterrupt):
        fuser.fuse_all([])
    assert fuser.written == 1
