"""test.py as its users run it: on the samples, on folders, on single files, on bad input."""
import subprocess
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import random_pair

import test as fuse_command  # the project's test.py; the name is the field's habit
from dataset import named_pairs
from images import luma, read_vis
from layers import BatchNorm
from net import RPFNet

ROOT = Path(fuse_command.__file__).parent


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Weights of a small untrained network: these tests are about files, not pictures."""
    path = tmp_path_factory.mktemp("weights") / "last.pth"
    torch.manual_seed(0)
    model = RPFNet(channels=4, stages=1)
    with torch.no_grad():
        for seed in range(20):      # running statistics that are not the initial ones
            model(*random_pair(2, 32, 32, seed=50 + seed))
    torch.save({"model": model.state_dict(), "config": model.config}, path)
    return ["--checkpoint", str(path)]


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
    assert "4 images in Fused/" in done.stdout and "ms an image on" in done.stdout
    for name in samples:
        fused, vis = read_vis(tmp_path / "Fused" / name), read_vis(ROOT / "samples" / "vis" / name)
        ir = read_vis(ROOT / "samples" / "ir" / name)
        assert fused.shape == vis.shape == (480, 640, 3)
        assert resemblance(fused, ir, vis) > 0.5, name


def test_batches_change_no_image_and_lose_none(folders, small, monkeypatch):
    """a and d share a batch of two; b between them has another size, e cannot be read."""
    for name in ("d", "e"):
        for side, suffix in (("ir", ".png"), ("vis", ".jpg")):
            (folders / side / (name + suffix)).write_bytes((folders / side / ("c" + suffix)).read_bytes())
    (folders / "ir" / "e.png").write_bytes(b"damaged")
    sizes = []
    whole = fuse_command.fuse_luminance
    monkeypatch.setattr(fuse_command, "fuse_luminance",
                        lambda model, pairs, *rest: sizes.append(len(pairs)) or whole(model, pairs, *rest))
    results = []
    for batch in ("1", "2"):
        assert fuse(folders, *small, "--batch", batch) == 1        # e
        results.append({path.name: path.read_bytes() for path in (folders / "out").glob("*.png")})
    assert sizes == [1, 1, 1, 1, 1, 1, 2]
    assert results[0].keys() == results[1].keys() == {"a.png", "b.png", "c.png", "d.png"}
    for name in results[0]:
        images = [cv2.imdecode(np.frombuffer(r[name], np.uint8), cv2.IMREAD_COLOR).astype(int) for r in results]
        assert np.abs(images[0] - images[1]).max() <= 1         # a rounding either way


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])       # a GPU's and a CPU's
def test_a_batch_that_does_not_fit_is_fused_one_by_one(folders, small, monkeypatch, error):
    (folders / "ir" / "b.png").unlink(), (folders / "vis" / "b.jpg").unlink()
    whole = fuse_command.fuse_luminance

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
    monkeypatch.setattr(fuse_command, "fuse_luminance", no_room_for_two)
    assert fuse(folders, *small, "--batch", "2") == 0
    assert names(folders / "out") == ["a.png", "c.png"]


def test_an_image_that_does_not_fit_is_named_even_by_an_error_without_a_message(folders, small, monkeypatch, capsys):
    def no_room(*_):
        raise MemoryError
    monkeypatch.setattr(fuse_command, "fuse_luminance", no_room)
    assert fuse(folders, *small) == 1
    assert "skipped: a: MemoryError" in capsys.readouterr().err


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


def test_fast_gives_the_picture_in_bfloat16(folders, small):
    assert fuse(folders, *small) == 0
    plain = read_vis(folders / "out" / "a.png").astype(int)
    assert fuse(folders, *small, "--fast") == 0
    assert np.abs(read_vis(folders / "out" / "a.png") - plain).max() <= 8


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


def test_bad_pairs_are_reported_and_the_others_written(folders, small, capsys):
    (folders / "ir" / "b.png").write_bytes(b"damaged")
    cv2.imwrite(str(folders / "vis" / "c.jpg"), np.zeros((9, 9), np.uint8))
    cv2.imwrite(str(folders / "ir" / "lonely.png"), np.zeros((20, 20), np.uint8))
    assert fuse(folders, *small) == 1
    assert names(folders / "out") == ["a.png"]
    error = capsys.readouterr().err
    assert "skipped: b: " in error and "skipped: c: " in error and "lonely.png" in error


def test_source_images_are_never_overwritten(folders, small, capsys):
    before = (folders / "ir" / "a.png").read_bytes()
    assert fuse_command.main(["--ir", str(folders / "ir"), "--vis", str(folders / "vis"),
                              "--out", str(folders / "ir"), *small]) == 1
    assert "is a source image" in capsys.readouterr().err
    assert (folders / "ir" / "a.png").read_bytes() == before


def test_a_full_disk_ends_with_one_line(folders, small, monkeypatch, capsys):
    def full(self, data):
        raise OSError(28, "No space left on device", str(self))
    monkeypatch.setattr(Path, "write_bytes", full)
    assert fuse(folders, *small) == 1
    assert "No space left" in capsys.readouterr().err
    assert names(folders / "out") == []


@pytest.mark.parametrize("options, message", [
    (["--ir", "x"], "go together"),
    (["--dataset", "tno"], "go together"),
    (["--split", "val"], "goes with --dataset"),
    (["--dataset", "tno", "--data", "nowhere"], "Test_data_TNO"),
    (["--ir", "nowhere", "--vis", "nowhere"], "no such file or folder"),
    (["--ir", str(ROOT / "samples" / "ir"), "--vis", str(ROOT / "test.py")], "two files or two folders"),
    (["--device", "nonsense"], "device nonsense"),
    (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    (["--as-published", "--fast"], "--as-published goes without --fast"),
    (["--as-published", "--compile"], "--as-published goes without --fast"),
    (["--released", "Model.pth", "--as-published"], "--released goes without"),
    (["--released", "nowhere.pth"], "nowhere.pth"),
])
def test_wrong_calls_are_explained_in_one_line(tmp_path, capsys, options, message):
    assert fuse_command.main([*options, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_real_pairs_of_every_data_set(data_root, tmp_path):
    """A few real pairs through the shipped network: right shape, and both sources show in the result."""
    for name, folder in (("roadscene", "RoadScene"), ("tno", "TNO"), ("msrs", "MSRS_sample"), ("mri-pet", "Harvard")):
        pair = named_pairs(name, data_root / folder)[0]
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
