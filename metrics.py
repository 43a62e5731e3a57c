"""Image fusion metrics that agree with published tables, and the command that prints such tables.

    python metrics.py --fused Fused --dataset tno --data data/TNO --baselines

Published tables disagree because most of them come from MATLAB toolboxes that read images as
uint8 and compute some metrics *in* uint8, where a negative difference becomes 0 and a square
above 255 becomes 255. Every function here therefore names its arithmetic:

    protocol="float"    the definition, in real numbers
    protocol="uint8"    the saturating arithmetic, for the metrics that have it (MI, SF, SD, VIF, VIFF)

`evaluate` computes all metrics of one image and shares what they have in common; its
protocol="paper" gives the six columns of the RPFNet paper as they were computed there, and its
protocol="cddfuse" the columns of the papers that follow CDDFuse, whose evaluator works in real
numbers, with conventions of its own (`CDDFUSE_COLUMNS`).

All images are 8-bit gray numpy arrays of one shape (H, W); colour is turned to BT.601 luma first
(`dataset.read_gray`). "Both sources" are the infrared and the visible image.
"""
from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

NAMES = ("EN", "MI", "SF", "SD", "AG", "MSE", "PSNR", "CC", "SCD", "VIF", "VIFF", "Qabf", "SSIM",
         "MS-SSIM", "FMI", "Nabf")
LOWER_IS_BETTER = frozenset({"MSE", "Nabf"})
UINT8_VARIANTS = frozenset({"MI", "SF", "SD", "VIF", "VIFF"})
PROTOCOLS = ("float", "uint8", "paper", "cddfuse")

# The paper's columns and what they hold: (metric, arithmetic). Its "SF" is the average gradient.
PAPER_COLUMNS = {"EN": ("EN", "float"), "SF": ("AG", "float"), "SD": ("SD", "uint8"),
                 "CC": ("CC", "float"), "SCD": ("SCD", "float"), "VIFF": ("VIFF", "uint8")}

# The columns of CDDFuse's family of tables, and four that its evaluator has besides.
CDDFUSE_COLUMNS = ("EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM")
CDDFUSE_EXTRAS = ("AG", "PSNR", "CC", "MSE")

VIF_MIN_SIDE = 41       # the smallest image whose fourth scale still holds one 3 x 3 window
MS_SSIM_MIN_SIDE = 176  # 11 x 11 windows after four halvings


# ---------------------------------------------------------------------------------------------
# Shared intermediate results. Everything is computed when first asked for, and only sums and small
# pyramids are kept: the passes over the pixels go band by band, so that their work space stays in
# the cache whatever the size of the image.

_BAND_PIXELS = 1 << 16


def _bands(height: int, width: int, halo: int = 0) -> Iterator[slice]:
    """Slices of rows whose windows of 1 + halo rows cover each place once."""
    rows = max(8, _BAND_PIXELS // width)
    for top in range(0, height - halo, rows):
        yield slice(top, min(top + rows + halo, height))


class _Image:
    """One 8-bit gray image with the intermediate results that depend on it alone."""

    def __init__(self, pixels: np.ndarray, role: str):
        _check(pixels, role)
        self.pixels, self.role = pixels, role

    @cached_property
    def histogram(self) -> np.ndarray:
        return np.bincount(self.pixels.ravel(), minlength=256)

    @property
    def is_flat(self) -> bool:
        return np.count_nonzero(self.histogram) == 1

    @cached_property
    def vif_scales(self) -> list[np.ndarray]:
        """The four scales of vifp: filter, then every second sample, before scales 2 to 4."""
        scales = [self.pixels]
        for kernel in _VIF_KERNELS[1:]:
            scales.append(np.ascontiguousarray(_valid_filter(scales[-1], kernel)[::2, ::2]))
        return scales

    @cached_property
    def ssim_scales(self) -> list[np.ndarray]:
        """Five scales of MS-SSIM: averages of 2 x 2 pixels, a last odd row or column repeated."""
        scales = [self.pixels]
        for _ in _MS_SSIM_WEIGHTS[1:]:
            height, width = scales[-1].shape
            even = cv2.copyMakeBorder(scales[-1], 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            half = (even.shape[1] // 2, even.shape[0] // 2)
            scales.append(cv2.resize(even.astype(np.float64), half, interpolation=cv2.INTER_AREA))
        return scales


class _Trio:
    """A fused image with both sources, and the intermediate results of their pairs."""

    def __init__(self, fused: _Image, ir: _Image, vis: _Image):
        for source in (ir, vis):
            if source.pixels.shape != fused.pixels.shape:
                raise ValueError(f"fused is {_size(fused)} and {source.role} {_size(source)} (width x height); "
                                 f"metrics compare images of one size: write the fused image at the source's size")
        self.fused, self.ir, self.vis = fused, ir, vis
        self.sources = (ir, vis)
        self.values: dict[tuple[str, bool], float] = {}     # finished metrics, which protocols share

    @cached_property
    def joint(self) -> list[np.ndarray]:
        """Joint histograms (256, 256) of fused x infrared and fused x visible."""
        return [_joint_histogram(self.fused, source) for source in self.sources]

    @cached_property
    def moments(self) -> _Moments:
        return _Moments(self)

    @cached_property
    def vif_sums(self) -> list[_VifSums]:
        """Information sums at the four scales."""
        return [_vif_sums(self, scale) for scale in range(4)]

    @cached_property
    def ssim(self) -> list[tuple[float, float]]:
        """`_ssim_terms` of both sources at full size."""
        return [_ssim_terms(self.fused.pixels, source.pixels) for source in self.sources]


class _Moments:
    """Sums over pixels as exact integers, so that a flat image or difference is exactly flat."""

    def __init__(self, trio: _Trio):
        level = np.arange(256)
        fused, ir, vis = trio.fused, trio.ir, trio.vis
        self.n = fused.pixels.size
        sums = {x.role: int(x.histogram @ level) for x in (fused, ir, vis)}
        products = {(x.role, x.role): int(x.histogram @ level**2) for x in (fused, ir, vis)}
        joints = [(ir, trio.joint[0]), (vis, trio.joint[1])]
        products |= {("fused", x.role): int(level @ joint @ level) for x, joint in joints}
        products["ir", "vis"] = int(level @ _joint_histogram(ir, vis) @ level)
        self._sums, self._products = sums, products

    def covariance(self, x: str, y: str) -> int:
        """n^2 times the covariance of two images."""
        product = self._products.get((x, y), self._products.get((y, x)))
        return self.n * product - self._sums[x] * self._sums[y]

    def squared_error(self, source: str) -> float:
        """Mean squared difference of the fused image and a source, in gray levels."""
        total = (self._products["fused", "fused"] + self._products[source, source]
                 - 2 * self._products["fused", source])
        return total / self.n


def _check(pixels: np.ndarray, role: str) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2:
        got = f"shape {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{role}: expected a gray numpy array (H, W), got {got}; "
                         f"turn colour to luma with cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)")
    if pixels.dtype != np.uint8:
        finite = pixels.dtype.kind != "f" or bool(np.isfinite(pixels).all())
        got = f"{pixels.dtype}" if finite else f"{pixels.dtype} with NaN or infinity"
        raise ValueError(f"{role}: expected 8-bit pixels (uint8), got {got}; "
                         f"convert an image x in [0, 1] with np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)")
    if min(pixels.shape) < 3:
        raise ValueError(f"{role}: {pixels.shape[1]}x{pixels.shape[0]} pixels; the metrics need at least 3x3")


def _size(image: _Image) -> str:
    return f"{image.pixels.shape[1]}x{image.pixels.shape[0]}"


def _trio(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> _Trio:
    return _Trio(_Image(fused, "fused"), _Image(ir, "ir"), _Image(vis, "vis"))


def _need(image: _Image, side: int, metric: str, why: str) -> None:
    if min(image.pixels.shape) < side:
        raise ValueError(f"{metric}: {_size(image)} is too small; {why} need at least {side}x{side} pixels")


def _undefined(metric: str, why: str) -> float:
    warnings.warn(f"{metric} is undefined here ({why}); returning nan", stacklevel=4)
    return math.nan


def _is_uint8(protocol: str) -> bool:
    if protocol not in ("float", "uint8"):
        raise ValueError(f"protocol '{protocol}': one metric knows 'float' and 'uint8' ('paper' is for evaluate)")
    return protocol == "uint8"


def _sat(x: np.ndarray) -> np.ndarray:
    """MATLAB's conversion to uint8: round half up, clip to [0, 255]."""
    return np.clip(np.floor(x + 0.5), 0, 255)


def _valid_filter(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable filter at the places where the window lies inside the image."""
    radius = len(kernel) // 2
    return cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)[radius:-radius, radius:-radius]


def _joint_histogram(x: _Image, y: _Image) -> np.ndarray:
    """(256, 256) counts, x along the rows."""
    both = (x.pixels.astype(np.uint16) << 8) | y.pixels
    return np.bincount(both.ravel(), minlength=1 << 16).reshape(256, 256)


# ---------------------------------------------------------------------------------------------
# Histogram metrics


def EN(fused: np.ndarray) -> float:
    """Entropy of the 256-bin histogram, in bits. Range [0, 8], higher is better.

    Source: Roberts et al., J. Appl. Remote Sens. 2, 2008.
    """
    return _en(_Image(fused, "fused"))


def _en(image: _Image) -> float:
    return _entropy(image.histogram)


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0     # + 0.0 turns the -0.0 of a flat image to 0.0


def MI(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, protocol: str = "float") -> float:
    """Mutual information of the fused image with both sources, summed, in bits. Range [0, 16], higher is better.

    "uint8": the joint histogram counts min(v + 1, 255), so that 254 and 255 share a bin, while the
    marginal entropies keep 256 bins (a toolbox's index that saturates).
    Source: Qu et al., Electronics Letters 38(7), 2002.
    """
    return _mi(_trio(fused, ir, vis), _is_uint8(protocol))


def _mi(trio: _Trio, uint8: bool) -> float:
    total = 0.0
    for source, joint in zip(trio.sources, trio.joint):
        total += _en(source) + _en(trio.fused) - _entropy(_merge_last_bins(joint) if uint8 else joint)
    return total


def _merge_last_bins(joint: np.ndarray) -> np.ndarray:
    merged = joint[:255, :255].copy()
    merged[254] += joint[255, :255]
    merged[:, 254] += joint[:255, 255]
    merged[254, 254] += joint[255, 255]
    return merged


def SD(fused: np.ndarray, protocol: str = "float") -> float:
    """Population standard deviation of the gray levels. Range [0, 127.5], higher is better.

    "uint8": F - mean saturates at 0 and its square at 255, which gives values up to 16, near 10
    for images whose standard deviation is near 40. Most tables print this one.
    Source: Rao, Meas. Sci. Technol. 8(4), 1997.
    """
    return _sd(_Image(fused, "fused"), _is_uint8(protocol))


def _sd(image: _Image, uint8: bool) -> float:
    n, level = image.pixels.size, np.arange(256)
    total = int(image.histogram @ level)
    if uint8:
        squares = _sat(_sat(level - total / n) ** 2)
        return math.sqrt(image.histogram @ squares / n)
    return math.sqrt(n * int(image.histogram @ level**2) - total**2) / n


# ---------------------------------------------------------------------------------------------
# Metrics of differences and correlations


def SF(fused: np.ndarray, protocol: str = "float") -> float:
    """Spatial frequency, in gray levels. Range [0, 361], higher is better.

    sqrt(mean(row difference^2) + mean(column difference^2)), each mean over its own valid
    differences. Some tables print it divided by 255. "uint8": negative differences become 0 and
    squares saturate at 255.
    Source: Eskicioglu and Fisher, IEEE Trans. Commun. 43(12), 1995.
    """
    return _sf(_Image(fused, "fused"), _is_uint8(protocol))


def _sf(image: _Image, uint8: bool) -> float:
    x = image.pixels
    neighbours = ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]))
    if not uint8:
        return math.sqrt(sum(cv2.norm(a, b, cv2.NORM_L2SQR) / a.size for a, b in neighbours))
    differences = [cv2.subtract(a, b) for a, b in neighbours]               # OpenCV saturates as MATLAB does
    return math.sqrt(sum(cv2.multiply(d, d).mean() for d in differences))


def AG(fused: np.ndarray) -> float:
    """Average gradient, in gray levels. Range [0, 255], higher is better.

    sum(sqrt((gx^2 + gy^2) / 2)) / ((H - 1)(W - 1)), gx and gy as `numpy.gradient` gives them. The
    RPFNet paper prints this in its column "SF".
    Source: Cui et al., Optics Communications 341, 2015.
    """
    return _ag(_Image(fused, "fused"))


def _ag(image: _Image) -> float:
    gy, gx = np.gradient(image.pixels.astype(np.float32))
    height, width = image.pixels.shape
    return float(np.sqrt((gx * gx + gy * gy) / 2).sum(dtype=np.float64)) / ((height - 1) * (width - 1))


def MSE(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Mean of the squared errors to both sources, images in [0, 1]. Range [0, 1], lower is better."""
    return _mse(_trio(fused, ir, vis))


def _mse(trio: _Trio) -> float:
    return (trio.moments.squared_error("ir") / 255**2 + trio.moments.squared_error("vis") / 255**2) / 2


def PSNR(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Peak signal-to-noise ratio, as fusion tables print it, in dB. Range [48.1, inf], higher is better.

    20 log10(255 / sqrt(MSE)) with the MSE of images in [0, 1]: the peak and the error have
    different units, so every value is 48.13 dB above the textbook's. inf for equal images.
    """
    return _psnr(_trio(fused, ir, vis))


def _psnr(trio: _Trio) -> float:
    mse = _mse(trio)
    return 20 * math.log10(255 / math.sqrt(mse)) if mse else math.inf


def CC(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Mean of the Pearson correlations with both sources. Range [-1, 1], higher is better.

    nan with a warning where an image is constant.
    Source: Deshmukh and Bhosale, Int. J. Image Process. 4(5), 2010.
    """
    return _cc(_trio(fused, ir, vis))


def _cc(trio: _Trio) -> float:
    moments = trio.moments
    variance = {role: moments.covariance(role, role) for role in ("fused", "ir", "vis")}
    flat = [role for role, value in variance.items() if value == 0]
    if flat:
        return _undefined("CC", f"{' and '.join(flat)} constant")
    return sum(moments.covariance("fused", source) / math.sqrt(variance["fused"] * variance[source])
               for source in ("ir", "vis")) / 2


def SCD(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Sum of the correlations of differences, corr(F - VIS, IR) + corr(F - IR, VIS). Range [-2, 2], higher is better.

    A constant difference (the fused image is a copy of one source) carries nothing of the other
    source and counts 0. nan with a warning where a source is constant.
    Source: Aslantas and Bendes, AEU Int. J. Electron. Commun. 69(12), 2015.
    """
    return _scd(_trio(fused, ir, vis))


def _scd(trio: _Trio) -> float:
    cov, total = trio.moments.covariance, 0.0
    for source, other in (("ir", "vis"), ("vis", "ir")):
        # The covariance is bilinear, so F - other needs no pass over the pixels.
        shared = cov("fused", source) - cov(other, source)
        variance = cov("fused", "fused") + cov(other, other) - 2 * cov("fused", other)
        if cov(source, source) == 0:
            return _undefined("SCD", f"{source} constant")
        total += shared / math.sqrt(variance * cov(source, source)) if variance else 0.0
    return total


# ---------------------------------------------------------------------------------------------
# Visual information fidelity

_VIF_KERNELS = [cv2.getGaussianKernel(size, size / 5) for size in (17, 9, 5, 3)]
_VIF_EPS = 1e-10
_VIFF_WEIGHTS = (1 / 2.15, 0, 0.15 / 2.15, 1 / 2.15)
_VIFF_NOISE = 0.005 * 255**2


class _VifSums(NamedTuple):
    """Sums over the places of one scale: information kept in the fused image and there in the source, in nats."""
    vif: list[list[float]]              # [kept, there] of both sources
    viff: dict[str, list[float]]        # by arithmetic: of the source with the smaller gain at every place


def _vif_sums(trio: _Trio, scale: int, saturate: bool = False) -> _VifSums:
    """One pass over a scale. With `saturate`, products stop at 255, as uint8 * uint8 does in MATLAB (VIF only)."""
    kernel = _VIF_KERNELS[scale]
    images = [image.vif_scales[scale] for image in (trio.fused, trio.ir, trio.vis)]
    vif, viff = np.zeros((2, 2)), {"float": np.zeros(2), "uint8": np.zeros(2)}
    for rows in _bands(*images[0].shape, halo=len(kernel) - 1):
        fused_var, variances, covariances = _window_statistics(*(x[rows] for x in images), kernel, saturate)
        models = [_gain(var, fused_var, cov, _VIF_EPS) for var, cov in zip(variances, covariances)]
        vif += [_information(var, *model, 2) for var, model in zip(variances, models)]
        if saturate or _VIFF_WEIGHTS[scale] == 0:
            continue
        viff["float"] += _least_information(variances, models, _VIFF_NOISE)
        # Images in [0, 1] divide all variances by 255^2, which is the same as multiplying the constants.
        models = [_gain(var, fused_var, cov, _VIF_EPS * 255**2) for var, cov in zip(variances, covariances)]
        viff["uint8"] += _least_information(variances, models, _VIFF_NOISE * 255**2)
    places = (images[0].shape[0] - len(kernel) + 1) * (images[0].shape[1] - len(kernel) + 1)
    floor = 1e-7 * math.log(10) * places        # VIFF adds 1e-7 at every place, its logarithms have base 10
    return _VifSums(vif.tolist(), {key: (both + floor).tolist() for key, both in viff.items()})


def _window_statistics(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, kernel: np.ndarray, saturate: bool):
    """Windowed variance of the fused image; variances of the sources; their covariances with the fused image."""
    def second_moment(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return _valid_filter(cv2.multiply(x, y) if saturate else np.multiply(x, y, dtype=np.float64), kernel)

    def variance(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.maximum(second_moment(x, x) - mean * mean, 0)

    mean, *means = (_valid_filter(x, kernel) for x in (fused, ir, vis))
    return (variance(fused, mean), [variance(x, m) for x, m in zip((ir, vis), means)],
            [second_moment(x, fused) - m * mean for x, m in zip((ir, vis), means)])


def _gain(ref_var: np.ndarray, fused_var: np.ndarray, cov: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Model F = gain * source + noise of every window: the gain and the variance of the noise.

    Windows that are flat in either image, and negative gains, carry no information: gain 0.
    """
    gain = cov / (ref_var + eps)
    gain *= (cov > 0) & (ref_var >= eps) & (fused_var >= eps)
    return gain, np.maximum(fused_var - gain * cov, eps)


def _information(ref_var: np.ndarray, gain: np.ndarray, noise: np.ndarray, noise_var: float) -> tuple[float, float]:
    """Information that all windows keep in the fused image, and that is there in the source, in nats."""
    kept = 1 + gain * gain * ref_var / (noise + noise_var)
    return float(np.log(kept).sum()), float(np.log(1 + ref_var / noise_var).sum())


def _least_information(variances, models, noise_var: float) -> tuple[float, float]:
    """`_information` of the source with the smaller gain at every place."""
    of_ir = models[0][0] < models[1][0]
    gain, noise = (np.where(of_ir, *both) for both in zip(*models))
    return _information(np.where(of_ir, *variances), gain, noise, noise_var)


def VIF(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, protocol: str = "float") -> float:
    """Pixel-domain visual information fidelity (vifp) with both sources, summed. Range [0, 2] for images without
    added contrast (which raises it), higher is better.

    Four scales, sigma_n^2 = 2; the logarithms are summed over the scales before the one ratio.
    "uint8": at scale 1 the squares and products saturate at 255. Needs 41 x 41 pixels; nan with a
    warning where a source is constant.
    Source: Sheikh and Bovik, IEEE Trans. Image Process. 15(2), 2006, the authors' vifp_mscale.
    """
    return _vif(_trio(fused, ir, vis), _is_uint8(protocol))


def _vif(trio: _Trio, uint8: bool) -> float:
    _need(trio.fused, VIF_MIN_SIDE, "VIF", "its four scales")
    sums = list(trio.vif_sums)
    if uint8:
        sums[0] = _vif_sums(trio, 0, saturate=True)
    total = 0.0
    for i, source in enumerate(trio.sources):
        if source.is_flat:
            return _undefined("VIF", f"{source.role} constant")
        kept, there = (sum(scale.vif[i][k] for scale in sums) for k in (0, 1))
        total += kept / there
    return total


def VIFF(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, protocol: str = "float") -> float:
    """Visual information fidelity for fusion. Range [0, 1] for images without added contrast (which raises it),
    higher is better.

    The four scales of vifp; at every place the source with the smaller gain counts; one ratio per
    scale, weighted (1, 0, 0.15, 1) / 2.15; sigma_n^2 = 0.005 * 255^2. "uint8": images in [0, 1] with
    that noise left as it is (a toolbox's im2double), which is what tables print. Needs 41 x 41 pixels.
    Source: Han et al., Information Fusion 14(2), 2013.
    """
    return _viff(_trio(fused, ir, vis), _is_uint8(protocol))


def _viff(trio: _Trio, uint8: bool) -> float:
    _need(trio.fused, VIF_MIN_SIDE, "VIFF", "its four scales")
    sums = [scale.viff["uint8" if uint8 else "float"] for scale in trio.vif_sums]
    return sum(weight * kept / there for weight, (kept, there) in zip(_VIFF_WEIGHTS, sums))


# ---------------------------------------------------------------------------------------------
# Edge metrics


def Qabf(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Edge information kept from both sources. Range [0, 1], higher is better.

    Sobel with zero padding, L 1, Tg .9994, kg -15, Dg .5, Ta .9879, ka -22, Da .8. Where fused image
    and source have exactly equal strengths, the ratio is the strength itself (images in [0, 1]) and
    not 1, as in the MATLAB toolboxes that published tables come from: a method that copies a source
    pixel by pixel scores lower than the definition says (CS2Fusion on TNO by 0.01, the maximum by
    0.35), others do not notice. nan with a warning where both sources are black.
    Source: Xydeas and Petrovic, Electronics Letters 36(4), 2000.
    """
    return _qabf(_trio(fused, ir, vis))


def _qabf(trio: _Trio, gradient: Callable[[np.ndarray], _Gradient] | None = None) -> float:
    gradient = gradient or _qabf_gradient
    images = [np.pad(image.pixels, 1) for image in (trio.fused, *trio.sources)]
    kept = there = 0.0
    for rows in _bands(*images[0].shape, halo=2):
        f, *sources = (gradient(x[rows]) for x in images)
        for s in sources:
            strength = _ratio(f.magnitude, s.magnitude)
            equal = f.magnitude == s.magnitude
            strength[equal] = s.magnitude[equal]
            orientation = 1 - np.abs(s.angle - f.angle) * np.float32(2 / np.pi)
            quality = (0.9994 * 0.9879) / ((1 + np.exp(-15 * (strength - 0.5)))
                                           * (1 + np.exp(-22 * (orientation - 0.8))))
            kept += float((quality * s.magnitude).sum(dtype=np.float64))
            there += float(s.magnitude.sum(dtype=np.float64))
    return kept / there if there else _undefined("Qabf", "no edges in the sources")


class _Gradient(NamedTuple):
    """Sobel magnitude, float64 (equality of two is meant exactly), and angle, float32."""
    magnitude: np.ndarray
    angle: np.ndarray


def _qabf_gradient(padded: np.ndarray) -> _Gradient:
    """Sobel of the image in [0, 1], (H + 2, W + 2) to (H, W); the angle where the x component is 0 is pi / 2."""
    # Many vertical gradients have an x component of pure rounding noise, whose sign decides between
    # the angles pi / 2 and -pi / 2. Summing in double precision column by column, on an axis that
    # points left, is what MATLAB's conv2 does: exact sums would move the metric by up to 0.003.
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    x = padded / 255
    (p00, p01, p02), (p10, _, p12), (p20, p21, p22) = (
        [x[dy:dy + height, dx:dx + width] for dx in range(3)] for dy in range(3))
    gx = -p22 - 2 * p12 - p02 + p20 + 2 * p10 + p00
    gy = p22 - p02 + 2 * p21 - 2 * p01 + p20 - p00
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where(gx == 0, np.pi / 2, np.arctan(gy / gx))
    return _Gradient(np.sqrt(gx * gx + gy * gy), angle.astype(np.float32))


def _ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smaller over larger, 0 where both are 0."""
    larger = np.maximum(x, y)
    return np.minimum(x, y) / np.where(larger == 0, 1, larger)


def Nabf(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Fusion artifacts: edges stronger than in both sources. Range [0, 1], lower is better.

    Shreyamsha Kumar's modification of Petrovic's measure, gray levels 0-255, Sobel / 8 with
    mirrored borders; weights gradient^1.5 from a gradient of 2 on and 0.001 below.
    Source: Shreyamsha Kumar, Signal, Image and Video Processing 7(6), 2013.
    """
    return _nabf(_trio(fused, ir, vis))


def _nabf(trio: _Trio) -> float:
    images = [cv2.copyMakeBorder(image.pixels, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
              for image in (trio.fused, *trio.sources)]
    lost = there = 0.0
    for rows in _bands(*images[0].shape, halo=2):
        f, *sources = (_nabf_gradient(x[rows]) for x in images)
        added = (f.magnitude > sources[0].magnitude) & (f.magnitude > sources[1].magnitude)
        for s in sources:
            weight = np.where(s.magnitude >= 2, s.magnitude * np.sqrt(s.magnitude), np.float32(0.001))
            strength = _ratio(f.magnitude, s.magnitude)
            equal = f.magnitude == s.magnitude
            strength[equal] = s.magnitude[equal]
            orientation = np.abs(np.abs(s.angle - f.angle) - np.float32(np.pi / 2)) * np.float32(2 / np.pi)
            quality = np.sqrt((0.9999 * 0.9995) / ((1 + np.exp(-19 * (strength - 0.5)))
                                                   * (1 + np.exp(-22 * (orientation - 0.5)))))
            lost += float((added * (1 - quality) * weight).sum(dtype=np.float64))
            there += float(weight.sum(dtype=np.float64))
    return lost / there


def _nabf_gradient(padded: np.ndarray) -> _Gradient:
    """Sobel / 8 in gray levels, (H + 2, W + 2) to (H, W); the angle of a zero gradient is 0."""
    gx = cv2.Sobel(padded, cv2.CV_32F, 1, 0, scale=1 / 8)[1:-1, 1:-1]
    gy = cv2.Sobel(padded, cv2.CV_32F, 0, 1, scale=1 / 8)[1:-1, 1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where((gx == 0) & (gy == 0), np.float32(0), np.arctan(gx / gy))
    return _Gradient(np.sqrt(gx * gx + gy * gy), angle)


# ---------------------------------------------------------------------------------------------
# Structural similarity

_SSIM_KERNEL = cv2.getGaussianKernel(11, 1.5)
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _ssim_terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of two images."""
    ssim = contrast_structure = 0.0
    for rows in _bands(*x.shape, halo=10):
        a, b = x[rows], y[rows]
        mean_a, mean_b = _valid_filter(a, _SSIM_KERNEL), _valid_filter(b, _SSIM_KERNEL)
        square_a, square_b, product = (_valid_filter(np.multiply(u, v, dtype=np.float64), _SSIM_KERNEL)
                                       for u, v in ((a, a), (b, b), (a, b)))
        means, mean_product = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
        structure = (2 * (product - mean_product) + _SSIM_C2) / (square_a + square_b - means + _SSIM_C2)
        contrast_structure += float(structure.sum())
        ssim += float((structure * (2 * mean_product + _SSIM_C1) / (means + _SSIM_C1)).sum())
    places = (x.shape[0] - 10) * (x.shape[1] - 10)
    return ssim / places, contrast_structure / places


def SSIM(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Mean of the structural similarities to both sources. Range [-1, 1], higher is better.

    Gaussian window 11 x 11, sigma 1.5, population covariance, data range 255, windows inside the
    image (some tables print the sum instead of the mean). Needs 11 x 11 pixels.
    Source: Wang et al., IEEE Trans. Image Process. 13(4), 2004.
    """
    return _ssim(_trio(fused, ir, vis))


def _ssim(trio: _Trio) -> float:
    _need(trio.fused, 11, "SSIM", "its windows")
    return sum(ssim for ssim, _ in trio.ssim) / 2


def MS_SSIM(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Mean of the multi-scale structural similarities to both sources. Range [0, 1], higher is better.

    Five scales, weights .0448, .2856, .3001, .2363, .1333; a negative mean at one scale counts 0,
    because its power would be complex. nan with a warning below 176 x 176 pixels, where the fifth
    scale does not hold one window.
    Source: Wang et al., Asilomar Conf. Signals, Systems and Computers, 2003.
    """
    return _ms_ssim(_trio(fused, ir, vis))


def _ms_ssim(trio: _Trio) -> float:
    if min(trio.fused.pixels.shape) < MS_SSIM_MIN_SIDE:
        return _undefined("MS-SSIM", f"{_size(trio.fused)} is below {MS_SSIM_MIN_SIDE}x{MS_SSIM_MIN_SIDE}")
    total = 0.0
    for full_size, source in zip(trio.ssim, trio.sources):
        terms = [full_size] + [_ssim_terms(x, y) for x, y in zip(trio.fused.ssim_scales[1:], source.ssim_scales[1:])]
        values = [structure for _, structure in terms[:-1]] + [terms[-1][0]]    # luminance at the last scale only
        total += math.prod(max(value, 0.0) ** weight for value, weight in zip(values, _MS_SSIM_WEIGHTS))
    return total / 2


# ---------------------------------------------------------------------------------------------
# CDDFuse's evaluator: the metrics that it computes in another way. Gray levels 0-255 in real numbers.


def _cddfuse_mi(trio: _Trio) -> float:
    """`MI` in nats."""
    return _mi(trio, uint8=False) * math.log(2)


def _cddfuse_ag(trio: _Trio) -> float:
    """`AG` as a mean over all H x W places."""
    height, width = trio.fused.pixels.shape
    return _ag(trio.fused) * ((height - 1) * (width - 1)) / (height * width)


def _cddfuse_mse(trio: _Trio) -> float:
    """`MSE` in squared gray levels. Range [0, 65025]."""
    return (trio.moments.squared_error("ir") + trio.moments.squared_error("vis")) / 2


def _cddfuse_psnr(trio: _Trio) -> float:
    """10 log10(P^2 / MSE), P the brightest pixel of the fused image, in dB. inf for equal images."""
    mse, peak = _cddfuse_mse(trio), int(trio.fused.pixels.max())
    if mse == 0:
        return math.inf
    return 20 * math.log10(peak) - 10 * math.log10(mse) if peak else -math.inf


def _cddfuse_qabf(trio: _Trio) -> float:
    """`Qabf` with Sobel strengths of 0-255 images.

    The ratio of equal strengths is the strength, as in `Qabf`, but strengths are integers' roots here: from 1 on
    all count as kept. Sobel sums are exact, so the angle at a vertical edge is pi / 2 and never -pi / 2 by rounding.
    """
    return _qabf(trio, _sobel)


def _sobel(padded: np.ndarray) -> _Gradient:
    """Sobel of gray levels 0-255, (H + 2, W + 2) to (H, W), on an axis that points left; angles as in `Qabf`."""
    gx = -cv2.Sobel(padded, cv2.CV_64F, 1, 0)[1:-1, 1:-1]
    gy = cv2.Sobel(padded, cv2.CV_64F, 0, 1)[1:-1, 1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.where(gx == 0, np.pi / 2, np.arctan(gy / gx))
    return _Gradient(np.sqrt(gx * gx + gy * gy), angle.astype(np.float32))


_CDDFUSE_C1, _CDDFUSE_C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def _cddfuse_ssim(trio: _Trio) -> float:
    """Sum of the structural similarities to both sources. Range [-2, 2].

    Uniform window 7 x 7, sample covariance, windows inside the image; the constants are those of images in
    [-1, 1] (data range 2). It equals scikit-image's structural_similarity(x, y, data_range=2) of float64 images of
    0-255. Single precision rounds variances of bright flat regions to the size of the constants: on 3 of the 160
    TNO images measured it moved the sum by 2e-4 to 5e-4, on the others by less than 1e-4.
    """
    _need(trio.fused, 7, "SSIM", "its windows")
    return sum(_uniform_ssim(trio.fused.pixels, source.pixels) for source in trio.sources)


def _uniform_ssim(x: np.ndarray, y: np.ndarray) -> float:
    n, total = 49, 0.0
    for rows in _bands(*x.shape, halo=6):
        a, b = (image[rows].astype(np.float64) for image in (x, y))
        # Sums of integers: exact, so that variances of flat windows are exactly 0.
        sum_a, sum_b, sum_aa, sum_bb, sum_ab = (
            cv2.boxFilter(z, -1, (7, 7), normalize=False)[3:-3, 3:-3] for z in (a, b, a * a, b * b, a * b))
        mean_a, mean_b = sum_a / n, sum_b / n
        # n (n - 1) times sample variances and covariance
        variances = n * (sum_aa + sum_bb) - sum_a * sum_a - sum_b * sum_b
        covariance = n * sum_ab - sum_a * sum_b
        structure = (2 * covariance / (n * (n - 1)) + _CDDFUSE_C2) / (variances / (n * (n - 1)) + _CDDFUSE_C2)
        luminance = (2 * mean_a * mean_b + _CDDFUSE_C1) / (mean_a * mean_a + mean_b * mean_b + _CDDFUSE_C1)
        total += float((structure * luminance).sum())
    return total / ((x.shape[0] - 6) * (x.shape[1] - 6))


# ---------------------------------------------------------------------------------------------
# Feature mutual information


def FMI(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    """Feature mutual information of raw pixels (FMI_pixel), mean over both sources. Range about [0, 1], higher is
    better.

    Every 3 x 3 window, stretched to [0, 1] and divided by its sum, is read as a distribution over
    its nine places (column by column). The joint distribution of two windows mixes independence with
    the extreme coupling of the sign of their Pearson correlation, in the proportion that gives this
    correlation; the metric is the mean normalised mutual information 2 I / (H + H), 1 for equal windows.
    Source: Haghighat and Razian, Fast-FMI, AICT 2014.
    """
    return _fmi(_trio(fused, ir, vis))


_FMI_WINDOWS = 2048     # at a time: their (9, 9, n) joint distributions stay in the CPU's cache


def _fmi(trio: _Trio) -> float:
    height, width = trio.fused.pixels.shape
    band = max(1, _FMI_WINDOWS // (width - 2))
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
    """All 3 x 3 windows (9, n) as distributions over their nine places, column by column.

    The units keep all sums exact integers in float32.
    """

    def __init__(self, x: np.ndarray):
        height, width = x.shape
        windows = np.stack([x[dy:height - 2 + dy, dx:width - 2 + dx].ravel() for dx in range(3) for dy in range(3)])
        stretched = windows - windows.min(axis=0)
        stretched[:, stretched.max(axis=0) == 0] = 1    # a flat window is the uniform distribution
        self.windows, self.weights = windows, stretched.astype(np.float32)
        self.ends = np.zeros((10, windows.shape[1]), np.float32)        # cumulative, from 0 to the total
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
    """Normalised mutual information of each pair of windows, (n,). The last three arguments are work space."""
    n = f.total.size
    extreme, joint, logs = extreme[:, :n].reshape(10, 10, n), joint[:, :n], logs[:, :n]
    correlation = _dot(f.centred, s.centred) / np.maximum(np.sqrt(f.norm * s.norm), 1)
    # Both cumulative distributions in units of 1 / (f.total s.total): integers below 2^24, exact. A
    # negative correlation turns one of them round, and the same coupling is the lower extreme.
    unit = f.total * s.total
    x, y = f.ends * s.total, s.ends * f.total
    y = np.abs((correlation < 0) * unit - y)
    np.minimum(x[:, None], y[None], out=extreme)
    # Hoeffding: the covariance of the places sums the coupling's distribution function minus the product.
    covariance = extreme[1:9, 1:9].sum(axis=(0, 1)) / unit - x[1:9].sum(axis=0) / unit * (y[1:9].sum(axis=0) / unit)
    deviation = np.sqrt(f.spread * s.spread) / unit
    share = np.abs(correlation) * deviation / np.where(deviation > 0, covariance, 1)
    rows = np.diff(extreme, axis=0)
    np.subtract(rows[:, 1:], rows[:, :-1], out=joint.reshape(9, 9, n))
    joint *= np.copysign(share, correlation)
    np.multiply(((1 - share) * f.weights)[:, None], s.weights[None], out=logs.reshape(9, 9, n))
    joint += logs
    # The share may exceed 1 and make terms negative; the definition takes the real part of their logarithm.
    np.multiply(joint, joint, out=logs)
    logs += 1e-30
    cv2.log(logs, logs)
    joint_entropy = np.log(unit) - _dot(joint, logs) / (2 * unit)
    both = f.entropy + s.entropy
    information = 2 * (both - joint_entropy) / np.where(both > 0, both, 1)
    information[(deviation == 0) | (both <= 0)] = 0     # all weight at one place: nothing to know
    information[(f.windows == s.windows).all(axis=0)] = 1
    return information


# ---------------------------------------------------------------------------------------------
# All at once

_METRICS: dict[str, Callable[[_Trio, bool], float]] = {
    "EN": lambda trio, uint8: _en(trio.fused),
    "MI": _mi,
    "SF": lambda trio, uint8: _sf(trio.fused, uint8),
    "SD": lambda trio, uint8: _sd(trio.fused, uint8),
    "AG": lambda trio, uint8: _ag(trio.fused),
    "MSE": lambda trio, uint8: _mse(trio),
    "PSNR": lambda trio, uint8: _psnr(trio),
    "CC": lambda trio, uint8: _cc(trio),
    "SCD": lambda trio, uint8: _scd(trio),
    "VIF": _vif,
    "VIFF": _viff,
    "Qabf": lambda trio, uint8: _qabf(trio),
    "SSIM": lambda trio, uint8: _ssim(trio),
    "MS-SSIM": lambda trio, uint8: _ms_ssim(trio),
    "FMI": lambda trio, uint8: _fmi(trio),
    "Nabf": lambda trio, uint8: _nabf(trio),
}

_CDDFUSE_METRICS: dict[str, Callable[[_Trio], float]] = {
    "MI": _cddfuse_mi, "AG": _cddfuse_ag, "MSE": _cddfuse_mse, "PSNR": _cddfuse_psnr, "Qabf": _cddfuse_qabf,
    "SSIM": _cddfuse_ssim,
}


def columns(protocol: str) -> tuple[str, ...]:
    """Names of the metrics that `evaluate` gives under a protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol '{protocol}': one of {', '.join(PROTOCOLS)}")
    special = {"paper": tuple(PAPER_COLUMNS), "cddfuse": CDDFUSE_COLUMNS + CDDFUSE_EXTRAS}
    return special.get(protocol, NAMES)


def evaluate(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, protocol: str = "float",
             names: Iterable[str] | None = None) -> dict[str, float]:
    """Metrics of one fused image, with shared intermediate results.

    Args:
        fused, ir, vis: uint8 (H, W), one size; at least 41 x 41 for VIF and VIFF.
        protocol: "float", "uint8" (saturating where a metric has it, float elsewhere), "paper": the
            RPFNet paper's EN, SF (holds AG), SD (uint8), CC, SCD, VIFF (uint8); or "cddfuse": CDDFuse's EN, SD, SF,
            MI (nats), SCD, VIF, Qabf (0-255), SSIM (sum, data range 2), AG (mean), PSNR, CC, MSE (gray levels).
        names: some of `columns(protocol)`; all of them by default. Only these are computed.
    Returns:
        {name: value} in the order of `names`. nan, with a warning, where a metric is undefined.
    Raises:
        ValueError: not uint8 (H, W), different sizes, too small, unknown name or protocol.
    """
    return _evaluate(_trio(fused, ir, vis), protocol, names)


def _evaluate(trio: _Trio, protocol: str, names: Iterable[str] | None = None) -> dict[str, float]:
    known = columns(protocol)
    names = known if names is None else tuple(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no metric '{unknown[0]}' under protocol '{protocol}'; it has {', '.join(known)}")
    result = {}
    for name in names:
        metric, arithmetic = PAPER_COLUMNS[name] if protocol == "paper" else (name, protocol)
        if protocol == "cddfuse" and metric in _CDDFUSE_METRICS:
            result[name] = _CDDFUSE_METRICS[metric](trio)
            continue
        uint8 = arithmetic == "uint8" and metric in UINT8_VARIANTS
        if (metric, uint8) not in trio.values:
            trio.values[metric, uint8] = _METRICS[metric](trio, uint8)
        result[name] = trio.values[metric, uint8]
    return result


# ---------------------------------------------------------------------------------------------
# Scoring many images


class Task(NamedTuple):
    """One pair with the methods' fused images, as arrays: the process that scores it opens no file."""
    name: str
    ir: np.ndarray
    vis: np.ndarray
    fused: dict[str, np.ndarray]


class Scored(NamedTuple):
    """What one pair gave: {(method, protocol): {metric: value}}, why methods failed, and warnings."""
    name: str
    values: dict[tuple[str, str], dict[str, float]]
    problems: list[str]
    notes: list[str]


def baseline(name: str, ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
    """The trivial fusions "average" (rounded half up) and "max" of the sources, uint8."""
    if name == "max":
        return np.maximum(ir, vis)
    return ((ir.astype(np.uint16) + vis + 1) // 2).astype(np.uint8)


def score(task: Task, protocols: Sequence[str], names: Sequence[str] | None) -> Scored:
    """All methods of one pair. The sources' intermediate results are shared; errors are returned, not raised."""
    values, problems, notes = {}, [], []
    sources = None
    for method, fused in task.fused.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                sources = sources or (_Image(task.ir, "ir"), _Image(task.vis, "vis"))
                trio = _Trio(_Image(fused, "fused"), *sources)
                values |= {(method, protocol): _evaluate(trio, protocol, names) for protocol in protocols}
            except ValueError as error:
                problems.append(f"{method}, {task.name}: {error}")
        notes += sorted({str(warning.message) for warning in caught})
    return Scored(task.name, values, problems, notes)


def score_all(tasks: Iterable[Task], protocols: Sequence[str], names: Sequence[str] | None,
              workers: int) -> Iterator[Scored]:
    """Results in the order of the tasks, from `workers` processes. Tasks are drawn a few ahead, not all at once."""
    if workers <= 1:
        yield from (score(task, protocols, names) for task in tasks)
        return
    # One thread a process: threads of their own in OpenCV or BLAS would fight for the cores. Fresh
    # processes ("spawn") read the environment, and inherit no locks.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    waiting: deque[Future] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(score, task, protocols, names))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is for the parent, which keeps what is done
    cv2.setNumThreads(1)


# ---------------------------------------------------------------------------------------------
# Means, ranks and tables


class Running:
    """Mean and sample standard deviation of a stream of values; nan is left out."""

    def __init__(self):
        self.count, self.mean, self._squares = 0, math.nan, 0.0

    def add(self, value: float) -> None:
        if math.isnan(value):
            return
        self.count += 1
        if self.count == 1:
            self.mean = value
            return
        before = value - self.mean
        # Once infinite (PSNR of an equal image), the mean stays so.
        self.mean += before / self.count if math.isfinite(before) else value
        self._squares += before * (value - self.mean)

    @property
    def std(self) -> float:
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else math.nan


@dataclass
class Row:
    """One line of a table: a measured method, or a published one with its values as printed."""
    label: str
    means: dict[str, float]
    images: int | None = None
    stds: dict[str, float] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)


def ranks(values: Sequence[float], lower_is_better: bool = False) -> list[int]:
    """1 for the best value, equal values share the better rank, nan comes last."""
    keys = [math.inf if math.isnan(v) else v if lower_is_better else -v for v in values]
    return [1 + sum(other < key for other in keys) for key in keys]


def rank_of_ranks(rows: Sequence[dict[str, float]]) -> list[int]:
    """RoR: rank under each metric, average the ranks of a method, rank the averages. 1 is best.

    Args:
        rows: the metrics of each method, {name: mean}, the same names in all.
    """
    totals = [0] * len(rows)
    for name in rows[0]:
        for i, rank in enumerate(ranks([row[name] for row in rows], name in LOWER_IS_BETTER)):
            totals[i] += rank
    return ranks(totals, lower_is_better=True)


def published_rows(table: str, dataset: str | None = None) -> tuple[str, list[Row]]:
    """Rows of `results/paper_tables.csv`.

    Args:
        table: its number, and the data set where the table has several: "1", "4:TNO".
        dataset: a name of `dataset.DATASETS`, which also picks the data set.
    Returns:
        (data set as the paper names it, rows).
    """
    with open(PAPER_TABLES, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    number, _, wanted = table.partition(":")
    held = list(dict.fromkeys(line["dataset"] for line in lines if line["table"] == number))
    if not held:
        raise ValueError(f"--paper {table}: no table {number}; {PAPER_TABLES.name} holds "
                         f"{', '.join(dict.fromkeys(line['table'] for line in lines))}")
    wanted = wanted or PAPER_NAMES.get(dataset, dataset) or held[0]
    chosen = [name for name in held if name.lower() == wanted.lower()]
    if not chosen or (len(held) > 1 and not dataset and ":" not in table):
        choices = ", ".join(f"{number}:{name}" for name in held)
        raise ValueError(f"--paper {table}: say which data set, one of {choices}")
    rows = []
    for line in lines:
        if line["table"] == number and line["dataset"] == chosen[0]:
            printed = {name: line[name] for name in PAPER_COLUMNS}
            rows.append(Row(f"{line['method']} (paper)", {k: float(v) for k, v in printed.items()}, printed=printed))
    return chosen[0], rows


STYLES = {      # best, second best
    "terminal": ("\033[1m{}\033[0m", "\033[4m{}\033[0m"),
    "plain": ("{}", "{}"),
    "markdown": ("**{}**", "<u>{}</u>"),
    "latex": (r"\textbf{{{}}}", r"\underline{{{}}}"),
}


def table(rows: Sequence[Row], names: Sequence[str], style: str = "plain", std: bool = False) -> str:
    """An aligned table of means, best and second best marked, RoR where there are several rows.

    Args:
        style: a key of `STYLES`.
        std: add standard deviations.
    """
    plus_minus = r" $\pm$ " if style == "latex" else " ± "
    up, down = (r" $\uparrow$", r" $\downarrow$") if style == "latex" else (" ↑", " ↓")
    counts = {row.images for row in rows if row.images is not None}
    show_images, show_ror = len(counts) > 1, len(rows) > 1

    cells = [["method"] + [name + (down if name in LOWER_IS_BETTER else up) for name in names]]
    cells[0] += ["images"] * show_images + ["RoR" + down] * show_ror
    for row in rows:
        line = [_escape(row.label) if style == "latex" else row.label]
        for name in names:
            small = all(not abs(other.means[name]) >= 0.1 for other in rows)
            text = row.printed.get(name) or f"{row.means[name]:.{3 + small}f}"
            if std and name in row.stds:
                text += f"{plus_minus}{row.stds[name]:.{3 + small}f}"
            line.append(text)
        cells.append(line + ["-" if row.images is None else str(row.images)] * show_images)
    if show_ror:
        for line, rank in zip(cells[1:], rank_of_ranks([{n: row.means[n] for n in names} for row in rows])):
            line.append(str(rank))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    marks = _marks(rows, names) if len(rows) > 1 else {}
    styled = []
    for i, line in enumerate(cells):
        padded = []
        for j, (text, width) in enumerate(zip(line, widths)):
            # Pad outside the mark, by the visible width.
            marked = STYLES[style][marks[i - 1, j - 1]].format(text) if (i - 1, j - 1) in marks else text
            padding = " " * (width - len(text))
            padded.append(marked + padding if j == 0 else padding + marked)
        styled.append(padded)
    return _layout(styled, widths, style)


def _escape(text: str) -> str:
    return "".join("\\" + char if char in "_&%#$" else char for char in text)


def _marks(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[int, int], int]:
    """{(row, column): 0 for the best, 1 for the second best}."""
    found = {}
    for column, name in enumerate(names):
        values = [row.means[name] for row in rows]
        distinct = sorted({v for v in values if not math.isnan(v)}, reverse=name not in LOWER_IS_BETTER)
        for place, value in enumerate(distinct[:2]):
            found |= {(i, column): place for i, v in enumerate(values) if v == value}
    return found


def _layout(cells: list[list[str]], widths: list[int], style: str) -> str:
    if style == "latex":
        body = [" & ".join(line) + r" \\" for line in cells]
        return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(widths) - 1)}}}", r"\toprule", body[0], r"\midrule",
                          *body[1:], r"\bottomrule", r"\end{tabular}"])
    if style == "markdown":
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        return "\n".join([lines[0], "|---" + "|---:" * (len(widths) - 1) + "|", *lines[1:]])
    lines = ["  ".join(line) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


# ---------------------------------------------------------------------------------------------
# python metrics.py

PAPER_TABLES = Path(__file__).resolve().parent / "results" / "paper_tables.csv"
PAPER_NAMES = {"roadscene": "FLIR-val", "mri-pet": "Harvard", "mri-spect": "Harvard"}     # others as in dataset.DATASETS
BASELINES = ("average", "max")
TITLES = {
    "float": "protocol float: the definitions, in real numbers",
    "uint8": "protocol uint8: saturating arithmetic in MI, SF, SD, VIF; VIFF of images in [0, 1]; the rest as in float",
    "cddfuse": "protocol cddfuse: gray levels in real numbers; MI in nats; Qabf of 0-255 images; "
               "SSIM summed, 7 x 7 windows, data range 2",
    "paper": 'protocol paper: the column "SF" holds the average gradient (AG), SD and VIFF are the uint8 variants',
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Score fused images against their sources, with the arithmetic of the tables you compare with.",
        epilog="examples:\n"
               "  python metrics.py --fused Fused --ir data/ir --vis data/vis\n"
               "  python metrics.py --fused RPFNet=Fused LRRNet=other/LRRNet --dataset tno --data data/TNO \\\n"
               "      --baselines --protocol paper --paper 4")
    images = parser.add_argument_group("images")
    images.add_argument("--fused", nargs="+", default=[], metavar="[NAME=]DIR",
                        help="folders of fused images, named as the pairs (for IR{n}/VIS{n}: {n}); colour becomes luma")
    images.add_argument("--baselines", action="store_true", help="also score the sources' average and maximum")
    images.add_argument("--ir", type=Path, help="infrared folder (for IR*/VIS* in one folder: that folder, twice)")
    images.add_argument("--vis", type=Path, help="visible folder")
    images.add_argument("--dataset", type=str.lower, help="a published data set's layout, in place of --ir and --vis")
    images.add_argument("--data", type=Path, help="its folder")
    images.add_argument("--split", help="its split (default: the one that is evaluated; roadscene: the 40 of val)")

    what = parser.add_argument_group("what to compute")
    what.add_argument("--protocol", choices=(*PROTOCOLS, "both"), help="float: the definitions; uint8: MATLAB's "
                      "saturating arithmetic; both of them; paper: the RPFNet paper's six columns as they were "
                      "computed; cddfuse: the eight columns of CDDFuse's family of tables, and on demand AG, PSNR, CC, "
                      "MSE (default: float; with --paper: paper)")
    what.add_argument("--metrics", nargs="+", metavar="NAME", help=f"only these (default: all): {' '.join(NAMES)}")
    what.add_argument("--paper", metavar="TABLE", help="put the published rows of this table beside: 1, 2, 3, 4:TNO, "
                      "4:MSRS, 4:M3FD, 6 (with --dataset, 4 is enough)")

    output = parser.add_argument_group("output")
    output.add_argument("--std", action="store_true", help="standard deviations over the images")
    shape = output.add_mutually_exclusive_group()
    shape.add_argument("--markdown", action="store_true", help="print Markdown tables")
    shape.add_argument("--latex", action="store_true", help="print LaTeX tables (booktabs)")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write one row for each method, image and protocol")
    output.add_argument("--workers", type=int, default=cores(), help="processes (default: all cores, %(default)s)")
    return parser


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_pairs(args: argparse.Namespace) -> tuple[list, list[str]]:
    """The pairs to score, and a line for each source image without a partner."""
    from dataset import DataError, find_chosen, find_pairs  # only here: it needs PyTorch, the metrics do not
    chosen = find_chosen(args.dataset, args.data, args.split, args.ir, args.vis)
    if chosen:
        return chosen
    if not (args.ir and args.vis):
        raise DataError("say where the sources are: --ir DIR --vis DIR, or --dataset NAME --data FOLDER")
    return find_pairs(args.ir, args.vis)


def collect_methods(specs: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of "NAME=DIR" or "DIR", whose name is the folder's."""
    methods: dict[str, Path] = {}
    for spec in specs:
        name, equals, folder = spec.partition("=")
        if not equals or Path(spec).is_dir():
            name, folder = Path(spec).resolve().name, spec
        if name in methods or name in BASELINES:
            raise ValueError(f"--fused {spec}: the name {name} is taken; write OTHER={folder}")
        methods[name] = Path(folder)
    return methods


def match_fused(pairs: Sequence, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """{pair's name: fused image} by file stem, and a line for everything that does not match.

    For numbered pairs, 01 and 1 are the same number unless the folder has both.
    """
    from dataset import list_images
    found = list_images(folder)
    numbers = Counter(int(stem) for stem in found if stem.isdecimal())
    by_number = {int(stem): stem for stem in found if stem.isdecimal() and numbers[int(stem)] == 1}
    matched, problems = {}, []
    for pair in pairs:
        stem = pair.name
        if stem not in found and stem.isdecimal():
            stem = by_number.get(int(stem), stem)
        if stem in found:
            matched[pair.name] = found.pop(stem)
        else:
            problems.append(f"{folder}: no fused image for {pair.name}")
    return matched, problems + [f"{path}: no pair of this name" for path in found.values()]


def read_tasks(pairs: Sequence, methods: dict[str, dict[str, Path]], baselines: Sequence[str],
               problems: list[str]) -> Iterator[Task]:
    """Read the images pair by pair; what cannot be read is added to `problems` and left out."""
    from dataset import DataError, load_pair, luma, read_gray
    for pair in pairs:
        try:
            ir, vis = load_pair(pair)
        except DataError as error:
            problems.append(str(error))
            yield Task(pair.name, np.empty(0), np.empty(0), {})     # keeps the progress bar's count
            continue
        vis = luma(vis)
        fused = {name: baseline(name, ir, vis) for name in baselines}
        for name, paths in methods.items():
            if pair.name in paths:
                try:
                    fused[name] = read_gray(paths[pair.name])
                except DataError as error:
                    problems.append(str(error))
        yield Task(pair.name, ir, vis, fused)


class Report:
    """Collects scores as they come: running means, and a CSV file that is whole after every image."""

    def __init__(self, protocols: Sequence[str], names: Sequence[str], csv_path: Path | None):
        self.names, self.stats, self.notes = names, {}, Counter()
        self.images: Counter = Counter()
        self._file = csv_path.open("w", newline="", encoding="utf-8") if csv_path else None
        self._writer = csv.writer(self._file) if self._file else None
        self._write(["method", "image", "protocol", *names])

    def add(self, scored: Scored) -> None:
        self.notes.update(scored.notes)
        for (method, protocol), values in scored.values.items():
            stats = self.stats.setdefault((protocol, method), {name: Running() for name in self.names})
            self.images[protocol, method] += 1
            for name in self.names:
                stats[name].add(values[name])
            self._write([method, scored.name, protocol, *(values[name] for name in self.names)])
        if self._file:
            self._file.flush()

    def _write(self, cells: list) -> None:
        if self._writer:
            self._writer.writerow(cells)

    def rows(self, protocol: str, order: Sequence[str]) -> list[Row]:
        return [Row(method, {name: s.mean for name, s in self.stats[protocol, method].items()},
                    self.images[protocol, method], {name: s.std for name, s in self.stats[protocol, method].items()})
                for method in order if (protocol, method) in self.stats]

    def close(self) -> None:
        if self._file:
            self._file.close()


def print_report(args: argparse.Namespace, report: Report, protocols: Sequence[str], order: Sequence[str],
                 published: tuple[str, list[Row]] | None) -> None:
    style = ("markdown" if args.markdown else "latex" if args.latex else
             "terminal" if sys.stdout.isatty() else "plain")
    start = "% " if style == "latex" else ""
    for protocol in protocols:
        rows = report.rows(protocol, order)
        if not rows:
            continue
        print(f"{start}{TITLES[protocol]}; means over {max(row.images for row in rows)} images")
        if published:
            print(f"{start}(paper): published rows of table {args.paper.partition(':')[0]}, {published[0]}")
            rows = published[1] + rows
        if style == "markdown":
            print()
        print(table(rows, report.names, style, args.std), end="\n\n")


def main(argv: Sequence[str] | None = None) -> int:
    from tqdm import tqdm

    from dataset import DataError
    args = build_parser().parse_args(argv)
    protocol = args.protocol or ("paper" if args.paper else "float")
    protocols = ("float", "uint8") if protocol == "both" else (protocol,)
    problems, interrupted = [], False
    try:
        names = _chosen_names(args.metrics, protocols[0])
        if args.paper and protocols != ("paper",):
            raise ValueError("--paper: its rows hold the columns of --protocol paper")
        folders = collect_methods(args.fused)
        if not folders and not args.baselines:
            raise ValueError("nothing to score: give --fused [NAME=]DIR or --baselines")
        published = published_rows(args.paper, args.dataset) if args.paper else None
        pairs, problems = collect_pairs(args)
        methods = {}
        for name, folder in folders.items():
            methods[name], lonely = match_fused(pairs, folder)
            problems += lonely
        baselines = BASELINES if args.baselines else ()
        report = Report(protocols, names, args.csv)
    except (DataError, ValueError, OSError) as error:
        print(f"metrics.py: {error}", file=sys.stderr)
        return 1
    tasks = read_tasks(pairs, methods, baselines, problems)
    try:
        for scored in tqdm(score_all(tasks, protocols, names, min(args.workers, len(pairs))), total=len(pairs),
                           unit="pair", desc="scoring", disable=None):
            problems += scored.problems
            report.add(scored)
    except KeyboardInterrupt:
        interrupted = True
    except BrokenProcessPool:
        problems.append("the rest: a worker process was killed (out of memory?); try fewer --workers")
    report.close()
    print_report(args, report, protocols, [*methods, *baselines], published)
    for note, count in report.notes.items():
        print(f"note: {note} ({count} times, left out of the mean)", file=sys.stderr)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if interrupted:
        print("metrics.py: interrupted; the rows above hold what was done", file=sys.stderr)
    return 130 if interrupted else 1 if problems else 0


def _chosen_names(chosen: Sequence[str] | None, protocol: str) -> list[str]:
    known = {name.lower(): name for name in columns(protocol)}
    usual = CDDFUSE_COLUMNS if protocol == "cddfuse" else columns(protocol)
    unknown = [name for name in chosen or () if name.lower() not in known]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]}: protocol {protocol} has {' '.join(known.values())}")
    return [known[name.lower()] for name in chosen] if chosen else list(usual)


if __name__ == "__main__":
    sys.exit(main())
