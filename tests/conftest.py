"""What several test files share: real images, small random pairs, the `gpu` marker."""
import copy
import os
import signal
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dataset import SPLIT_LISTS
from net import RPFNet
from support.runtime import keep_freed_memory

# Asked for once and first: CUDA reads CUDA_VISIBLE_DEVICES once, so it would find no GPU after a test that hides them.
HAS_GPU = torch.cuda.is_available()
gpus_are_hidden = pytest.MonkeyPatch()


@pytest.hookimpl(tryfirst=True)     # before fixtures of any scope
def pytest_runtest_setup(item):
    """Run all tests without the marker `gpu` on the CPU, also where there is a GPU: their results are those of CPUs."""
    gpus_are_hidden.undo()
    if not item.get_closest_marker("gpu"):
        gpus_are_hidden.setattr(torch.cuda, "is_available", lambda: False)
        gpus_are_hidden.setenv("CUDA_VISIBLE_DEVICES", "")      # for programs that tests start
    elif not HAS_GPU:
        pytest.skip("needs a CUDA device")


# Files that take longest. pytest-xdist would begin with those that have the most tests, and end with one that is slow.
LONGEST = ("test_bench.py", "test_measures.py", "test_distributed.py", "test_train.py", "test_commands.py",
           "test_notebook.py", "test_gallery.py", "test_export.py", "test_naturalness.py", "test_figures.py")


def pytest_configure(config):
    """Share the cores among the processes of pytest-xdist, and let Ctrl-C work; also for programs that tests start."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False      # the order is that of LONGEST
    keep_freed_memory()
    # A script that starts pytest with & gives it an ignored SIGINT.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        threads = max(1, torch.get_num_threads() // processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that the processes of pytest-xdist end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def bfloat16_is_used():
    """Also on CPUs that only imitate it: the tests run the same code on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def files_are_not_synced():
    """Waiting for the disk takes seconds in all. The test of the sync itself replaces os.fsync, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(autouse=True)
def seeded():
    """A test alone draws what it draws among all others."""
    torch.manual_seed(0)


class RealImages:
    """Folder of real images: `data_root / "TNO"` is that data set, or skips the test where it is not there."""

    def __init__(self, root: Path):
        self.root = root

    def __truediv__(self, name: str) -> Path:
        if not (self.root / name).is_dir():
            pytest.skip(f"{self.root / name}: not there; see docs/data.md")
        return self.root / name


@pytest.fixture(scope="session")
def data_root() -> RealImages:
    """The real images' folder, from RPFNET_DATA; without it the tests that need them skip."""
    root = os.environ.get("RPFNET_DATA")
    if not root:
        pytest.skip("set RPFNET_DATA to the folder that holds RoadScene/, TNO/, ... to run the tests on real images")
    return RealImages(Path(root))


def random_pair(batch, height, width, seed=0):
    """A random pair, (B, 1, H, W) each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 1, height, width, generator=generator) for _ in range(2)]


def trained(**options):
    """A small network in eval mode whose running statistics are those of noise, not the initial 0 and 1."""
    return copy.deepcopy(_trained(**{"channels": 8} | options))


@cache
def _trained(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RPFNet(**options)
    with torch.no_grad():
        for seed in range(20):
            model(*random_pair(2, 32, 32, seed=50 + seed))
    return model.eval()


def write_weights(path, model=None):
    """A checkpoint as train.py writes last.pth, without what --resume needs; by default of a small untrained network."""
    if model is None:
        torch.manual_seed(0)
        model = RPFNet(channels=4, stages=1)
    torch.save({"model": model.state_dict(), "config": model.config}, path)
    return str(path)


def write_pairs(root, names, size):
    """Smooth random pairs in root/ir and root/vis."""
    rng = np.random.default_rng(0)
    for side in ("ir", "vis"):
        (root / side).mkdir()
        for name in names:
            smooth = cv2.GaussianBlur(rng.integers(0, 256, size, np.uint8), (0, 0), 1.5)
            cv2.imwrite(str(root / side / f"{name}.png"), cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX))
    return ["--ir", str(root / "ir"), "--vis", str(root / "vis")]


def write_roadscene(root):
    """Small generated pairs, 48 x 48 (VIF needs 41 x 41), with all the names of RoadScene's splits. Returns the folder."""
    rng = np.random.default_rng(0)
    for side in ("cropinfrared", "crop_LR_visible"):
        (root / side).mkdir(parents=True)
        smooth = [cv2.GaussianBlur(rng.integers(0, 256, (48, 48), np.uint8), (0, 0), 1.5) for _ in range(4)]
        encoded = [cv2.imencode(".jpg", cv2.normalize(x, None, 0, 255, cv2.NORM_MINMAX))[1].tobytes() for x in smooth]
        names = [(SPLIT_LISTS / f"roadscene_{split}.txt").read_text(encoding="utf-8").split() for split in ("train", "val")]
        for number, name in enumerate(names[0] + names[1]):
            (root / side / f"{name}.jpg").write_bytes(encoded[number % len(encoded)])
    return root


def write_clip(path, frames, rate=25.0):
    """A video file of uint8 frames, gray or RGB. Where OpenCV cannot write .mp4, the test is skipped."""
    height, width = frames[0].shape[:2]
    codec = {".avi": "MJPG", ".mp4": "mp4v"}[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    if path.suffix == ".mp4" and not writer.isOpened():
        pytest.skip("this OpenCV does not write .mp4")
    assert writer.isOpened()        # every OpenCV writes Motion JPEG
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR))
    writer.release()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Three small pairs, as the options --ir and --vis of train.py name them. Not to be written to."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), "012", (24, 30))


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch on one thread, as in processes started with OMP_NUM_THREADS=1: the same sums to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
