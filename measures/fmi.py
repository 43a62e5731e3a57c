"""Feature mutual information."""
from __future__ import annotations

import cv2
import numpy as np

from measures.images import Trio
from measures.registry import metric

WINDOWS = 2048      # windows in one band, so that their joint distributions (9, 9, n) fit into the CPU cache


@metric()
def FMI(trio: Trio) -> float:
    """Feature mutual information of raw pixels (FMI_pixel), mean over both sources. Range about [0, 1], higher is
    better.

    Each 3 x 3 window is stretched to [0, 1] and divided by its sum. The result is read as a probability distribution
    over the nine positions, column by column. The joint distribution of two windows is a mixture of the independent
    coupling and the extreme coupling with the sign of their Pearson correlation. The mixture has this correlation. The
    metric is the mean normalised mutual information 2 I / (H + H), which is 1 for equal windows.
    Source: Haghighat and Razian, Fast-FMI, AICT 2014.
    """
    height, width = trio.fused.pixels.shape
    band = max(1, WINDOWS // (width - 2))
    count = band * (width - 2)
    work = np.empty((100, count), np.float32), *np.empty((2, 81, count), np.float32)
    total = 0.0
    for top in range(0, height - 2, band):
        rows = slice(top, top + band + 2)
        f, *sources = (_Places(image.pixels[rows]) for image in (trio.fused, *trio.sources))
        total += sum(float(_window_information(f, s, *work).sum(dtype=np.float64)) for s in sources)
    return total / (2 * (height - 2) * (width - 2))


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.einsum("kn,kn->n", x, y)


class _Places:
    """All 3 x 3 windows, (9, n), as distributions over their nine positions, column by column.

    The distributions are not divided by their sums, so that all sums are exact integers in float32.
    """

    def __init__(self, x: np.ndarray):
        height, width = x.shape
        windows = np.stack([x[dy:height - 2 + dy, dx:width - 2 + dx].ravel() for dx in range(3) for dy in range(3)])
        stretched = windows - windows.min(axis=0)
        stretched[:, stretched.max(axis=0) == 0] = 1    # a constant window becomes the uniform distribution
        self.windows, self.weights = windows, stretched.astype(np.float32)
        self.ends = np.zeros((10, windows.shape[1]), np.float32)        # cumulative sums, from 0 to the total
        for k in range(9):                                              # np.cumsum is slow along this axis
            np.add(self.ends[k], self.weights[k], out=self.ends[k + 1])
        self.total = self.ends[9]
        self.entropy = np.log(self.total) - _dot(self.weights, np.log(np.maximum(self.weights, 1))) / self.total
        place = np.arange(-4, 5, dtype=np.float32)[:, None]
        self.spread = ((place**2 * self.weights).sum(axis=0) * self.total
                       - (place * self.weights).sum(axis=0)**2)
        self.centred = 9 * self.weights - self.total
        self.norm = _dot(self.centred, self.centred)


def _window_information(f: _Places, s: _Places, extreme: np.ndarray, joint: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Normalised mutual information of each pair of windows, (n,). The last three arguments are buffers."""
    n = f.total.size
    extreme, joint, logs = extreme[:, :n].reshape(10, 10, n), joint[:, :n], logs[:, :n]
    correlation = _dot(f.centred, s.centred) / np.maximum(np.sqrt(f.norm * s.norm), 1)
    # Both cumulative distributions in units of 1 / (f.total s.total) are integers below 2^24, so float32 is exact. For
    # a negative correlation one of them is reversed. The minimum then gives the other extreme coupling.
    unit = f.total * s.total
    x, y = f.ends * s.total, s.ends * f.total
    y = np.abs((correlation < 0) * unit - y)
    np.minimum(x[:, None], y[None], out=extreme)
    # Hoeffding's formula: the covariance is the sum of the joint distribution function minus the product of both.
    covariance = extreme[1:9, 1:9].sum(axis=(0, 1)) / unit - x[1:9].sum(axis=0) / unit * (y[1:9].sum(axis=0) / unit)
    deviation = np.sqrt(f.spread * s.spread) / unit
    share = np.abs(correlation) * deviation / np.where(deviation > 0, covariance, 1)
    rows = np.diff(extreme, axis=0)
    np.subtract(rows[:, 1:], rows[:, :-1], out=joint.reshape(9, 9, n))
    joint *= np.copysign(share, correlation)
    np.multiply(((1 - share) * f.weights)[:, None], s.weights[None], out=logs.reshape(9, 9, n))
    joint += logs
    # The share can exceed 1, and terms then become negative. The definition uses the real part of their logarithm.
    np.multiply(joint, joint, out=logs)
    logs += 1e-30
    cv2.log(logs, logs)
    joint_entropy = np.log(unit) - _dot(joint, logs) / (2 * unit)
    both = f.entropy + s.entropy
    information = 2 * (both - joint_entropy) / np.where(both > 0, both, 1)
    information[(deviation == 0) | (both <= 0)] = 0     # all weight is at one position, so the entropy is 0
    information[(f.windows == s.windows).all(axis=0)] = 1
    return information
