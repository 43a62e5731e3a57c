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
SIDE = (160, 120)       # of a stored picture, pixels: a quarter of the sample
NAMES = [name for name, path in CHECKPOINTS.items() if path.is_file()]


def strip(name: str) -> np.ndarray:
    """The fused luminance of the four samples side by side, reduced by averaging."""
    model = RPFNet.from_pretrained(name).optimize()
    pairs, _ = find_pairs(ROOT / "samples" / "ir", ROOT / "samples" / "vis")
    fused = [model.fuse(ir, luma(vis)) for ir, vis in map(load_pair, pairs)]
    return np.hstack([cv2.resize(image, SIDE, interpolation=cv2.INTER_AREA) for image in fused])


@pytest.mark.parametrize("name", NAMES)
def test_samples_look_as_stored(name):
    stored = cv2.imread(str(STORED / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    difference = np.abs(strip(name).astype(int) - stored)
    assert difference.mean() <= 1       # gray level


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    for shipped in NAMES:
        cv2.imwrite(str(STORED / f"{shipped}.png"), strip(shipped))
        print(STORED / f"{shipped}.png")
