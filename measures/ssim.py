"""Structural similarity: SSIM and MS-SSIM."""
from __future__ import annotations

import math

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from measures.images import Image, Trio, bands, need_side, valid_filter
from measures.registry import metric

MS_SSIM_MIN_SIDE = 176  # 11 x 11 pixels remain after four halvings

_KERNEL = cv2.getGaussianKernel(11, 1.5)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_CDDFUSE_SIDE = 7


@metric(variants=("cddfuse",))
def SSIM(trio: Trio, arithmetic: str) -> float:
    """Mean of the structural similarities to both sources. Range [-1, 1], higher is better.

    Gaussian window 11 x 11, sigma 1.5, population covariance, data range 255. Only windows inside the image are used.
    Some tables print the sum in place of the mean. nan with a warning below 11 x 11 pixels ("cddfuse": 7 x 7).

    "cddfuse": the sum over both sources, uniform window 7 x 7, sample covariance, and the constants of data range 2 for
    gray levels 0-255. This is structural_similarity(x, y, data_range=2) of scikit-image for float32 images. In float64,
    the sum of three of 160 fused TNO images differs by 2e-4 to 5e-4.
    Source: Wang et al., IEEE Trans. Image Process. 13(4), 2004.
    """
    if arithmetic == "cddfuse":
        need_side(trio.fused, _CDDFUSE_SIDE)
        return sum(_uniform_ssim(trio.fused.pixels, source.pixels) for source in trio.sources)
    need_side(trio.fused, len(_KERNEL))
    return sum(ssim for ssim, _ in trio.shared(_both_terms)) / 2


@metric()
def MS_SSIM(trio: Trio) -> float:
    """Mean of the multi-scale structural similarities to both sources. Range [0, 1], higher is better.

    Five scales with the weights .0448, .2856, .3001, .2363, .1333. A negative mean at a scale counts as 0, because its
    power would be complex. nan with a warning below 176 x 176 pixels, where the fifth scale is smaller than a window.
    Source: Wang et al., Asilomar Conf. Signals, Systems and Computers, 2003.
    """
    need_side(trio.fused, MS_SSIM_MIN_SIDE)
    total = 0.0
    for full_size, source in zip(trio.shared(_both_terms), trio.sources):
        terms = [full_size] + [_terms(x, y) for x, y in zip(trio.fused.shared(_pyramid)[1:], source.shared(_pyramid)[1:])]
        values = [structure for _, structure in terms[:-1]] + [terms[-1][0]]    # the last scale includes luminance
        total += math.prod(max(value, 0.0) ** weight for value, weight in zip(values, _MS_SSIM_WEIGHTS))
    return total / 2


def _pyramid(image: Image) -> list[np.ndarray]:
    """The five scales of MS-SSIM, by averages of 2 x 2 pixels. For odd sizes the last row or column is repeated."""
    scales = [image.pixels]
    for _ in _MS_SSIM_WEIGHTS[1:]:
        height, width = scales[-1].shape
        even = cv2.copyMakeBorder(scales[-1], 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        half = (even.shape[1] // 2, even.shape[0] // 2)
        scales.append(cv2.resize(even.astype(np.float64), half, interpolation=cv2.INTER_AREA))
    return scales


def _both_terms(trio: Trio) -> list[tuple[float, float]]:
    """`_terms` of the fused image with each source, at full size."""
    return [_terms(trio.fused.pixels, source.pixels) for source in trio.sources]


def _terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of two images."""
    ssim = contrast_structure = 0.0
    for rows in bands(x.shape, halo=10):
        a, b = x[rows], y[rows]
        mean_a, mean_b = valid_filter(a, _KERNEL), valid_filter(b, _KERNEL)
        square_a, square_b, product = (valid_filter(np.multiply(u, v, dtype=np.float64), _KERNEL)
                                       for u, v in ((a, a), (b, b), (a, b)))
        means, mean_product = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
        structure = (2 * (product - mean_product) + _C2) / (square_a + square_b - means + _C2)
        contrast_structure += float(structure.sum())
        ssim += float((structure * (2 * mean_product + _C1) / (means + _C1)).sum())
    places = (x.shape[0] - 10) * (x.shape[1] - 10)
    return ssim / places, contrast_structure / places


def _uniform_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Mean SSIM in uniform 7 x 7 windows, sample covariance, data range 2."""
    # float32, as in the evaluator of these tables. Its rounding affects the value in smooth bright regions.
    return float(structural_similarity(x.astype(np.float32), y.astype(np.float32), data_range=2))
