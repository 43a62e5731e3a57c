"""The pictures of samples/, as each shipped network makes them, against stored ones.

`python tests/test_pictures.py` stores them anew: look at them before you commit.
"""
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataset import find_pairs, load_pair  # noqa: E402
from images import luma  # noqa: E402
from net import RPFNet  # noqa: E402
from weights import CHECKPOINTS  # noqa: E402

STORED = ROOT / "tests" / "pictures"
FUSED = (320, 240)      # width and height at which the samples are fused, pixels: half of theirs
STORED_SIZE = (160, 120)
LOCAL = 2.5     # gray levels, mean of a block of 8 x 8: other CPUs round in another way, but not more in one place
NAMES = [name for name, path in CHECKPOINTS.items() if path.is_file()]


def strip(name: str) -> np.ndarray:
    """The fused luminance of the four samples side by side, reduced by averaging."""
    model = RPFNet.from_pretrained(name).optimize()
    pairs, _ = find_pairs(ROOT / "samples" / "ir", ROOT / "samples" / "vis")
    halves = [[reduced(image, FUSED) for image in (ir, luma(vis))] for ir, vis in map(load_pair, pairs)]
    return np.hstack([reduced(model.fuse(*half), STORED_SIZE) for half in halves])


def reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("name", NAMES)
def test_samples_look_as_stored(name):
    stored = cv2.imread(str(STORED / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    difference = np.abs(strip(name).astype(int) - stored)
    assert difference.mean() <= 1       # gray level
    blocks = reduced(difference.astype(np.float32), (difference.shape[1] // 8, difference.shape[0] // 8))
    assert blocks.max() <= LOCAL


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    for shipped in NAMES:
        cv2.imwrite(str(STORED / f"{shipped}.png"), strip(shipped))
        print(STORED / f"{shipped}.png")
