"""What the cases against test.py share: three good pairs, the command, and what must be left of them."""
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_weights

import test as fuse_command

ROOT = Path(fuse_command.__file__).parent
GOOD = ("g1", "g2", "g3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "last.pth")


def scene(seed=0, size=(40, 50), colour=True):
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3) if colour else size, np.uint8), (0, 0), 2)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)


def save(path, image):
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


@pytest.fixture
def tree(tmp_path):
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
    for seed, name in enumerate(GOOD):
        add(tmp_path, name, seed)
    return tmp_path


def add(tree, name, seed=9, suffixes=(".png", ".png"), size=(40, 50)):
    save(tree / "ir" / (name + suffixes[0]), scene(seed, size, False))
    save(tree / "vis" / (name + suffixes[1]), scene(seed, size))


class Done:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def fuse(tree, weights, capsys):
    def run(*options, ir="ir", vis="vis", out="out"):
        try:
            code = fuse_command.main(
                [
                    "--ir",
                    str(tree / ir),
                    "--vis",
                    str(tree / vis),
                    "--out",
                    str(tree / out),
                    "--device",
                    "cpu",
                    "--checkpoint",
                    weights,
                    *map(str, options),
                ]
            )
        except SystemExit as error:
            code = error.code
        done = Done(code, *capsys.readouterr())
        done.err = "\n".join(
            line for line in done.err.replace("\r", "\n").splitlines() if not line.startswith("fusing")
        )
        assert "Traceback" not in done.err
        return done

    return run


def written(tree, out="out"):
    return sorted(path.stem for path in (tree / out).glob("*.*")) if (tree / out).is_dir() else []


def survives(tree, done, *mentioned, also=()):
    """All good pairs are there, and the bad thing is named."""
    assert {*GOOD, *also} <= {*written(tree)}, done.err
    assert done.code == 1 and "skipped" in done.err
    for text in mentioned:
        assert text in done.err


def process(*options, cwd=None, shell=None, **more):
    command = [sys.executable, str(ROOT / "test.py"), *map(str, options)]
    if shell:
        command = ["bash", "-c", shell.replace("TEST", " ".join(f"'{part}'" for part in command))]
    return subprocess.Popen(
        command, cwd=cwd, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    )


def arguments(tree, weights, out="out"):
    return ["--ir", tree / "ir", "--vis", tree / "vis", "--out", tree / out, "--checkpoint", weights, "--device", "cpu"]
