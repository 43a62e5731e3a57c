"""Metrics of Sobel edges: Qabf measures preserved edges, Nabf measures added edges."""
from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from measures.images import Trio, Undefined, bands
from measures.registry import metric


@metric(variants=("cddfuse",))
def Qabf(trio: Trio, arithmetic: str) -> float:
    """Edge information that is preserved from both sources. Range [0, 1], higher is better.

    Sobel with zero padding, L 1, Tg .9994, kg -15, Dg .5, Ta .9879, ka -22, Da .8. If fused image and source have
    exactly equal edge strengths, the ratio is the strength itself (images in [0, 1]) and not 1. The MATLAB toolboxes
    behind published tables do so. A method that copies source pixels therefore scores lower than by the definition:
    CS2Fusion on TNO by 0.01, the maximum by 0.35. Other methods hardly change. "cddfuse": images of 0-255, where the
    same rule counts all equal strengths above 1 as preserved. nan with a warning if both sources are black.
    Source: Xydeas and Petrovic, Electronics Letters 36(4), 2000.
    """
    gradient = _exact_gradient if arithmetic == "cddfuse" else _toolbox_gradient
    images = [np.pad(image.pixels, 1) for image in (trio.fused, *trio.sources)]
    kept = there = 0.0
    for rows in bands(images[0].shape, halo=2):
        f, *sources = (gradient(x[rows]) for x in images)
        for s in sources:
            strength = _strength_ratio(f, s)
            orientation = 1 - np.abs(s.angle - f.angle) * np.float32(2 / np.pi)
            quality = (0.9994 * 0.9879) / ((1 + np.exp(-15 * (strength - 0.5)))
                                           * (1 + np.exp(-22 * (orientation - 0.8))))
            kept += float((quality * s.magnitude).sum(dtype=np.float64))
            there += float(s.magnitude.sum(dtype=np.float64))
    if there == 0:
        raise Undefined("no edges in the sources")
    return kept / there


@metric(lower_is_better=True)
def Nabf(trio: Trio) -> float:
    """Fusion artifacts: edges that are stronger than in both sources. Range [0, 1], lower is better.

    Shreyamsha Kumar's modification of Petrovic's measure. Gray levels are 0-255, gradients are Sobel / 8 with reflected
    borders. The weights are gradient^1.5 for gradients of at least 2, and 0.001 for smaller ones.
    Source: Shreyamsha Kumar, Signal, Image and Video Processing 7(6), 2013.
    """
    images = [cv2.copyMakeBorder(image.pixels, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
              for image in (trio.fused, *trio.sources)]
    lost = there = 0.0
    for rows in bands(images[0].shape, halo=2):
        f, *sources = (_nabf_gradient(x[rows]) for x in images)
        added = (f.magnitude > sources[0].magnitude) & (f.magnitude > sources[1].magnitude)
        for s in sources:
            weight = np.where(s.magnitude >= 2, s.magnitude * np.sqrt(s.magnitude), np.float32(0.001))
            strength = _strength_ratio(f, s)
            orientation = np.abs(np.abs(s.angle - f.angle) - np.float32(np.pi / 2)) * np.float32(2 / np.pi)
            quality = np.sqrt((0.9999 * 0.9995) / ((1 + np.exp(-19 * (strength - 0.5)))
                                                   * (1 + np.exp(-22 * (orientation - 0.5)))))
            lost += float((added * (1 - quality) * weight).sum(dtype=np.float64))
            there += float(weight.sum(dtype=np.float64))
    return lost / there


class _Gradient(NamedTuple):
    """Sobel magnitude, and angle (float32). Magnitudes are compared for exact equality.

    The magnitudes are float64 for Qabf. For Nabf they are float32, which keeps all values of Sobel / 8 of gray levels apart.
    """
    magnitude: np.ndarray
    angle: np.ndarray


def _toolbox_gradient(padded: np.ndarray) -> _Gradient:
    """Sobel of the image in [0, 1], (H + 2, W + 2) to (H, W)."""
    # The x component of many vertical gradients is only rounding noise, and its sign decides between the angles pi / 2
    # and -pi / 2. MATLAB's conv2 sums in double precision column by column, with an x axis that points left. These sums
    # have the same order. Exact sums would change the metric by up to 0.003.
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    x = padded / 255
    (p00, p01, p02), (p10, _, p12), (p20, p21, p22) = (
        [x[dy:dy + height, dx:dx + width] for dx in range(3)] for dy in range(3))
    gx = -p22 - 2 * p12 - p02 + p20 + 2 * p10 + p00
    gy = p22 - p02 + 2 * p21 - 2 * p01 + p20 - p00
    return _polar(gx, gy)


def _exact_gradient(padded: np.ndarray) -> _Gradient:
    """Sobel in gray levels (exact integers), (H + 2, W + 2) to (H, W). Axes and angles as in `_toolbox_gradient`."""
    gx = -cv2.Sobel(padded, cv2.CV_64F, 1, 0)[1:-1, 1:-1]
    gy = cv2.Sobel(padded, cv2.CV_64F, 0, 1)[1:-1, 1:-1]
    return _polar(gx, gy)


def _polar(gx: np.ndarray, gy: np.ndarray) -> _Gradient:
    """Magnitude and angle for Qabf. The angle is pi / 2 if the x component is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where(gx == 0, np.pi / 2, np.arctan(gy / gx))
    return _Gradient(np.sqrt(gx * gx + gy * gy), angle.astype(np.float32))


def _nabf_gradient(padded: np.ndarray) -> _Gradient:
    """Sobel / 8 in gray levels, (H + 2, W + 2) to (H, W); the angle of a zero gradient is 0."""
    gx = cv2.Sobel(padded, cv2.CV_32F, 1, 0, scale=1 / 8)[1:-1, 1:-1]
    gy = cv2.Sobel(padded, cv2.CV_32F, 0, 1, scale=1 / 8)[1:-1, 1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where((gx == 0) & (gy == 0), np.float32(0), np.arctan(gx / gy))
    return _Gradient(np.sqrt(gx * gx + gy * gy), angle)


def _strength_ratio(f: _Gradient, s: _Gradient) -> np.ndarray:
    """Smaller / larger magnitude, 0 if both are 0. For equal magnitudes: the magnitude, as in the toolboxes."""
    larger = np.maximum(f.magnitude, s.magnitude)
    ratio = np.minimum(f.magnitude, s.magnitude) / np.where(larger == 0, 1, larger)
    equal = f.magnitude == s.magnitude
    ratio[equal] = s.magnitude[equal]
    return ratio
